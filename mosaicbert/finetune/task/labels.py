"""A label column to what a classifier is trained on, and back to the names of its classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.tables import Label

PROBLEM_TYPES = {"single_label": SINGLE_LABEL, "multi_label": MULTI_LABEL, "regression": REGRESSION}
SEPARATOR = ";"  # between the labels of one cell


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What the labels of a task are.

    Attributes:
        problem: Hugging Face's problem_type.
        names: of the classes, in their order; empty for numbers.
    """

    problem_type: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, column: Sequence[Any], source: str) -> "LabelSet":
        """Finds the classes of a training column, sorted: numbers by size, names by letters.

        Args:
            kind: of the recipe.
            column: its cells.
            place: file and column, for messages.

        Raises:
            ConfigError: a cell is empty or of another kind, or there are fewer than two classes.
        """
        problem_type = PROBLEM_TYPES[kind]
        if problem_type == REGRESSION:
            return cls(problem_type=problem_type, names=())
        if problem_type == MULTI_LABEL and _is_multi_hot(column):
            raise ConfigError(
                f"{source}: each row holds {len(column[0])} marks of 0 and 1; give the names of the classes that apply."
            )
        class_names = {
            name for row, cell in enumerate(column) for name in _class_names_in(problem_type, cell, row, source)
        }
        if len(class_names) < 2:
            raise ConfigError(
                f"{source}: fewer than two classes occur ({', '.join(class_names) or 'none'}); give "
                "examples of two at least."
            )
        return cls(problem_type=problem_type, names=tuple(sorted(class_names, key=_sort_key)))

    @property
    def num_outputs(self) -> int:
        """Of the classifier."""
        return max(1, len(self.names))

    def encode(self, column: Sequence[Any], source: str) -> list[Label]:
        """The labels of a column: classes by number, 0 and 1 for each class, or numbers.

        Raises:
            ConfigError: a cell is empty or of another kind, or names a class that the training data have not.
        """
        if self.problem_type == REGRESSION:
            return [_regression_label(cell, row, source) for row, cell in enumerate(column)]
        index = {name: number for number, name in enumerate(self.names)}
        encoded: list[Label] = []
        for row, cell in enumerate(column):
            names = _class_names_in(self.problem_type, cell, row, source)
            unknown = [name for name in names if name not in index]
            if unknown:
                raise ConfigError(
                    f"{source}: row {row + 1} has class {unknown[0]!r}, which no training example has; add one, or "
                    "leave the row out."
                )
            if self.problem_type == SINGLE_LABEL:
                encoded.append(index[names[0]])
            else:
                encoded.append([int(name in names) for name in self.names])
        return encoded


def _is_multi_hot(column: Sequence[Any]) -> bool:
    """Whether a column holds, for each class, whether it applies, instead of names."""
    if not column or not all(isinstance(cell, list) for cell in column):
        return False
    is_even = len({len(cell) for cell in column}) == 1 and len(column[0]) > 1
    return is_even and all(mark in (0, 1) for cell in column for mark in cell)


def _class_names_in(problem_type: str, cell: Any, row: int, source: str) -> list[str]:
    if problem_type == MULTI_LABEL:
        cells = cell.split(SEPARATOR) if isinstance(cell, str) else cell
        if not isinstance(cells, list) or None in cells:
            raise ConfigError(
                f"{source}: row {row + 1} holds {cell!r}; several labels are a list, or stand with {SEPARATOR} between."
            )
        return [name for one in cells if (name := str(one).strip())]
    if cell is None or isinstance(cell, (list, dict)) or (isinstance(cell, float) and not cell.is_integer()):
        raise ConfigError(f"{source}: row {row + 1} holds {cell!r}, which is no class; see data.kind.")
    name = str(int(cell) if isinstance(cell, float) else cell).strip()
    if not name:
        raise ConfigError(f"{source}: row {row + 1} has no class; fill it in, or leave the row out.")
    return [name]


def _regression_label(cell: Any, row: int, source: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{source}: row {row + 1} holds {cell!r}, which is no number; mend it, or see data.kind.")
    return value


def _sort_key(name: str) -> tuple[bool, float, str]:
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (True, 0.0, name) if math.isnan(number) else (False, number, name)
