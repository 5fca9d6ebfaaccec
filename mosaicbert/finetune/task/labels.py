"""Conversion between the cells of a label column and the labels of a classifier."""

import ast
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.tables import Label

PROBLEM_TYPES = {"single_label": SINGLE_LABEL, "multi_label": MULTI_LABEL, "regression": REGRESSION}
DEFAULT_SEPARATOR = ";"  # between the class names of a cell
_OTHER_SEPARATORS = ("|", ",", "/")


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Problem type and class names of a task.

    Attributes:
        problem_type: Hugging Face problem type.
        names: Class names in the order of the logits; empty for a regression.
        positive: Class whose precision, recall and F1 are metrics, of a task with two classes; None for no such class.
        separator: Text between the class names of a multi-label cell.
    """

    problem_type: str
    names: tuple[str, ...]
    positive: str | None = None
    separator: str = DEFAULT_SEPARATOR

    @classmethod
    def from_column(
        cls,
        kind: str,
        column: Sequence[Any],
        source: str,
        positive: str | None = None,
        separator: str | None = None,
    ) -> "LabelSet":
        """Collect the classes of a training column: numbers in numerical order, then names in alphabetical order.

        Args:
            kind: Value of `data.kind`.
            column: Cells of the label column.
            source: File and column in error messages.
            positive: Value of `data.positive_class`.
            separator: Value of `data.label_separator`; None for `;`, unless the cells seem to have another one.

        Raises:
            ConfigError: If a cell is empty or has the wrong type, fewer than two classes occur, the positive class is
                not one of two classes, or the cells seem to have another separator.
        """
        problem_type = PROBLEM_TYPES[kind]
        if problem_type == REGRESSION:
            return cls(problem_type=problem_type, names=())
        if problem_type == MULTI_LABEL and _is_multi_hot(column):
            raise ConfigError(
                f"{source} must contain class names for data.kind=multi_label, got multi-hot labels of "
                f"{len(column[0])} classes. List the names of the classes that apply."
            )
        if problem_type == MULTI_LABEL and separator is None:
            _check_separator(column, source)
        separator = DEFAULT_SEPARATOR if separator is None else separator
        names = {
            name
            for row, cell in enumerate(column)
            for name in _class_names_in(problem_type, cell, row, source, separator)
        }
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
        return cls(problem_type=problem_type, names=ordered, positive=positive, separator=separator)

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
            names = _class_names_in(self.problem_type, cell, row, source, self.separator)
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


def balanced_weights(label_set: LabelSet, labels: Sequence[Label]) -> tuple[float, ...]:
    """Compute weights with which each class contributes equally to the loss.

    With N examples, L classes and n of a class, the weight is N / (L n). The weight of the positive examples of a
    multi-hot label is (N - n) / n. A class without examples has the weight 1.

    Args:
        label_set: Problem type and class names of a classification.
        labels: Labels of the training examples.
    """
    if label_set.problem_type == MULTI_LABEL:
        counts = [sum(column) for column in zip(*(label for label in labels if isinstance(label, list)), strict=True)]
        return tuple((len(labels) - count) / count if count else 1.0 for count in counts)
    by_class = Counter(int(label) for label in labels if not isinstance(label, list))
    size = len(label_set.names)
    return tuple(len(labels) / (size * by_class[index]) if by_class[index] else 1.0 for index in range(size))


def _is_multi_hot(column: Sequence[Any]) -> bool:
    if not column or not all(isinstance(cell, list) for cell in column):
        return False
    is_rectangular = len({len(cell) for cell in column}) == 1 and len(column[0]) > 1
    return is_rectangular and all(value in (0, 1) for cell in column for value in cell)


def _class_names_in(problem_type: str, cell: Any, row: int, source: str, separator: str) -> list[str]:
    where = f"{source}, row {row + 1},"
    if problem_type == MULTI_LABEL:
        items = _parse_list(cell, separator) if isinstance(cell, str) else cell
        if not isinstance(items, list) or None in items:
            raise ConfigError(
                f"{where} must be a list of class names or a string with {separator!r} between them, got {cell!r}. "
                "Fix the cell or remove the row."
            )
        return [name for item in items if (name := _class_name(item, where, cell))]
    if cell is None or isinstance(cell, (list, dict)) or (isinstance(cell, float) and not cell.is_integer()):
        raise ConfigError(
            f"{where} must be a class name or a whole number, got {cell!r}. Fix the cell or change data.kind."
        )
    name = _class_name(cell, where, cell)
    if not name:
        raise ConfigError(f"{where} must be a class name, got {cell!r}. Fill in the cell or remove the row.")
    if _is_written_list(name):
        raise ConfigError(f"{where} must be one class name, got the list {cell!r}. Set data.kind=multi_label.")
    return [name]


def _class_name(value: Any, where: str, cell: Any) -> str:
    """Return the name of a class: that of a CSV file and of JSON are equal for whole numbers and true and false."""
    if isinstance(value, bytes):
        raise ConfigError(f"{where} must be a class name, got the bytes {value!r}. Convert the column to text.")
    if isinstance(value, bool):
        return str(value).lower()
    name = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if len(name.splitlines()) > 1:
        raise ConfigError(f"{where} must be a class name of one line, got {cell!r}. Remove the line breaks.")
    return name


def _is_written_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def _parse_list(cell: str, separator: str) -> list[Any] | None:
    """Return the items of a cell such as "a;b" or "['a', 'b']", or None if such a list cannot be read."""
    if not _is_written_list(cell.strip()):
        return cell.split(separator)
    try:
        items = ast.literal_eval(cell.strip())  # reads JSON lists of strings and numbers as well
    except (ValueError, SyntaxError):
        return None
    return items if isinstance(items, list) else None


def _check_separator(column: Sequence[Any], source: str) -> None:
    """Raise an error if the cells seem to have another separator than the default."""
    texts = [cell for cell in column if isinstance(cell, str) and not _is_written_list(cell.strip())]
    if any(DEFAULT_SEPARATOR in text for text in texts):
        return
    for row, cell in enumerate(column):
        found = next((char for char in _OTHER_SEPARATORS if isinstance(cell, str) and char in cell), None)
        if found is not None and not _is_written_list(cell.strip()):
            raise ConfigError(
                f"{source} must have {DEFAULT_SEPARATOR!r} between the class names of a cell, got {cell!r} in row "
                f"{row + 1} and no {DEFAULT_SEPARATOR!r} in any row. Set data.label_separator={found!r}, or "
                f"data.label_separator={DEFAULT_SEPARATOR!r} if this is one class."
            )


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
