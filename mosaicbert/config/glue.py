"""GLUE tasks, their fine-tuning protocols from the paper, and the GLUE recipe, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import NOT_EMPTY, POSITIVE, at_least, distinct, validate, within

MNLI = "mnli"
OFFICIAL, MAIN = "nyu-mll/glue", "main"  # GLUE on the Hub
SEEDS = (19, 8364, 717, 10536, 90166)  # a task uses the first num_seeds of its protocol
_SHORT_NAMES = {
    "accuracy": "acc",
    "accuracy_matched": "acc m",
    "accuracy_mismatched": "acc mm",
    "f1": "F1",
    "matthews_correlation": "Matthews",
    "spearman": "Spearman",
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Fine-tuning protocol of a GLUE task.

    Attributes:
        epochs: Number of epochs over the training data.
        batch_size: Number of examples per step.
        peak_lr: Peak learning rate, reached after 6% of the steps and followed by linear decay to zero.
        weight_decay: Decoupled weight decay: p *= 1 - weight_decay * lr / peak_lr.
        num_seeds: Number of fine-tuning runs, each with its own seed for data order, head and dropout.
        train_examples: Number of training examples, a fixed random subset; None for all.
    """

    epochs: int
    batch_size: int
    peak_lr: float
    weight_decay: float
    num_seeds: int
    train_examples: int | None = None


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """GLUE task.

    Attributes:
        title: Name of the task in papers.
        columns: Names of one text column, or of two for text pairs.
        num_labels: Number of classes; 1 for regression.
        metrics: Names of the metrics whose mean is the score of the task.
        num_examples: Number of examples of each official split, by split name.
        protocol: Fine-tuning protocol of the paper.
        from_mnli: True if the paper initializes the task from the model fine-tuned on MNLI.
        needs_fp32: True if the paper trains the task in fp32.
    """

    title: str
    columns: tuple[str, ...]
    num_labels: int
    metrics: tuple[str, ...]
    num_examples: dict[str, int]
    protocol: Protocol
    from_mnli: bool = False
    needs_fp32: bool = False

    @property
    def label(self) -> str:
        """Title and metrics, e.g. "MRPC acc/F1"."""
        return self.label_of(self.metrics)

    def label_of(self, metrics: Sequence[str]) -> str:
        """Return the title and the given metrics."""
        return f"{self.title} {'/'.join(_SHORT_NAMES[name] for name in metrics)}"


def _protocol(epochs: int, batch_size: int, peak_lr: float, weight_decay: float, num_seeds: int) -> Protocol:
    return Protocol(
        epochs=epochs, batch_size=batch_size, peak_lr=peak_lr, weight_decay=weight_decay, num_seeds=num_seeds
    )


def _splits(train: int, **validation: int) -> dict[str, int]:
    return {"train": train} | validation


