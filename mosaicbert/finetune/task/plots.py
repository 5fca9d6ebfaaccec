"""Plots of predictions: confusion matrix, errors per class, and scatter plot of a regression."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION
from mosaicbert.finetune.task.labels import LabelSet

_DPI = 150
_MAX_BARS = 30  # classes in the bar chart of a multi-label task
_MAX_CLASSES_WITH_COUNTS = 20  # limit for counts in the cells of the confusion matrix
_MAX_CLASSES_WITH_NAMES = 60  # limit for class names along the axes
_MAX_NAME_LENGTH = 24  # characters
_COLOR = "#0072B2"


def draw_predictions(
    label_set: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64], title: str
) -> bytes:
    """Draw predictions against targets as a PNG image.

    The plot is a confusion matrix for single-label tasks, a bar chart of errors per class for multi-label tasks, and a
    scatter plot for regressions.

    Args:
        label_set: Problem type and class names.
        targets: (N,) true classes or numbers, or (N, L) multi-hot labels.
        predictions: Predicted values, with the shape of `targets`.
        title: Title of the figure.
    """
    num_classes = len(label_set.names)
    width = min(14.0, 4.0 + 0.3 * num_classes)
    is_multi_label = label_set.problem_type == MULTI_LABEL
    size = (8.0, 2.0 + 0.32 * min(num_classes, _MAX_BARS)) if is_multi_label else (width, 0.92 * width)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False, fontsize=9.5, loc="left")
    if label_set.problem_type == REGRESSION:
        _draw_scatter(axes, targets, predictions)
    elif is_multi_label:
        _draw_bars(axes, label_set, targets, predictions)
    else:
        _draw_matrix(axes, label_set, targets, predictions)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _draw_matrix(
    axes: Axes, label_set: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64]
) -> None:
    num_classes = len(label_set.names)
    counts = confusion_matrix(targets, predictions, labels=range(num_classes))
    row_fractions = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(row_fractions, cmap="Blues", vmin=0.0, vmax=1.0)
    if num_classes <= _MAX_CLASSES_WITH_COUNTS:
        for row, column in np.ndindex(num_classes, num_classes):
            text_color = "white" if row_fractions[row, column] > 0.6 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=text_color)
    if num_classes <= _MAX_CLASSES_WITH_NAMES:
        names = [_truncate_class_name(name) for name in label_set.names]
        axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 4 else 0, fontsize=7, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=7, parse_math=False)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class (color: fraction of the row)")


def _draw_bars(axes: Axes, label_set: LabelSet, targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    by_class = multilabel_confusion_matrix(targets, predictions)
    order = np.argsort(-targets.sum(axis=0))[:_MAX_BARS]  # the most frequent classes
    positions = np.arange(len(order))
    true_positives, false_negatives = by_class[order, 1, 1], by_class[order, 1, 0]
    axes.barh(positions, true_positives, color=_COLOR, label="True positives")
    axes.barh(positions, false_negatives, left=true_positives, color="#56B4E9", label="False negatives")
    axes.barh(positions, -by_class[order, 0, 1], color="#D55E00", label="False positives")
    names = [_truncate_class_name(label_set.names[index]) for index in order]
    axes.set_yticks(positions, names, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("Number of examples")
    axes.legend(frameon=False, fontsize=8)


def _draw_scatter(axes: Axes, targets: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    axes.scatter(targets, predictions, s=9, alpha=0.4, color=_COLOR, linewidths=0)
    limits = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(limits, limits, color="#4d4d4d", linewidth=0.8, linestyle="--", label="Predicted = true")
    axes.set_xlabel("True value")
    axes.set_ylabel("Predicted value")
    axes.legend(frameon=False, fontsize=8)


def _truncate_class_name(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"
