"""GLUE: its tasks, the paper's protocol for each, and the recipe that scores models on them. Imports no torch."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mosaicbert.config.errors import ConfigError

MNLI = "mnli"
OFFICIAL, MAIN = "nyu-mll/glue", "main"  # GLUE on the Hub
SEEDS = (19, 8364, 717, 10536, 90166)  # a task takes as many of them as its protocol says, from the front
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
    """How a task is fine-tuned.

    Attributes:
        epochs: over the training data.
        batch_size: examples per step.
        peak_lr: reached after 6% of the steps, down to zero at the last.
        weight_decay: decoupled: p *= 1 - weight_decay * lr / peak_lr.
        num_seeds: how often, with other orders, heads and dropout.
    """

    epochs: int
    batch_size: int
    peak_lr: float
    weight_decay: float
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task.

    Attributes:
        title: as papers print it.
        columns: the text columns; one, or two that make a pair.
        num_labels: classes; 1 is a number to predict.
        metrics: names of those whose mean is the task's score.
        num_examples: of the official splits; fewer are a part.
        protocol: the paper's.
        from_mnli: whether the paper starts from the model fine-tuned on MNLI.
        needs_fp32: whether the paper trains it in fp32.
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
        """Title and metrics, e.g. MRPC acc/F1."""
        return f"{self.title} {'/'.join(_SHORT_NAMES[name] for name in self.metrics)}"


def _protocol(epochs: int, batch_size: int, peak_lr: float, weight_decay: float, num_seeds: int) -> Protocol:
    return Protocol(
        epochs=epochs, batch_size=batch_size, peak_lr=peak_lr, weight_decay=weight_decay, num_seeds=num_seeds
    )


def _splits(train: int, **validation: int) -> dict[str, int]:
    return {"train": train} | validation


# The protocol is that of the code that made the published scores (mosaicml/examples, src/glue/finetuning_jobs.py and
# yamls/finetuning/glue): MosaicBERT, arXiv:2312.17482. Sizes: the official splits, as `nyu-mll/glue` has them.
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
    """What a recipe does otherwise than the paper on one task; None is as the paper."""

    epochs: int | None = None
    batch_size: int | None = None
    peak_lr: float | None = None
    weight_decay: float | None = None
    num_seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class GlueConfig:
    """What is scored, on which data, and how. The defaults are the paper's, but for the shuffling."""

    model: str  # a run's folder, a Hugging Face folder, or a name on the Hub
    checkpoints: Literal["newest", "all"] = "newest"  # of a run; all: also those that it writes meanwhile
    data: str = OFFICIAL  # on the Hub, or a folder with <task>/train.jsonl or .parquet, validation.jsonl, ...
    revision: str = MAIN  # branch, tag or commit of data on the Hub
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    partial_data: bool = False  # also take tasks whose data is only a part of the official
    init_from_mnli: bool = True  # RTE, MRPC and STS-B begin with the model fine-tuned on MNLI
    shuffle: bool = True  # the training data, anew in each epoch; the paper's code reads them as they stand
    max_seq_len: int = 256
    precision: Literal["bf16", "fp32", "auto"] = "bf16"  # of matrix products; STS-B is trained in fp32
    protocol: dict[str, ProtocolChange] = field(default_factory=dict[str, ProtocolChange])
    num_processes: int | None = None  # that fine-tune side by side; None: one per GPU, or one on a machine without

    def __post_init__(self) -> None:
        for name in ("tasks", "protocol"):
            unknown = [task for task in getattr(self, name) if task not in TASKS]
            if unknown:
                raise ConfigError(f"glue.{name} names {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"glue.tasks={self.tasks}; name each task once, and one at least.")
        for task, change in self.protocol.items():
            for name, value in vars(change).items():
                if name == "weight_decay" and value is not None and not 0.0 <= value < 1.0:
                    raise ConfigError(f"glue.protocol.{task}.{name}={value} is no decay; give a number in [0, 1).")
                if name != "weight_decay" and value is not None and not 0.0 < value < math.inf:
                    raise ConfigError(f"glue.protocol.{task}.{name}={value}; give a number above zero.")
            if change.num_seeds is not None and change.num_seeds > len(SEEDS):
                raise ConfigError(f"glue.protocol.{task}.num_seeds={change.num_seeds}; there are {len(SEEDS)} seeds.")
        if self.max_seq_len < 4:
            raise ConfigError(
                f"glue.max_seq_len={self.max_seq_len} leaves no room for a pair of texts; give 4 or more."
            )
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f"glue.num_processes={self.num_processes}; give 1 or more.")

    def protocol_of(self, task: str) -> Protocol:
        """The paper's protocol of a task, with this recipe's changes."""
        asked = vars(self.protocol.get(task, ProtocolChange()))
        changes = {name: value for name, value in asked.items() if value is not None}
        return replace(TASKS[task].protocol, **changes)

    def starts_from_mnli(self, task: str) -> bool:
        """Whether a task begins with the model fine-tuned on MNLI."""
        return self.init_from_mnli and TASKS[task].from_mnli


@dataclass(frozen=True, kw_only=True)
class GlueRecipe:
    """A model, or the checkpoints of a run, scored on GLUE."""

    run_name: str  # the folder for the scores of a model that is no run of ours; a run keeps its own
    runs_folder: str = "runs"
    glue: GlueConfig

    def __post_init__(self) -> None:
        if self.run_name in ("", "..") or Path(self.run_name).name != self.run_name:
            raise ConfigError(f"run_name={self.run_name!r} is no folder name; give one without slashes.")

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_folder) / self.run_name
