"""Predictions of score records in predictions.jsonl, for statistics over examples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaicbert.scores.records import Score, append_line, read_records

PREDICTIONS_FILE = "predictions.jsonl"
_SIGNIFICANT_DIGITS = 5  # of predicted numbers

Values = str | list[float]  # one digit per example for classes; numbers for a regression


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """Predictions for one set of examples, in the order of the data.

    Attributes:
        labels: Labels of the examples: one digit per example for classes, or a list of numbers.
        predictions: Predicted labels in the same format.
    """

    labels: Values
    predictions: Values

    def label_array(self) -> NDArray[np.float64]:
        """Return the labels as (N,) float64."""
        return _as_array(self.labels)

    def prediction_array(self) -> NDArray[np.float64]:
        """Return the predictions as (N,) float64."""
        return _as_array(self.predictions)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions that a score was computed from, a line of predictions.jsonl.

    Attributes:
        model: Model of the score, see `Score`.
        step: Step of the score.
        task: Task of the score.
        seed: Seed of the score.
        protocol: Protocol of the score.
        finished: Time of the score.
        splits: Predictions by the suffix of the metrics: "" or, for MNLI, "_matched" and "_mismatched"; for BLiMP, the
            name of the paradigm.
    """

    model: str
    step: int | None
    task: str
    seed: int
    protocol: str
    finished: str
    splits: dict[str, SplitPredictions]

    def is_of(self, score: Score) -> bool:
        """Return whether these are the predictions of a score."""
        return record_key(self) == record_key(score)


_KEY = ("model", "step", "task", "seed", "protocol", "finished")


def record_key(record: Score | Predictions) -> tuple[str | int | None, ...]:
    """Return the fields that a score and its predictions have in common."""
    return tuple(getattr(record, name) for name in _KEY)


def encode_values(values: Sequence[float], *, is_regression: bool) -> Values:
    """Encode labels or predictions for a record.

    Args:
        values: (N,) classes from 0 to 9, or numbers.
        is_regression: True for numbers, which are rounded to five significant digits.
    """
    if is_regression:
        return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values]
    return "".join(str(int(value)) for value in values)


def make_predictions(score: Score, splits: dict[str, SplitPredictions]) -> Predictions:
    """Create the predictions record of a score."""
    return Predictions(**{name: getattr(score, name) for name in _KEY}, splits=splits)


def read_predictions(path: Path) -> list[Predictions]:
    """Read the lines of a predictions.jsonl file, except for a truncated last line.

    Args:
        path: Path of the file. A missing file has no predictions.

    Raises:
        ConfigError: If a line is not a valid record.
    """
    return read_records(path, _parse_predictions, "a predictions record")


def _parse_predictions(fields: dict[str, Any]) -> Predictions:
    splits = {name: SplitPredictions(**split) for name, split in fields.pop("splits").items()}
    return Predictions(splits=splits, **fields)


def append_predictions(path: Path, predictions: Predictions) -> None:
    """Append a record and flush it to disk. Several processes may write at a time."""
    append_line(path, json.dumps(asdict(predictions)))


def _as_array(values: Values) -> NDArray[np.float64]:
    if isinstance(values, str):
        return (np.frombuffer(values.encode(), dtype=np.uint8) - ord("0")).astype(np.float64)
    return np.array(values, dtype=np.float64)
