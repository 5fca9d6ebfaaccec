"""A recipe: one YAML file, one run. The sections stand in the order of the run; each default stands here alone."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mosaicbert.config.duration import Duration, parse_duration
from mosaicbert.config.errors import ConfigError
from mosaicbert.config.model import ModelConfig

_LARGEST_SEED = 2**31 - 1  # Composer adds the rank, and the sum must be below 2^32
_LARGEST_WEIGHT_RATIO = 10_000
_SOURCE_NAME = re.compile(r"[\w-]+")
NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP], which every sequence gets
VOCABULARY_MULTIPLE = 64  # matrix products of this width fill the tensor cores' tiles


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One place that text comes from."""

    path: str  # "installed-documentation", a Hub dataset's name, or files: a path, a folder or a glob
    revision: str = "main"  # branch, tag or commit of a Hub dataset; what it stands for is noted in the store
    subset: str | None = None  # the configuration of a Hub dataset, e.g. "en" of C4
    text_column: str = "text"
    validation_split: str | None = None  # a split of a Hub dataset; None: validation_fraction of the texts, by hash
    weight: float | None = None  # share of the training samples, relative to the other sources'; None: by size


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes samples."""

    sources: dict[str, SourceConfig]  # by names of your choice, read in this order
    validation_fraction: float = 0.01
    min_characters: int = 1  # shorter texts are left out
    skip_invalid_documents: bool = False  # leave out and count what cannot be read; False: stop at the first
    sampling: Literal["truncate", "chunk"] = "truncate"  # a text's first max_seq_len tokens, or all of it in pieces
    max_seq_len: int = 128  # tokens of a sample, [CLS] and [SEP] included
    store: str | None = None  # folder of the token store, to share it among runs; None: inside the run's folder
    num_partitions: int = 1  # parts of the list of input files, which machines can prepare independently
    partition: int | None = None  # number from 0 of the one that `prepare` makes; None: all, merged into the store
    mask_rate: float = 0.30
    final_mask_rate: float | None = None  # reached linearly at the last step; None: mask_rate all along
    num_workers: int = 2  # loader processes per rank; 0 loads in the training process

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("data.sources is empty; name a place that text comes from, e.g. data.sources.text.path=.")
        for name, source in self.sources.items():
            if not _SOURCE_NAME.fullmatch(name):
                raise ConfigError(f"data.sources.{name}: is no name; take letters, digits, - and _.")
            if source.weight is not None and not 0.0 < source.weight < math.inf:
                raise ConfigError(
                    f"data.sources.{name}.weight={source.weight} is no share; give a number above zero, "
                    "or leave the source out."
                )
        without = [name for name, source in self.sources.items() if source.weight is None]
        if 0 < len(without) < len(self.sources):
            raise ConfigError(
                f"data.sources.{without[0]}.weight is missing; give every source a weight, or none of them."
            )
        if not without:
            weights = {name: source.weight or 0.0 for name, source in self.sources.items()}
            smallest = min(weights, key=lambda name: weights[name])
            if weights[smallest] * _LARGEST_WEIGHT_RATIO < sum(weights.values()):
                raise ConfigError(
                    f"data.sources.{smallest}.weight={weights[smallest]} is less than 1/{_LARGEST_WEIGHT_RATIO:,} of "
                    "all weights; give more, or leave the source out."
                )
        if self.max_seq_len < 3:
            raise ConfigError(
                f"data.max_seq_len={self.max_seq_len} leaves no room for text between [CLS] and [SEP]; give 3 or more."
            )
        _require_fraction("data.mask_rate", self.mask_rate)
        if self.final_mask_rate is not None:
            _require_fraction("data.final_mask_rate", self.final_mask_rate)
        _require_fraction("data.validation_fraction", self.validation_fraction)
        _require_at_least("data.num_workers", self.num_workers, 0)
        _require_at_least("data.min_characters", self.min_characters, 1)
        _require_at_least("data.num_partitions", self.num_partitions, 1)
        if self.partition is not None and not 0 <= self.partition < self.num_partitions:
            raise ConfigError(
                f"data.partition={self.partition} is none of data.num_partitions={self.num_partitions}; "
                f"give a number from 0 to {self.num_partitions - 1}."
            )

    @property
    def max_text_tokens(self) -> int:
        """Tokens of the longest sample without [CLS] and [SEP]."""
        return self.max_seq_len - NUM_SPECIAL_TOKENS


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The WordPiece tokenizer: trained on the corpus, or loaded."""

    source: str  # "train", a Hub name, or a path: vocab.txt, tokenizer.json, or a folder that holds one


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the course of its learning rate. The defaults are the paper's."""

    name: Literal["decoupled_adamw", "stable_adamw", "muon"] = "decoupled_adamw"
    peak_lr: float = 5.0e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1.0e-6
    momentum: float = 0.95  # of muon's matrices
    weight_decay: float = 1.0e-5  # decoupled: p *= 1 - weight_decay * lr / peak_lr
    schedule: Literal["linear", "warmup_stable_decay"] = "linear"
    warmup_fraction: float = 0.06  # of the run's duration, whatever it is given in
    decay_fraction: float = 0.1  # of the run's duration: the decay at the end of warmup_stable_decay
    final_lr_fraction: float = 0.02  # of peak_lr

    def __post_init__(self) -> None:
        for name in ("peak_lr", "eps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} trains nothing; give a number above zero.")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={self.betas} are no decay rates; give two numbers in [0, 1).")
        for name in ("weight_decay", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} is no decay; give a number in [0, 1).")
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} is no fraction; give a number in [0, 1].")
        if self.schedule == "warmup_stable_decay" and self.warmup_fraction + self.decay_fraction > 1.0:
            raise ConfigError(
                f"optimizer.warmup_fraction={self.warmup_fraction} and "
                f"optimizer.decay_fraction={self.decay_fraction} are more than the whole run; make one smaller."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in which portions, and on what the run trains."""

    duration: str  # "70_000 steps", "286_720_000 samples", "20e9 tokens", "30min"; see config.duration
    global_batch_samples: int = 4096  # sequences per optimizer step, over all devices
    initial_batch_samples: int | None = None  # of the first step; grows while batch_warmup_tokens are trained
    batch_warmup_tokens: int | None = None  # None: global_batch_samples from the first step on
    micro_batch_tokens: int = 16384  # per device and forward pass, at most
    precision: Literal["bf16", "fp32", "auto"] = "bf16"  # auto: bf16 where the processor multiplies it faster
    compile: bool | None = None  # torch.compile of the step; None: on a GPU
    cuda_graphs: bool = False  # launch the compiled step as CUDA graphs: for models so small that launching takes long
    sharding: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights and optimizer shared out among the devices
    num_processes: int | None = None  # None: one per GPU, or one on a machine without

    def __post_init__(self) -> None:
        parse_duration("train.duration", self.duration)
        for name in ("global_batch_samples", "micro_batch_tokens"):
            _require_at_least(f"train.{name}", getattr(self, name), 1)
        if (self.initial_batch_samples is None) != (self.batch_warmup_tokens is None):
            raise ConfigError(
                f"train.initial_batch_samples={self.initial_batch_samples} and "
                f"train.batch_warmup_tokens={self.batch_warmup_tokens} belong together; give both or neither."
            )
        if self.initial_batch_samples is not None and self.batch_warmup_tokens is not None:
            _require_at_least("train.initial_batch_samples", self.initial_batch_samples, 1)
            _require_at_least("train.batch_warmup_tokens", self.batch_warmup_tokens, 1)
            if self.initial_batch_samples > self.global_batch_samples:
                raise ConfigError(
                    f"train.initial_batch_samples={self.initial_batch_samples} is more than "
                    f"train.global_batch_samples={self.global_batch_samples}; a batch only grows."
                )
        if self.num_processes is not None:
            _require_at_least("train.num_processes", self.num_processes, 1)
            if self.num_processes > self.smallest_batch_samples:
                raise ConfigError(
                    f"train.num_processes={self.num_processes} is more than the {self.smallest_batch_samples} samples "
                    "of a step; every process needs one: raise train.global_batch_samples or initial_batch_samples."
                )
        if self.length.unit == "samples" and self.length.amount < self.smallest_batch_samples:
            raise ConfigError(
                f"train.duration={self.duration!r} is less than one step of {self.smallest_batch_samples} samples; "
                "train longer or in smaller batches."
            )

    @property
    def length(self) -> Duration:
        return parse_duration("train.duration", self.duration)

    @property
    def smallest_batch_samples(self) -> int:
        return self.global_batch_samples if self.initial_batch_samples is None else self.initial_batch_samples


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of the run is written, and what of it is kept. Each kept one is a Hugging Face folder too."""

    interval: str = "3500 steps"  # or samples, tokens, time
    keep_last: int = 2  # so many of the newest
    keep_every: int | None = None  # and every so-manieth; None: only the newest

    def __post_init__(self) -> None:
        parse_duration("checkpoint.interval", self.interval)
        _require_at_least("checkpoint.keep_last", self.keep_last, 1)
        if self.keep_every is not None:
            _require_at_least("checkpoint.keep_every", self.keep_every, 1)


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What is done about numbers that go wrong: see docs/training.md."""

    spike_deviations: float = 10.0  # robust deviations above the recent losses that make a loss a spike
    window_steps: int = 100  # how many losses are recent
    max_skipped_steps: int = 10  # steps in a row without a finite loss and gradient, before going back
    max_rollbacks: int = 5  # times that the run goes back to a checkpoint, before it stops

    def __post_init__(self) -> None:
        if not self.spike_deviations > 0.0:
            raise ConfigError(
                f"faults.spike_deviations={self.spike_deviations} makes every loss a spike; give a number above zero."
            )
        _require_at_least("faults.window_steps", self.window_steps, 8)
        _require_at_least("faults.max_skipped_steps", self.max_skipped_steps, 1)
        _require_at_least("faults.max_rollbacks", self.max_rollbacks, 0)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where the run's measurements go, beside its folder and the console."""

    interval_steps: int = 10  # between two lines of metrics.jsonl
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list[Literal["tensorboard", "wandb"]])

    def __post_init__(self) -> None:
        _require_at_least("log.interval_steps", self.interval_steps, 1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured on held-out text."""

    interval: str = "2000 steps"  # or samples, tokens, time
    mask_rate: float = 0.15
    max_samples: int = 20_000
    fill_mask: list[str] = field(default_factory=list)  # sentences with one [MASK]; filled when the run ends

    def __post_init__(self) -> None:
        parse_duration("eval.interval", self.interval)
        _require_at_least("eval.max_samples", self.max_samples, 1)
        _require_fraction("eval.mask_rate", self.mask_rate)
        for sentence in self.fill_mask:
            if sentence.count("[MASK]") != 1:
                raise ConfigError(f"eval.fill_mask holds {sentence!r}; every sentence needs exactly one [MASK].")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, complete."""

    run_name: str
    seed: int = 17
    runs_folder: str = "runs"
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
        if self.run_name in ("", "..") or Path(self.run_name).name != self.run_name:
            raise ConfigError(f"run_name={self.run_name!r} is no folder name; give one without slashes.")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigError(f"seed={self.seed} is no seed; give a whole number from 0 to {_LARGEST_SEED:,}.")
        if self.train.micro_batch_tokens < self.data.max_seq_len:
            raise ConfigError(
                f"train.micro_batch_tokens={self.train.micro_batch_tokens} is smaller than one sequence of "
                f"data.max_seq_len={self.data.max_seq_len}; give at least that many."
            )
        if self.data.final_mask_rate is not None and self.train.length.unit == "seconds":
            raise ConfigError(
                f"data.final_mask_rate={self.data.final_mask_rate} is reached at the last step, which "
                f"train.duration={self.train.duration!r} does not tell; give the duration in steps, samples or tokens."
            )
        if self.optimizer.name != "decoupled_adamw" and self.train.sharding == "fsdp":
            raise ConfigError(
                f"optimizer.name={self.optimizer.name} needs whole tensors, which train.sharding=fsdp cuts up; "
                "choose optimizer.name=decoupled_adamw or train.sharding=ddp."
            )
        if self.model.vocab_size % VOCABULARY_MULTIPLE:
            padded = math.ceil(self.model.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
            raise ConfigError(
                f"model.vocab_size={self.model.vocab_size} is not a multiple of {VOCABULARY_MULTIPLE}; "
                f"pad it to model.vocab_size={padded}, ids past the tokenizer's are never used."
            )

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_folder) / self.run_name

    @property
    def store_folder(self) -> Path:
        return self.run_folder / "store" if self.data.store is None else Path(self.data.store)


def _require_fraction(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name}={value} is no share; give a number between 0 and 1.")


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} is too small; give {least} or more.")
