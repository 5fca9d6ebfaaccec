"""Task datasets: labeled texts for training and validation, and texts to predict."""

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import INSTALLED_PACKAGES, TaskDataConfig
from mosaicbert.data.prepare.hub import load_hub_table
from mosaicbert.data.prepare.tokenize import hash_text
from mosaicbert.finetune.tables import (
    TABLE_SUFFIXES,
    Examples,
    Label,
    get_column,
    get_text_columns,
    is_file_name,
    read_file,
)
from mosaicbert.finetune.task.demo_dataset import read_demo_examples
from mosaicbert.finetune.task.labels import LabelSet


@dataclass(frozen=True, kw_only=True)
class TaskDataset:
    """Examples and labels of a task.

    Attributes:
        label_set: Problem type and class names.
        train: Labeled training examples.
        validation: Labeled validation examples.
        predict: Texts without labels; None if the recipe does not set `data.predict`.
    """

    label_set: LabelSet
    train: Examples
    validation: Examples
    predict: Examples | None


def read_task_dataset(config: TaskDataConfig) -> TaskDataset:
    """Read and check all examples of a task.

    Args:
        config: Data section of the recipe.

    Raises:
        ConfigError: If a file, split or column does not exist, a text or label is invalid, or a split is empty.
    """
    texts, cells, source = _read_labeled(config, config.train, config.train_split)
    label_set = LabelSet.from_column(config.kind, cells, source, config.positive_class, config.label_separator)
    train = Examples(texts=texts, labels=label_set.encode(cells, source))
    if config.validation is None:
        train, validation = hold_out(train, config.validation_fraction)
    else:
        texts, cells, source = _read_labeled(config, _validation_source(config), config.validation)
        validation = Examples(texts=texts, labels=label_set.encode(cells, source))
    for name, examples in (("training", train), ("validation", validation)):
        if not len(examples):
            raise ConfigError(
                f"{source} must have at least one {name} example, got none. Add examples or change "
                "data.validation_fraction."
            )
    predict = None
    if config.predict is not None:
        table = read_file(Path(config.predict), config.text_columns)
        predict = Examples(texts=get_text_columns(table, tuple(config.text_columns), config.predict), labels=None)
        if not len(predict):
            raise ConfigError(
                f"`data.predict` must be a file with at least one text, got {config.predict} with none. Add texts or "
                "remove the key."
            )
    return TaskDataset(label_set=label_set, train=train, validation=validation, predict=predict)


def read_text_pairs(config: TaskDataConfig) -> tuple[Examples, Examples]:
    """Read and check the examples of sentence embeddings.

    Args:
        config: Data section of the recipe, with the kind "similarity" or "pairs".

    Returns:
        Training and validation examples: pairs of texts, with numbers as labels for "similarity".

    Raises:
        ConfigError: If a file, split or column does not exist, a text or label is invalid, or a split is empty.
    """
    if config.kind == "similarity":
        data = read_task_dataset(replace(config, kind="regression"))
        return data.train, data.validation
    train = _read_pairs(config, config.train, config.train_split)
    if config.validation is None:
        train, validation = hold_out(train, config.validation_fraction)
    else:
        validation = _read_pairs(config, _validation_source(config), config.validation)
    for name, examples in (("training", train), ("validation", validation)):
        if not len(examples):
            raise ConfigError(
                f"{config.train} must have at least one {name} pair, got none. Add pairs or change "
                "data.validation_fraction."
            )
    return train, validation


def _read_pairs(config: TaskDataConfig, name: str, split: str) -> Examples:
    if is_file_name(name):
        table, source = read_file(Path(name), config.text_columns), name
    else:
        table, source = (
            load_hub_table(name, config.subset, split, config.revision, with_names=True),
            f"{name} ({split})",
        )
    return Examples(texts=get_text_columns(table, tuple(config.text_columns), source), labels=None)


def _read_labeled(config: TaskDataConfig, name: str, split: str) -> tuple[tuple[list[str], ...], list[object], str]:
    # The last item is the name of the label column in error messages.
    if name == INSTALLED_PACKAGES:
        examples, packages = read_demo_examples()
        return examples.texts, list(packages), name
    table, source = _read_table(config, name, split)
    texts = get_text_columns(table, tuple(config.text_columns), source)
    cells = get_column(table, config.label_column, source).to_pylist()
    return texts, cells, f"{source}, column {config.label_column!r}"


def _read_table(config: TaskDataConfig, name: str, split: str) -> tuple[pa.Table, str]:
    if is_file_name(name):
        return read_file(Path(name), [*config.text_columns, config.label_column]), name
    return load_hub_table(name, config.subset, split, config.revision, with_names=True), f"{name} ({split})"


def _validation_source(config: TaskDataConfig) -> str:
    assert config.validation is not None
    if is_file_name(config.validation):
        return config.validation
    if is_file_name(config.train) or config.train == INSTALLED_PACKAGES:
        raise ConfigError(
            f"`data.validation` must be a file ({', '.join(TABLE_SUFFIXES)}), because {config.train} does not have "
            f"splits, got {config.validation}. Name a file or remove the key."
        )
    return config.train


def text_keys(examples: Examples) -> list[str]:
    """Return a string per example that identifies its text or pair of texts."""
    return ["\0".join(row) for row in zip(*examples.texts, strict=True)]


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Divide examples into training and validation examples.

    The examples of each class are divided separately, by a hash of their texts. Equal texts are in one split, and the
    order of the examples has no effect. A class with one text has no validation example, a class with more has at
    least one of each kind.

    Args:
        examples: Examples with or without labels.
        fraction: Fraction of the texts of each class to validate on.

    Returns:
        Training and validation examples.
    """
    keys = text_keys(examples)
    # Multi-hot labels and numbers are divided together. Equal texts of several classes count for the first of these.
    labels = examples.labels or []
    classes = [label if isinstance(label, int) else 0 for label in labels] or [0] * len(keys)
    class_of: dict[str, int] = {}
    for key, label in zip(keys, classes, strict=True):
        class_of[key] = min(label, class_of.get(key, label))
    keys_of: defaultdict[int, list[str]] = defaultdict(list)
    for key, label in class_of.items():
        keys_of[label].append(key)
    selected: set[str] = set()
    for group in keys_of.values():
        group.sort(key=hash_text)
        selected.update(group[: min(len(group) - 1, max(1, round(fraction * len(group))))])
    # A text with a class that no training example would have is trained on.
    indices = [(key, _class_indices(label)) for key, label in zip(keys, labels, strict=False)]
    trained = {index for key, applying in indices if key not in selected for index in applying}
    selected -= {key for key, applying in indices if not trained.issuperset(applying)}
    is_validation = [key in selected for key in keys]
    return _select(examples, [not value for value in is_validation]), _select(examples, is_validation)


def _class_indices(label: Label) -> list[int]:  # of a multi-hot label
    return np.flatnonzero(label).tolist() if isinstance(label, list) else []


def _select(examples: Examples, is_selected: list[bool]) -> Examples:
    return Examples(
        texts=tuple(list(compress(column, is_selected)) for column in examples.texts),
        labels=None if examples.labels is None else list(compress(examples.labels, is_selected)),
    )
