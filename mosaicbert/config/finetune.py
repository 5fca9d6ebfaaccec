"""The recipe of a fine-tuning on the user's own task. Imports no torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mosaicbert.config.errors import ConfigError

INSTALLED_PACKAGES = "installed-packages"


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Labelled texts."""

    train: str  # a .jsonl, .csv or .parquet; a dataset on the Hub; or "installed-packages", see docs/finetune.md
    validation: str | None = None  # another file, or a split of the Hub's dataset; None: validation_fraction of train
    predict: str | None = None  # a file whose texts get predictions; needs no labels
    subset: str | None = None  # the configuration of a Hub dataset
    train_split: str = "train"  # of a Hub dataset
    revision: str = "main"  # branch, tag or commit of a Hub dataset
    text_columns: list[str] = field(default_factory=lambda: ["text"])  # one, or two that make pairs
    label_column: str = "label"
    kind: Literal["single_label", "multi_label", "regression"] = "single_label"
    validation_fraction: float = 0.1  # by a hash of the texts, so that equal ones stay together

    def __post_init__(self) -> None:
        if len(self.text_columns) not in (1, 2):
            raise ConfigError(f"data.text_columns={self.text_columns}; name one column, or two that make pairs.")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} is no fraction; give a number between 0 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How the model is fine-tuned: AdamW, 6% of warm-up, then linearly to zero."""

    epochs: int = 3
    batch_size: int = 32  # examples per step
    peak_lr: float = 5.0e-5
    weight_decay: float = 5.0e-6  # decoupled: p *= 1 - weight_decay * lr / peak_lr
    max_seq_len: int = 256  # tokens of an example at most
    precision: Literal["bf16", "fp32", "auto"] = "bf16"
    compare_with_random_weights: bool = False  # fine-tune the same model from fresh weights, too

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "peak_lr"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name}={getattr(self, name)}; give a number above zero.")
        if not 0.0 <= self.weight_decay < 1.0:
            raise ConfigError(f"train.weight_decay={self.weight_decay} is no decay; give a number in [0, 1).")
        if self.max_seq_len < 4:
            raise ConfigError(f"train.max_seq_len={self.max_seq_len} leaves no room for texts; give 4 or more.")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """A pretrained encoder, fine-tuned on one task."""

    run_name: str
    seed: int = 19
    runs_folder: str = "runs"
    model: str  # a run's folder, a Hugging Face folder, or a name on the Hub
    data: TaskDataConfig
    train: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        if self.run_name in ("", "..") or Path(self.run_name).name != self.run_name:
            raise ConfigError(f"run_name={self.run_name!r} is no folder name; give one without slashes.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; give 0 or more.")

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_folder) / self.run_name
