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
    KINDS,
    Examples,
    is_file_name,
    read_file,
    require_column,
    text_columns,
)
from mosaicbert.finetune.task.demo_dataset import read_packages
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
    texts, cells, place = _read_labelled(config, config.train, config.train_split)
    labels = LabelSet.of(config.kind, cells, place)
    train = Examples(texts=texts, labels=labels.encode(cells, place))
    if config.validation is None:
        held_out = [_is_held_out(row, config.validation_fraction) for row in zip(*texts, strict=True)]
        validation = _take(train, held_out)
        train = _take(train, [not one for one in held_out])
    else:
        texts, cells, place = _read_labelled(config, _validation_of(config), config.validation)
        validation = Examples(texts=texts, labels=labels.encode(cells, place))
    for name, part in (("train", train), ("validation", validation)):
        if not len(part):
            raise ConfigError(f"{place}: {name} has no examples; give more, or another data.validation_fraction.")
    predict = None
    if config.predict is not None:
        table = read_file(Path(config.predict), config.text_columns)
        predict = Examples(texts=text_columns(table, tuple(config.text_columns), config.predict), labels=None)
        if not len(predict):
            raise ConfigError(f"data.predict={config.predict}: has no texts; give some, or leave it out.")
    return TaskDataset(labels=labels, train=train, validation=validation, predict=predict)


def _read_labelled(config: TaskDataConfig, name: str, split: str) -> tuple[tuple[list[str], ...], list[object], str]:
    """The texts, the label cells, and where both stand."""
    if name == INSTALLED_PACKAGES:
        examples, packages = read_packages()
        return examples.texts, list(packages), name
    table, place = _read_table(config, name, split)
    texts = text_columns(table, tuple(config.text_columns), place)
    return texts, require_column(table, config.label_column, place).to_pylist(), f"{place}, {config.label_column}"


def _read_table(config: TaskDataConfig, name: str, split: str) -> tuple[pa.Table, str]:
    if is_file_name(name):
        return read_file(Path(name), [*config.text_columns, config.label_column]), name
    return load_hub_table(name, config.subset, split, config.revision, with_names=True), f"{name} ({split})"


def _validation_of(config: TaskDataConfig) -> str:
    """A file by itself, or the training data's dataset, of which `validation` names a split."""
    assert config.validation is not None
    if is_file_name(config.validation):
        return config.validation
    if is_file_name(config.train) or config.train == INSTALLED_PACKAGES:
        raise ConfigError(
            f"data.validation={config.validation}: is neither {', '.join(KINDS)}, nor a split, which {config.train} "
            "does not have; name a file, or leave it out."
        )
    return config.train


def _is_held_out(texts: tuple[str, ...], fraction: float) -> bool:
    return hash_text("\0".join(texts))[0] < fraction * 2**64


def _take(examples: Examples, chosen: list[bool]) -> Examples:
    assert examples.labels is not None
    return Examples(
        texts=tuple(list(compress(column, chosen)) for column in examples.texts),
        labels=list(compress(examples.labels, chosen)),
    )
