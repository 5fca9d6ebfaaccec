"""Results of a fine-tuning: metrics, lines of predictions.jsonl, and report.md."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, compute_metrics, predict_labels
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import TaskDataset
from mosaicbert.finetune.task.labels import LabelSet

_METRICS = {
    SINGLE_LABEL: ("accuracy", "f1", "matthews_correlation"),
    MULTI_LABEL: ("accuracy", "f1"),
    REGRESSION: ("pearson", "spearman", "mean_squared_error"),
}


def evaluate(data: TaskDataset, logits: Tensor) -> dict[str, float]:
    """Compute the metrics of the validation examples, by name.

    Args:
        data: Dataset of the task.
        logits: (N, L) of the validation examples.
    """
    problem_type = data.labels.problem_type
    return compute_metrics(_METRICS[problem_type], problem_type, logits, torch.tensor(data.validation.labels))


def prediction_lines(labels: LabelSet, examples: Examples, logits: Tensor, split: str) -> Iterator[str]:
    """Yield a line of JSON for each example: its texts, its label if it has one, the prediction and probabilities.

    Args:
        labels: Classes of the task.
        examples: Examples of the split.
        logits: (N, L) of the examples.
        split: Name of the split.
    """
    predictions = predict_labels(labels.problem_type, logits).tolist()
    is_single = labels.problem_type == SINGLE_LABEL
    probabilities = (logits.softmax(dim=1) if is_single else logits.sigmoid()).tolist()
    for row, texts in enumerate(zip(*examples.texts, strict=True)):
        line: dict[str, Any] = {"split": split, "texts": list(texts)}
        if examples.labels is not None:
            line["label"] = _class_names(labels, examples.labels[row])
        line["predicted"] = _class_names(labels, predictions[row])
        if labels.problem_type != REGRESSION:
            pairs = zip(labels.names, probabilities[row], strict=True)
            line["probabilities"] = {name: round(value, 6) for name, value in pairs}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write_report(
    title: str,
    data: TaskDataset,
    metrics: Mapping[str, Any],
    logits: Tensor,
    *,
    model: str,
    dataset: str,
    num_epochs: int,
) -> str:
    """Write the report as Markdown.

    Args:
        title: Title of the report.
        data: Dataset of the task.
        metrics: Content of metrics.json.
        logits: (N, L) of the validation examples.
        model: Name of the pretrained model.
        dataset: Name of the training data.
        num_epochs: Number of epochs.
    """
    labels = data.labels
    baseline = {"random weights": metrics["random_weights"]} if "random_weights" in metrics else {}
    columns = {"fine-tuned": metrics["validation"]} | baseline
    lines = [
        f"# {title}",
        "",
        f"{model} on {dataset}: {len(data.train):,} examples to train on, {len(data.validation):,} to "
        f"validate, {num_epochs} epochs, {metrics['seconds']:.0f} s.",
        "",
        _markdown_row("metric", *columns),
        _markdown_row("---", *["---:"] * len(columns)),
        *(
            _markdown_row(name, *(f"{values[name]:.4f}" for values in columns.values()))
            for name in metrics["validation"]
        ),
    ]
    if baseline:
        lines += ["", "Random weights: the same model, trained on the same data in the same way, but not pretrained."]
    if labels.problem_type != REGRESSION:
        lines += [
            "",
            _markdown_row("class", "precision", "recall", "F1", "examples"),
            _markdown_row("---", *["---:"] * 4),
        ]
        targets, predictions = label_arrays(labels, data.validation, logits)
        zero: Any = 0.0  # its stubs know only the default
        by_class: Any = precision_recall_fscore_support(
            targets, predictions, labels=range(len(labels.names)), average=None, zero_division=zero
        )
        for name, *scores, count in zip(labels.names, *by_class, strict=True):
            lines.append(_markdown_row(name, *(f"{score:.3f}" for score in scores), f"{int(count):,}"))
    return "\n".join([*lines, "", "![Predictions](predictions.png)", ""])


def label_arrays(labels: LabelSet, examples: Examples, logits: Tensor) -> tuple[Any, Any]:
    """Return true and predicted labels as arrays: (N,), or (N, L) for several labels."""
    return np.array(examples.labels), predict_labels(labels.problem_type, logits).numpy()


def _class_names(labels: LabelSet, label: Any) -> Any:
    if labels.problem_type == REGRESSION:
        return label
    if labels.problem_type == SINGLE_LABEL:
        return labels.names[label]
    return [name for name, applies in zip(labels.names, label, strict=True) if applies]


def _markdown_row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
