"""Conversion between the cells of a label column and the labels of a classifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.tables import Label

PROBLEM_TYPES = {"single_label": SINGLE_LABEL, "multi_label": MULTI_LABEL, "regression": REGRESSION}
_SEPARATOR = ";"  # between the class names of a cell


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Problem type and class names of a task.

    Attributes:
        problem_type: Hugging Face problem type.
        names: Class names in the order of the logits; empty for a regression.
        positive: Class whose precision, recall and F1 are metrics, of a task with two classes; None for no such class.
    """

    problem_type: str
    names: tuple[str, ...]
    positive: str | None = None

    @classmethod
    def from_column(cls, kind: str, column: Sequence[Any], source: str, positive: str | None = None) -> "LabelSet":
        """Collect the classes of a training column: numbers in numerical order, then names in alphabetical order.

        Args:
            kind: Value of `data.kind`.
            column: Cells of the label column.
            source: File and column in error messages.
            positive: Value of `data.positive_class`.

        Raises:
            ConfigError: If a cell is empty or has the wrong type, fewer than two classes occur, or the positive class
                is not one of two classes.
        """
        problem_type = PROBLEM_TYPES[kind]
        if problem_type == REGRESSION:
            return cls(problem_type=problem_type, names=())
        if problem_type == MULTI_LABEL and _is_multi_hot(column):
            raise ConfigError(
                f"{source} must contain class names for data.kind=multi_label, got multi-hot labels of "
                f"{len(column[0])} classes. List the names of the classes that apply."
            )
        names = {name for row, cell in enumerate(column) for name in _class_names_in(problem_type, cell, row, source)}
        if len(names) < 2:
            raise ConfigError(
                f"{source} must contain at least two classes, got {', '.join(names) or 'none'}. Add examples of "
                "a different class."
            )
        ordered = tuple(sorted(names, key=_sort_key))
        if positive is not None and (len(ordered) != 2 or positive not in ordered):
            raise ConfigError(
                f"`data.positive_class` must be one of two classes, got {positive!r} with {', '.join(ordered)} in "
                f"{source}. Correct or remove the key."
            )
        return cls(problem_type=problem_type, names=ordered, positive=positive)

    @property
    def num_outputs(self) -> int:
        """Number of logits of the classifier."""
        return max(1, len(self.names))

    def encode(self, column: Sequence[Any], source: str) -> list[Label]:
        """Convert the cells of a label column to class indices, multi-hot labels or numbers.

        Args:
            column: Cells of the label column.
            source: File and column in error messages.

        Raises:
            ConfigError: If a cell is empty, has the wrong type, or contains a class that no training example has.
        """
        if self.problem_type == REGRESSION:
            return [_regression_label(cell, row, source) for row, cell in enumerate(column)]
        index_of = {name: index for index, name in enumerate(self.names)}
        encoded: list[Label] = []
        for row, cell in enumerate(column):
            names = _class_names_in(self.problem_type, cell, row, source)
            unknown = [name for name in names if name not in index_of]
            if unknown:
                raise ConfigError(
                    f"{source}, row {row + 1}, must be a class of the training examples, got {unknown[0]!r}. Add a "
                    "training example of this class or remove the row."
                )
            if self.problem_type == SINGLE_LABEL:
                encoded.append(index_of[names[0]])
            else:
                encoded.append([int(name in names) for name in self.names])
        return encoded


def _is_multi_hot(column: Sequence[Any]) -> bool:
    if not column or not all(isinstance(cell, list) for cell in column):
        return False
    is_rectangular = len({len(cell) for cell in column}) == 1 and len(column[0]) > 1
    return is_rectangular and all(value in (0, 1) for cell in column for value in cell)


def _class_names_in(problem_type: str, cell: Any, row: int, source: str) -> list[str]:
    if problem_type == MULTI_LABEL:
        items = cell.split(_SEPARATOR) if isinstance(cell, str) else cell
        if not isinstance(items, list) or None in items:
            raise ConfigError(
                f"{source}, row {row + 1}, must be a list of class names or a string with {_SEPARATOR!r} between them, "
                f"got {cell!r}. Fix the cell or remove the row."
            )
        return [name for item in items if (name := str(item).strip())]
    if cell is None or isinstance(cell, (list, dict)) or (isinstance(cell, float) and not cell.is_integer()):
        raise ConfigError(
            f"{source}, row {row + 1}, must be a class name or a whole number, got {cell!r}. Fix the cell or change "
            "data.kind."
        )
    name = str(int(cell) if isinstance(cell, float) else cell).strip()
    if not name:
        raise ConfigError(
            f"{source}, row {row + 1}, must be a class name, got {cell!r}. Fill in the cell or remove the row."
        )
    return [name]


def _regression_label(cell: Any, row: int, source: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"{source}, row {row + 1}, must be a finite number, got {cell!r}. Fix the cell or change data.kind."
        )
    return value


def _sort_key(name: str) -> tuple[bool, float, str]:
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (True, 0.0, name) if math.isnan(number) else (False, number, name)
