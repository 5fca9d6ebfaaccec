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
_MOST_NUMBERED = 20  # classes of which the counts are written into the cells
_MOST_NAMED = 60  # classes whose names stand along the axes
_LONGEST_NAME = 24
_INK = "#0072B2"


def draw_predictions(labels: LabelSet, true: NDArray[np.float64], predicted: NDArray[np.float64], title: str) -> bytes:
    """A PNG: the confusion matrix of classes, bars for several labels, or predicted against true numbers.

    Args:
        labels: of the task.
        true: (N,) classes or numbers, or (N, L) of 0 and 1.
        predicted: likewise.
        title: of the figure.
    """
    num_classes = len(labels.names)
    side = min(14.0, 4.0 + 0.3 * num_classes)
    size = (8.0, 2.0 + 0.32 * min(num_classes, 30)) if labels.problem == MULTI_LABEL else (side, 0.92 * side)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False, fontsize=9.5, loc="left")
    if labels.problem == REGRESSION:
        _draw_numbers(axes, true, predicted)
    elif labels.problem == MULTI_LABEL:
        _draw_bars(axes, labels, true, predicted)
    else:
        _draw_matrix(axes, labels, true, predicted)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _draw_matrix(axes: Axes, labels: LabelSet, true: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    count = len(labels.names)
    counts = confusion_matrix(true, predicted, labels=range(count))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if count <= _MOST_NUMBERED:
        for row, column in np.ndindex(count, count):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=colour)
    if count <= _MOST_NAMED:
        names = [_truncate_class_name(name) for name in labels.names]
        axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=7, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=7, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true; shade: share of the row")


def _draw_bars(axes: Axes, labels: LabelSet, true: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    by_class = multilabel_confusion_matrix(true, predicted)
    order = np.argsort(-true.sum(axis=0))[:30]  # the most frequent
    places = np.arange(len(order))
    hit, missed, invented = by_class[order, 1, 1], by_class[order, 1, 0], by_class[order, 0, 1]
    axes.barh(places, hit, color=_INK, label="found")
    axes.barh(places, missed, left=hit, color="#56B4E9", label="missed")
    axes.barh(places, -invented, color="#D55E00", label="wrongly given")
    axes.set_yticks(
        places, [_truncate_class_name(labels.names[index]) for index in order], fontsize=7, parse_math=False
    )
    axes.invert_yaxis()
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("examples")
    axes.legend(frameon=False, fontsize=8)


def _draw_numbers(axes: Axes, true: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    axes.scatter(true, predicted, s=9, alpha=0.4, color=_INK, linewidths=0)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color="#4d4d4d", linewidth=0.8, linestyle="--", label="as it should be")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.legend(frameon=False, fontsize=8)


def _truncate_class_name(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