# Protocols: the code that produced the scores of the MosaicBERT paper, arXiv:2312.17482 (mosaicml/examples,
# src/glue/finetuning_jobs.py and yamls/finetuning/glue). Sizes: the official splits in `nyu-mll/glue`.
TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        title="CoLA",
        columns=("sentence",),
        num_labels=2,
        metrics=("matthews_correlation",),
        num_examples=_splits(8_551, validation=1_043),
        protocol=_protocol(10, 32, 5e-5, 5e-6, 4),
    ),
    "sst2": GlueTask(
        title="SST-2",
        columns=("sentence",),
        num_labels=2,
        metrics=("accuracy",),
        num_examples=_splits(67_349, validation=872),
        protocol=_protocol(3, 16, 3e-5, 3e-6, 3),
    ),
    "mrpc": GlueTask(
        title="MRPC",
        columns=("sentence1", "sentence2"),
        num_labels=2,
        metrics=("accuracy", "f1"),
        num_examples=_splits(3_668, validation=408),
        protocol=_protocol(10, 32, 8e-5, 8e-6, 5),
        from_mnli=True,
    ),
    "stsb": GlueTask(
        title="STS-B",
        columns=("sentence1", "sentence2"),
        num_labels=1,
        metrics=("spearman",),
        num_examples=_splits(5_749, validation=1_500),
        protocol=_protocol(10, 32, 3e-5, 3e-6, 5),
        from_mnli=True,
        needs_fp32=True,
    ),
    "qqp": GlueTask(
        title="QQP",
        columns=("question1", "question2"),
        num_labels=2,
        metrics=("accuracy", "f1"),
        num_examples=_splits(363_846, validation=40_430),
        protocol=_protocol(5, 16, 3e-5, 3e-6, 1),
    ),
    MNLI: GlueTask(
        title="MNLI",
        columns=("premise", "hypothesis"),
        num_labels=3,
        metrics=("accuracy_matched", "accuracy_mismatched"),
        num_examples=_splits(392_702, validation_matched=9_815, validation_mismatched=9_832),
        protocol=_protocol(3, 48, 5e-5, 5e-6, 1),
    ),
    "qnli": GlueTask(
        title="QNLI",
        columns=("question", "sentence"),
        num_labels=2,
        metrics=("accuracy",),
        num_examples=_splits(104_743, validation=5_463),
        protocol=_protocol(10, 16, 1e-5, 1e-6, 1),
    ),
    "rte": GlueTask(
        title="RTE",
        columns=("sentence1", "sentence2"),
        num_labels=2,
        metrics=("accuracy",),
        num_examples=_splits(2_490, validation=277),
        protocol=_protocol(3, 16, 1e-5, 1e-5, 5),
        from_mnli=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ProtocolChange:
    """Changes to the paper's protocol of one task; None keeps the value of the paper."""

    epochs: Annotated[int | None, at_least(1)] = None
    batch_size: Annotated[int | None, at_least(1)] = None
    peak_lr: Annotated[float | None, POSITIVE] = None
    weight_decay: Annotated[float | None, within("[0, 1)")] = None
    num_seeds: Annotated[int | None, within(f"[1, {len(SEEDS)}]")] = None
    train_examples: Annotated[int | None, at_least(1)] = None  # a fixed random subset of the training examples


@dataclass(frozen=True, kw_only=True)
class GlueConfig:
    """Model, data and protocol of a GLUE evaluation. The defaults are those of the paper, except for shuffle."""

    model: str  # run folder, Hugging Face folder, or name on the Hub
    checkpoints: Literal["newest", "all"] = "newest"  # of a run; all: including those written during the evaluation
    data: str = OFFICIAL  # name on the Hub, or folder with <task>/train.jsonl or .parquet, validation.jsonl, ...
    revision: str = MAIN  # branch, tag or commit of a Hub dataset
    tasks: Annotated[list[str], NOT_EMPTY, distinct(TASKS)] = field(default_factory=lambda: list(TASKS))
    partial_data: bool = False  # allow tasks with fewer examples than the official splits
    init_from_mnli: bool = True  # initialize RTE, MRPC and STS-B from the model fine-tuned on MNLI
    shuffle: bool = True  # shuffle the training data in every epoch; the code of the paper does not
    max_seq_len: Annotated[int, at_least(4)] = 256
    precision: Literal["bf16", "fp32", "auto"] = "bf16"  # of matrix products; STS-B always uses fp32
    dropout: Annotated[float | None, within("[0, 1)")] = None  # in fine-tuning; None: that of the model's configuration
    # Number of training examples that replace the validation set, to choose a protocol; None: the validation set
    tuning_examples: Annotated[int | None, at_least(1)] = None
    protocol: dict[str, ProtocolChange] = field(default_factory=dict[str, ProtocolChange])
    num_processes: Annotated[int | None, at_least(1)] = None  # None: one per GPU, or one on a CPU

    def __post_init__(self) -> None:
        validate(self, "glue")
        for task, change in self.protocol.items():
            if task not in TASKS:
                raise ConfigError(f"`glue.protocol` must have keys among {', '.join(TASKS)}, got {task!r}.")
            validate(change, f"glue.protocol.{task}")

    def protocol_of(self, task: str) -> Protocol:
        """Return the protocol of a task: that of the paper with the changes of this recipe."""
        changes = vars(self.protocol.get(task, ProtocolChange())).items()
        return replace(TASKS[task].protocol, **{name: value for name, value in changes if value is not None})

    def is_initialized_from_mnli(self, task: str) -> bool:
        """Return True if a task is initialized from the model fine-tuned on MNLI."""
        return self.init_from_mnli and TASKS[task].from_mnli


@dataclass(frozen=True, kw_only=True)
class GlueRecipe(RunRecipe):
    """GLUE evaluation of a model or of the checkpoints of a run. The scores of a run are written to its folder."""

    glue: GlueConfig
