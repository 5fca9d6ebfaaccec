"""The labelled texts of a user's own task."""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import pyarrow as pa

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import INSTALLED_PACKAGES, TaskDataConfig
from mosaicbert.data.prepare.hub import load_hub_table
from mosaicbert.data.prepare.tokenize import hash_text
from mosaicbert.finetune.tables import (
    TABLE_SUFFIXES,
    Examples,
    get_column,
    get_text_columns,
    is_file_name,
    read_file,
)
from mosaicbert.finetune.task.demo_dataset import read_demo_examples
from mosaicbert.finetune.task.labels import LabelSet


@dataclass(frozen=True, kw_only=True)
class TaskDataset:
    """What a recipe's data section stands for.

    Attributes:
        labels: the classes.
        train: labelled.
        validation: labelled.
        predict: without labels; None if none are asked for.
    """

    labels: LabelSet
    train: Examples
    validation: Examples
    predict: Examples | None


def read_task_dataset(config: TaskDataConfig) -> TaskDataset:
    """Reads and checks everything before anything is trained.

    Raises:
        ConfigError: a file, split or column is not there, a text or label cannot be used, or a part has no examples.
    """
    texts, cells, source = _read_labeled(config, config.train, config.train_split)
    labels = LabelSet.of(config.kind, cells, source)
    train = Examples(texts=texts, labels=labels.encode(cells, source))
    if config.validation is None:
        is_validation = [_is_in_validation(row, config.validation_fraction) for row in zip(*texts, strict=True)]
        validation = _select(train, is_validation)
        train = _select(train, [not one for one in is_validation])
    else:
        texts, cells, source = _read_labeled(config, _validation_source(config), config.validation)
        validation = Examples(texts=texts, labels=labels.encode(cells, source))
    for name, examples in (("train", train), ("validation", validation)):
        if not len(examples):
            raise ConfigError(f"{source}: {name} has no examples; give more, or another data.validation_fraction.")
    predict = None
    if config.predict is not None:
        table = read_file(Path(config.predict), config.text_columns)
        predict = Examples(texts=get_text_columns(table, tuple(config.text_columns), config.predict), labels=None)
        if not len(predict):
            raise ConfigError(f"data.predict={config.predict}: has no texts; give some, or leave it out.")
    return TaskDataset(labels=labels, train=train, validation=validation, predict=predict)


def _read_labeled(config: TaskDataConfig, name: str, split: str) -> tuple[tuple[list[str], ...], list[object], str]:
    """The texts, the label cells, and where both stand."""
    if name == INSTALLED_PACKAGES:
        examples, packages = read_demo_examples()
        return examples.texts, list(packages), name
    table, source = _read_table(config, name, split)
    texts = get_text_columns(table, tuple(config.text_columns), source)
    return texts, get_column(table, config.label_column, source).to_pylist(), f"{source}, {config.label_column}"


def _read_table(config: TaskDataConfig, name: str, split: str) -> tuple[pa.Table, str]:
    if is_file_name(name):
        return read_file(Path(name), [*config.text_columns, config.label_column]), name
    return load_hub_table(name, config.subset, split, config.revision, with_names=True), f"{name} ({split})"


def _validation_source(config: TaskDataConfig) -> str:
    """A file by itself, or the training data's dataset, of which `validation` names a split."""
    assert config.validation is not None
    if is_file_name(config.validation):
        return config.validation
    if is_file_name(config.train) or config.train == INSTALLED_PACKAGES:
        raise ConfigError(
            f"data.validation={config.validation}: is neither {', '.join(TABLE_SUFFIXES)}, nor a split, which "
            f"{config.train} does not have; name a file, or leave it out."
        )
    return config.train


def _is_in_validation(texts: tuple[str, ...], fraction: float) -> bool:
    return hash_text("\0".join(texts))[0] < fraction * 2**64


def _select(examples: Examples, is_selected: list[bool]) -> Examples:
    assert examples.labels is not None
    return Examples(
        texts=tuple(list(compress(column, is_selected)) for column in examples.texts),
        labels=list(compress(examples.labels, is_selected)),
    )
