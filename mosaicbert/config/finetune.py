"""Fine-tuning recipe for a task dataset, without torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mosaicbert.config.errors import ConfigError
from mosaicbert.config.run import RunRecipe
from mosaicbert.config.validators import POSITIVE, Rule, at_least, validate, within

EMBEDDING_KINDS = ("similarity", "pairs")  # of `data.kind`, which train sentence embeddings
INSTALLED_PACKAGES = "installed-packages"
_TEXT_COLUMNS = Rule("one column name, or two for text pairs", lambda columns: len(columns) in (1, 2))


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Labeled texts of the task."""

    train: str  # .jsonl, .csv or .parquet file, name of a Hub dataset, or "installed-packages", see docs/finetune.md
    validation: str | None = None  # file, or split of the Hub dataset; None: validation_fraction of train
    predict: str | None = None  # file of texts to predict, without labels
    subset: str | None = None  # configuration of a Hub dataset
    train_split: str = "train"  # of a Hub dataset
    revision: str = "main"  # branch, tag or commit of a Hub dataset
    text_columns: Annotated[list[str], _TEXT_COLUMNS] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    label_separator: str | None = None  # between the classes of a multi_label cell; None: ";", checked for plausibility
    kind: Literal["single_label", "multi_label", "regression", "similarity", "pairs"] = "single_label"
    positive_class: str | None = None  # of two classes: its precision, recall and F1 are reported
    validation_fraction: Annotated[float, within("(0, 1)")] = 0.1  # chosen by text hash: no duplicates across splits

    def __post_init__(self) -> None:
        validate(self, "data")
        if self.kind in EMBEDDING_KINDS and len(self.text_columns) != 2:
            raise ConfigError(
                f"`data.text_columns` must be two columns for `data.kind={self.kind}`, got {self.text_columns}. "
                "Name the columns of the two texts."
            )
        if self.label_separator is not None and (self.kind != "multi_label" or not self.label_separator.strip()):
            raise ConfigError(
                f"`data.label_separator` must be null or a text between classes for `data.kind=multi_label`, got "
                f"{self.label_separator!r} for {self.kind}. Correct or remove the key."
            )
        if self.positive_class is not None and self.kind != "single_label":
            raise ConfigError(
                f"`data.positive_class` must be null for `data.kind={self.kind}`, got {self.positive_class!r}. Remove "
                "the key."
            )
        if self.kind in EMBEDDING_KINDS and self.predict is not None:
            raise ConfigError(
                f"`data.predict` is not supported with `data.kind={self.kind}`. Encode texts with SentenceTransformer."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Hyperparameters of fine-tuning with AdamW, 6% warmup and linear decay to zero."""

    epochs: Annotated[int, at_least(1)] = 3
    batch_size: Annotated[int, at_least(1)] = 32  # examples per step
    peak_lr: Annotated[float, POSITIVE] = 5.0e-5
    weight_decay: Annotated[float, within("[0, 1)")] = 5.0e-6  # decoupled: p *= 1 - weight_decay * lr / peak_lr
    max_seq_len: Annotated[int, at_least(4)] = 256  # tokens per example
    precision: Literal["bf16", "fp32", "auto"] = "bf16"
    dropout: Annotated[float | None, within("[0, 1)")] = None  # None: that of the model's configuration
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare classes count as much as frequent ones
    compare_with_random_weights: bool = False  # also fine-tune the same model from random weights
    pooling: Literal["mean", "cls"] = "mean"  # of sentence embeddings

    def __post_init__(self) -> None:
        validate(self, "train")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(RunRecipe):
    """Fine-tuning of a pretrained encoder on one task."""

    seed: Annotated[int, at_least(0)] = 19
    model: str  # run folder, Hugging Face folder, or name on the Hub
    data: TaskDataConfig
    train: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.class_weights != "none" and self.data.kind not in ("single_label", "multi_label"):
            raise ConfigError(
                f"`train.class_weights` must be none for `data.kind={self.data.kind}`, got {self.train.class_weights}. "
                "Remove the key."
            )
        if self.data.kind in EMBEDDING_KINDS and self.train.dropout is not None:
            raise ConfigError(
                f"`train.dropout` must be null for `data.kind={self.data.kind}`, got {self.train.dropout}. Set the "
                "dropout in config.json of the model."
            )
