"""GLUE tasks, the paper's protocol of each, and the recipe of a scoring, without torch."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import NOT_EMPTY, POSITIVE, at_least, distinct, must_be, validate, within

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
    """Fine-tuning protocol of a task.

    Attributes:
        epochs: Number of epochs over the training data.
        batch_size: Examples per step.
        peak_lr: Peak learning rate, reached after 6% of the steps; the learning rate is zero at the last step.
        weight_decay: Decoupled weight decay: p *= 1 - weight_decay * lr / peak_lr.
        num_seeds: Number of fine-tunings with different seeds of order, head and dropout.
    """

    epochs: int
    batch_size: int
    peak_lr: float
    weight_decay: float
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """A GLUE task.

    Attributes:
        title: Name of the task in papers.
        columns: Text columns: one, or two that make a pair.
        num_labels: Number of classes; 1 for a regression.
        metrics: Names of the metrics whose mean is the task's score.
        num_examples: Number of examples of each official split; a split with fewer is partial.
        protocol: Protocol of the paper.
        from_mnli: Whether the paper initializes the task from the model fine-tuned on MNLI.
        needs_fp32: Whether the paper trains the task in fp32.
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
        """Title and metrics, such as "MRPC acc/F1"."""
        return f"{self.title} {'/'.join(_SHORT_NAMES[name] for name in self.metrics)}"


def _protocol(epochs: int, batch_size: int, peak_lr: float, weight_decay: float, num_seeds: int) -> Protocol:
    return Protocol(
        epochs=epochs, batch_size=batch_size, peak_lr=peak_lr, weight_decay=weight_decay, num_seeds=num_seeds
    )


def _splits(train: int, **validation: int) -> dict[str, int]:
    return {"train": train} | validation


# The protocol is that of the code behind the published scores (mosaicml/examples, src/glue/finetuning_jobs.py and
# yamls/finetuning/glue): MosaicBERT, arXiv:2312.17482. Sizes: the official splits in `nyu-mll/glue`.
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
    """Deviations of a recipe from the paper's protocol of one task; None keeps the paper's value."""

    epochs: Annotated[int | None, at_least(1)] = None
    batch_size: Annotated[int | None, at_least(1)] = None
    peak_lr: Annotated[float | None, POSITIVE] = None
    weight_decay: Annotated[float | None, within("[0, 1)")] = None
    num_seeds: Annotated[int | None, within(f"[1, {len(SEEDS)}]")] = None


@dataclass(frozen=True, kw_only=True)
class GlueConfig:
    """Models, data and protocol of a GLUE scoring. The defaults are the paper's, except for shuffle."""

    model: str  # a run folder, a Hugging Face folder, or a name on the Hub
    checkpoints: Literal["newest", "all"] = "newest"  # of a run; all: also those that it writes meanwhile
    data: str = OFFICIAL  # on the Hub, or a folder with <task>/train.jsonl or .parquet, validation.jsonl, ...
    revision: str = MAIN  # branch, tag or commit of data on the Hub
    tasks: Annotated[list[str], NOT_EMPTY, distinct(TASKS)] = field(default_factory=lambda: list(TASKS))
    partial_data: bool = False  # include tasks with only a part of the official data
    init_from_mnli: bool = True  # RTE, MRPC and STS-B are initialized from the model fine-tuned on MNLI
    shuffle: bool = True  # the training data in every epoch; the paper's code keeps them in their order
    max_seq_len: Annotated[int, at_least(4)] = 256
    precision: Literal["bf16", "fp32", "auto"] = "bf16"  # of matrix products; STS-B is trained in fp32
    protocol: dict[str, ProtocolChange] = field(default_factory=dict[str, ProtocolChange])
    num_processes: Annotated[int | None, at_least(1)] = None  # None: one per GPU, or one on a machine without

    def __post_init__(self) -> None:
        validate(self, "glue")
        for task, change in self.protocol.items():
            if task not in TASKS:
                raise must_be("glue.protocol", f"keyed by names out of {', '.join(TASKS)}", task)
            validate(change, f"glue.protocol.{task}")

    def protocol_of(self, task: str) -> Protocol:
        """Return the paper's protocol of a task with this recipe's changes."""
        changes = vars(self.protocol.get(task, ProtocolChange())).items()
        return replace(TASKS[task].protocol, **{name: value for name, value in changes if value is not None})

    def starts_from_mnli(self, task: str) -> bool:
        """Return True if a task is initialized from the model fine-tuned on MNLI."""
        return self.init_from_mnli and TASKS[task].from_mnli


@dataclass(frozen=True, kw_only=True)
class GlueRecipe(RunRecipe):
    """A model, or the checkpoints of a run, scored on GLUE. The scores of a run are kept in its own folder."""

    glue: GlueConfig
