"""Figure of predictions: confusion matrix, errors per label, or predicted against true numbers."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION
from mosaicbert.finetune.task.labels import LabelSet

_DPI = 150
_MAX_CLASSES_WITH_COUNTS = 20  # classes of which the counts are written into the cells
_MAX_CLASSES_WITH_NAMES = 60  # classes whose names stand along the axes
_MAX_NAME_LENGTH = 24
_COLOR = "#0072B2"


def draw_predictions(
    labels: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64], title: str
) -> bytes:
    """A PNG: the confusion matrix of classes, bars for several labels, or predicted against true numbers.

    Args:
        labels: of the task.
        true: (N,) classes or numbers, or (N, L) of 0 and 1.
        predicted: likewise.
        title: of the figure.
    """
    num_classes = len(labels.names)
    side = min(14.0, 4.0 + 0.3 * num_classes)
    size = (8.0, 2.0 + 0.32 * min(num_classes, 30)) if labels.problem_type == MULTI_LABEL else (side, 0.92 * side)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False, fontsize=9.5, loc="left")
    if labels.problem_type == REGRESSION:
        _draw_scatter(axes, targets, predictions)
    elif labels.problem_type == MULTI_LABEL:
        _draw_bars(axes, labels, targets, predictions)
    else:
        _draw_matrix(axes, labels, targets, predictions)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _draw_matrix(axes: Axes, labels: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    num_classes = len(labels.names)
    counts = confusion_matrix(targets, predictions, labels=range(num_classes))
    row_fractions = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(row_fractions, cmap="Blues", vmin=0.0, vmax=1.0)
    if num_classes <= _MAX_CLASSES_WITH_COUNTS:
        for row, column in np.ndindex(num_classes, num_classes):
            text_color = "white" if row_fractions[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=text_color)
    if num_classes <= _MAX_CLASSES_WITH_NAMES:
        names = [_truncate_class_name(name) for name in labels.names]
        axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 4 else 0, fontsize=7, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=7, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true; shade: share of the row")


def _draw_bars(axes: Axes, labels: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    by_class = multilabel_confusion_matrix(targets, predictions)
    order = np.argsort(-targets.sum(axis=0))[:30]  # the most frequent
    positions = np.arange(len(order))
    true_positives, false_negatives, false_positives = (
        by_class[order, 1, 1],
        by_class[order, 1, 0],
        by_class[order, 0, 1],
    )
    axes.barh(positions, true_positives, color=_COLOR, label="found")
    axes.barh(positions, false_negatives, left=true_positives, color="#56B4E9", label="missed")
    axes.barh(positions, -false_positives, color="#D55E00", label="wrongly given")
    axes.set_yticks(
        positions, [_truncate_class_name(labels.names[index]) for index in order], fontsize=7, parse_math=False
    )
    axes.invert_yaxis()
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("examples")
    axes.legend(frameon=False, fontsize=8)


def _draw_scatter(axes: Axes, targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    axes.scatter(targets, predictions, s=9, alpha=0.4, color=_COLOR, linewidths=0)
    limits = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(limits, limits, color="#4d4d4d", linewidth=0.8, linestyle="--", label="as it should be")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.legend(frameon=False, fontsize=8)


def _truncate_class_name(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"
