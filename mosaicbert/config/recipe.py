"""Pretraining recipe: all keys, in the order of the run, with their defaults and rules."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mosaicbert.config.duration import DURATION, Duration, parse_duration
from mosaicbert.config.model import ModelConfig
from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import (
    POSITIVE,
    Rule,
    at_least,
    auto_or_at_least,
    each_within,
    must_be,
    not_supported,
    validate,
    within,
)

_MAX_SEED = 2**31 - 1  # Composer adds the rank, and the sum must be below 2^32
_MAX_WEIGHT_RATIO = 10_000
_SOURCE_NAME = re.compile(r"[\w-]+")
_SENTENCES = Rule("sentences with one [MASK] each", lambda texts: all(text.count("[MASK]") == 1 for text in texts))
NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP] of every sequence
VOCABULARY_MULTIPLE = 64  # for full tensor core tiles in the decoder's matrix product


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Text source."""

    path: str  # "installed-documentation", name of a Hub dataset, or files: path, folder or glob
    revision: str = "main"  # branch, tag or commit of a Hub dataset; the store records the commit
    subset: str | None = None  # configuration of a Hub dataset, e.g. "en" of C4
    text_column: str = "text"
    validation_split: str | None = None  # split of a Hub dataset; None: validation_fraction of the texts, by hash
    weight: Annotated[float | None, POSITIVE] = None  # relative number of training samples; None: by size


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Text sources and their conversion to samples."""

    sources: dict[str, SourceConfig]  # by freely chosen name, read in this order
    validation_fraction: Annotated[float, within("(0, 1)")] = 0.01
    min_characters: Annotated[int, at_least(1)] = 1  # shorter texts are skipped
    skip_invalid_documents: bool = False  # True: skip and count them; False: stop at the first
    sampling: Literal["truncate", "chunk"] = "truncate"  # first max_seq_len tokens of a text, or all in chunks
    max_seq_len: Annotated[int, at_least(3)] = 128  # tokens per sample, including [CLS] and [SEP]
    store: str | None = None  # folder of a token store shared by several runs; None: in the run folder
    num_partitions: Annotated[int, at_least(1)] = 1  # partitions of the input files, for several machines
    partition: Annotated[int | None, at_least(0)] = None  # partition that `prepare` builds; None: all, then the store
    mask_rate: Annotated[float, within("(0, 1)")] = 0.30
    final_mask_rate: Annotated[float | None, within("(0, 1)")] = None  # at the last step, after a linear change
    num_workers: Annotated[int, at_least(0)] = 2  # data loader workers per rank; 0: in the training process

    def __post_init__(self) -> None:
        validate(self, "data")
        if not self.sources:
            raise must_be("data.sources", "non-empty", {}, "Name a source, e.g. data.sources.text.path=texts.jsonl.")
        for name, source in self.sources.items():
            if not _SOURCE_NAME.fullmatch(name):
                raise must_be("data.sources", "named with letters, digits, - and _", name)
            validate(source, f"data.sources.{name}")
        self._check_weights({name: source.weight for name, source in self.sources.items()})
        if self.partition is not None and self.partition >= self.num_partitions:
            raise must_be("data.partition", f"less than `data.num_partitions={self.num_partitions}`", self.partition)

    def _check_weights(self, weights: dict[str, float | None]) -> None:
        set_weights = {name: weight for name, weight in weights.items() if weight is not None}
        if not set_weights:
            return
        missing = next((name for name in weights if name not in set_weights), None)
        if missing is not None:
            raise must_be(f"data.sources.{missing}.weight", "set for all sources or for none", None)
        smallest = min(set_weights, key=lambda name: set_weights[name])
        if set_weights[smallest] * _MAX_WEIGHT_RATIO < sum(set_weights.values()):
            rule = f"at least 1/{_MAX_WEIGHT_RATIO:,} of the sum of all weights"
            remedy = "Raise it, or remove the source."
            raise must_be(f"data.sources.{smallest}.weight", rule, set_weights[smallest], remedy)

    @property
    def max_text_tokens(self) -> int:
        """Maximum number of tokens per sample, excluding [CLS] and [SEP]."""
        return self.max_seq_len - NUM_SPECIAL_TOKENS


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """WordPiece tokenizer, trained on the corpus or loaded."""

    source: str  # "train", name on the Hub, or path of vocab.txt, of tokenizer.json or of their folder


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate schedule. The defaults are those of the paper."""

    name: Literal["decoupled_adamw", "stable_adamw", "muon"] = "decoupled_adamw"
    peak_lr: Annotated[float, POSITIVE] = 5.0e-4
    betas: Annotated[tuple[float, float], each_within("[0, 1)")] = (0.9, 0.98)
    eps: Annotated[float, POSITIVE] = 1.0e-6
    momentum: Annotated[float, within("[0, 1)")] = 0.95  # muon only, for its matrices
    weight_decay: Annotated[float, within("[0, 1)")] = 1.0e-5  # decoupled: p *= 1 - weight_decay * lr / peak_lr
    schedule: Literal["linear", "warmup_stable_decay"] = "linear"
    warmup_fraction: Annotated[float, within("[0, 1]")] = 0.06  # of the duration, in its unit
    decay_fraction: Annotated[float, within("[0, 1]")] = 0.1  # of the duration, for warmup_stable_decay
    final_lr_fraction: Annotated[float, within("[0, 1]")] = 0.02  # of peak_lr

    def __post_init__(self) -> None:
        validate(self, "optimizer")
        if self.schedule == "warmup_stable_decay" and self.warmup_fraction + self.decay_fraction > 1.0:
            rule = f"at most 1 - `optimizer.warmup_fraction={self.warmup_fraction}`"
            raise must_be("optimizer.decay_fraction", rule, self.decay_fraction)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Duration, batch size, precision and devices of training."""

    duration: Annotated[str, DURATION]  # "70_000 steps", "286_720_000 samples", "20e9 tokens", "30min"
    global_batch_samples: Annotated[int, at_least(1)] = 4096  # sequences per optimizer step, over all devices
    initial_batch_samples: Annotated[int | None, at_least(1)] = None  # first batch; grows over batch_warmup_tokens
    batch_warmup_tokens: Annotated[int | None, at_least(1)] = None  # None: no batch size warmup
    micro_batch_tokens: Annotated[int, at_least(1)] = 16384  # maximum per device and forward pass
    precision: Literal["bf16", "fp32", "auto"] = "bf16"  # auto: the faster one on this CPU
    compile: bool | None = None  # torch.compile of the step; None: on GPUs only
    cuda_graphs: bool = False  # CUDA graphs of the compiled step, for small models limited by kernel launches
    sharding: Literal["ddp", "fsdp"] = "ddp"  # fsdp: shard weights and optimizer state over the devices
    # None: one per GPU, or one on a CPU; auto: on a CPU as many as are fastest
    num_processes: Annotated[int | Literal["auto"] | None, auto_or_at_least(1)] = None

    def __post_init__(self) -> None:
        validate(self, "train")
        initial, warmup = self.initial_batch_samples, self.batch_warmup_tokens
        if warmup is None and initial is not None:
            raise must_be("train.batch_warmup_tokens", f"set if `train.initial_batch_samples={initial}` is set", None)
        if initial is None and warmup is not None:
            raise must_be("train.initial_batch_samples", f"set if `train.batch_warmup_tokens={warmup}` is set", None)
        if self.min_batch_samples > self.global_batch_samples:
            rule = f"at most `train.global_batch_samples={self.global_batch_samples}`"
            raise must_be("train.initial_batch_samples", rule, initial)
        if isinstance(self.num_processes, int) and self.num_processes > self.min_batch_samples:
            rule = f"at most {self.min_batch_samples}, the number of samples of the smallest batch"
            remedy = "Raise `train.global_batch_samples` or `train.initial_batch_samples`."
            raise must_be("train.num_processes", rule, self.num_processes, remedy)
        if self.length.unit == "samples" and self.length.amount < self.min_batch_samples:
            rule = f"at least one step of {self.min_batch_samples} samples"
            raise must_be("train.duration", rule, self.duration)

    @property
    def length(self) -> Duration:
        return parse_duration("train.duration", self.duration)

    @property
    def min_batch_samples(self) -> int:
        return self.global_batch_samples if self.initial_batch_samples is None else self.initial_batch_samples


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Interval and retention of checkpoints. Retained checkpoints are also exported as Hugging Face folders."""

    interval: Annotated[str, DURATION] = "3500 steps"  # in steps, samples, tokens or time
    keep_last: Annotated[int, at_least(1)] = 2  # number of newest checkpoints to retain
    keep_every: Annotated[int | None, at_least(1)] = None  # also retain every Nth checkpoint; None: the newest only

    def __post_init__(self) -> None:
        validate(self, "checkpoint")

    @property
    def interval_length(self) -> Duration:
        """Interval as a duration."""
        return parse_duration("checkpoint.interval", self.interval)


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """Limits for non-finite steps and loss spikes, see docs/training.md."""

    spike_deviations: Annotated[float, POSITIVE] = 10.0  # robust deviations of a spike above the recent losses
    window_steps: Annotated[int, at_least(8)] = 100  # number of recent losses
    max_skipped_steps: Annotated[int, at_least(1)] = 10  # consecutive non-finite steps before a rollback
    max_rollbacks: Annotated[int, at_least(0)] = 5  # rollbacks before the run stops

    def __post_init__(self) -> None:
        validate(self, "faults")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Loggers in addition to the run folder and the console."""

    interval_steps: Annotated[int, at_least(1)] = 10  # steps between two lines of metrics.jsonl
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list[Literal["tensorboard", "wandb"]])

    def __post_init__(self) -> None:
        validate(self, "log")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation split."""

    interval: Annotated[str, DURATION] = "2000 steps"  # in steps, samples, tokens or time
    mask_rate: Annotated[float, within("(0, 1)")] = 0.15
    max_samples: Annotated[int, at_least(1)] = 20_000
    fill_mask: Annotated[list[str], _SENTENCES] = field(default_factory=list[str])  # predicted after training

    def __post_init__(self) -> None:
        validate(self, "eval")

    @property
    def interval_length(self) -> Duration:
        """Interval as a duration."""
        return parse_duration("eval.interval", self.interval)


@dataclass(frozen=True, kw_only=True)
class Recipe(RunRecipe):
    """Recipe of a pretraining run."""

    seed: Annotated[int, within(f"[0, {_MAX_SEED}]")] = 17
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.micro_batch_tokens < self.data.max_seq_len:
            rule = f"at least `data.max_seq_len={self.data.max_seq_len}`"
            raise must_be("train.micro_batch_tokens", rule, self.train.micro_batch_tokens)
        if self.data.final_mask_rate is not None and self.train.length.unit == "seconds":
            raise not_supported(
                f"data.final_mask_rate={self.data.final_mask_rate}",
                f"train.duration={self.train.duration}",
                "Set the duration in steps, samples or tokens, which determine the number of steps.",
            )
        if self.optimizer.name != "decoupled_adamw" and self.train.sharding == "fsdp":
            raise not_supported(
                f"optimizer.name={self.optimizer.name}",
                "train.sharding=fsdp",
                "Set optimizer.name=decoupled_adamw or train.sharding=ddp.",
            )
        if self.model.vocab_size % VOCABULARY_MULTIPLE:
            padded = math.ceil(self.model.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
            remedy = f"Set model.vocab_size={padded}: the additional token ids are unused."
            raise must_be("model.vocab_size", f"a multiple of {VOCABULARY_MULTIPLE}", self.model.vocab_size, remedy)

    @property
    def store_folder(self) -> Path:
        return self.run_folder / "store" if self.data.store is None else Path(self.data.store)
