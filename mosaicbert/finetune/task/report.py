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
from mosaicbert.finetune.task.summary import summary_lines

_METRICS = {
    SINGLE_LABEL: ("accuracy", "macro_f1", "matthews_correlation"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy", "label_accuracy"),
    REGRESSION: ("pearson", "spearman", "mean_squared_error"),
}
_FULL_NAMES = {
    "f1": "F1",
    "macro_f1": "macro F1 (mean over classes)",
    "micro_f1": "micro F1 (all labels)",
    "matthews_correlation": "Matthews correlation",
    "subset_accuracy": "subset accuracy (all labels of a text)",
    "label_accuracy": "label accuracy (single labels)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def evaluate(data: TaskDataset, logits: Tensor) -> dict[str, float]:
    """Compute the metrics of the validation examples.

    Args:
        data: Dataset of the task.
        logits: (N, L) logits of the validation examples.

    Returns:
        Metrics by name. With a positive class, `precision`, `recall` and `f1` are those of this class.
    """
    label_set = data.label_set
    problem_type = label_set.problem_type
    metrics = compute_metrics(_METRICS[problem_type], problem_type, logits, torch.tensor(data.validation.labels))
    if label_set.positive is not None:
        scores = class_scores(label_set, data.validation, logits)[label_set.positive]
        metrics |= {name: scores[name] for name in ("precision", "recall", "f1")}
    return metrics


def class_scores(label_set: LabelSet, examples: Examples, logits: Tensor) -> dict[str, dict[str, float]]:
    """Compute precision, recall, F1 and number of examples of each class.

    Args:
        label_set: Problem type and class names of a classification.
        examples: Labeled examples.
        logits: (N, L) logits of the examples.

    Returns:
        Scores by name of the class. An undefined score is 0.
    """
    targets, predictions = label_arrays(label_set, examples, logits)
    zero: Any = 0.0  # the type stubs accept only the default
    by_class: Any = precision_recall_fscore_support(
        targets, predictions, labels=range(len(label_set.names)), average=None, zero_division=zero
    )
    fields = ("precision", "recall", "f1", "examples")
    rows = zip(*(scores.tolist() for scores in by_class), strict=True)
    return {name: dict(zip(fields, row, strict=True)) for name, row in zip(label_set.names, rows, strict=True)}


def describe_metric(name: str, positive: str | None) -> str:
    """Return the full name of a metric.

    Args:
        name: Name in metrics.json.
        positive: Positive class, or None.
    """
    full = _FULL_NAMES.get(name, name.replace("_", " "))
    return f"{full} of {positive}" if name in ("precision", "recall", "f1") else full


def prediction_lines(label_set: LabelSet, examples: Examples, logits: Tensor, split: str) -> Iterator[str]:
    """Yield one line of JSON per example with its texts, label (if any), prediction and class probabilities.

    Args:
        label_set: Problem type and class names.
        examples: Examples of the split.
        logits: (N, L) logits of the examples.
        split: Name of the split.
    """
    predictions = predict_labels(label_set.problem_type, logits).tolist()
    is_single_label = label_set.problem_type == SINGLE_LABEL
    probabilities = (logits.softmax(dim=1) if is_single_label else logits.sigmoid()).tolist()
    for row, texts in enumerate(zip(*examples.texts, strict=True)):
        line: dict[str, Any] = {"split": split, "texts": list(texts)}
        if examples.labels is not None:
            line["label"] = class_names(label_set, examples.labels[row])
        line["predicted"] = class_names(label_set, predictions[row])
        if label_set.problem_type != REGRESSION:
            pairs = zip(label_set.names, probabilities[row], strict=True)
            line["probabilities"] = {name: round(value, 6) for name, value in pairs}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write_report(
    title: str,
    data: TaskDataset,
    metrics: Mapping[str, Any],
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
        model: Name of the pretrained model.
        dataset: Name of the training data.
        num_epochs: Number of epochs.
    """
    label_set = data.label_set
    columns = {"Pretrained weights": metrics["validation"]}
    if "random_weights" in metrics:
        columns["Random weights"] = metrics["random_weights"]
    lines = [
        f"# {title}",
        "",
        f"Model {model}, fine-tuned on {dataset}: {len(data.train):,} training examples, {len(data.validation):,} "
        f"validation examples, {num_epochs} epochs, {metrics['seconds']:.0f} s.",
        "",
        *(f"- {line}" for line in summary_lines(metrics["data"], len(data.validation))),
        "",
        _markdown_row("Validation metric", *columns),
        _markdown_row("---", *["---:"] * len(columns)),
    ]
    for name in metrics["validation"]:
        title_of_metric = describe_metric(name, label_set.positive)
        lines.append(_markdown_row(title_of_metric, *(f"{values[name]:.4f}" for values in columns.values())))
    if "random_weights" in metrics:
        lines += ["", "Random weights: the same model, data and hyperparameters, without pretraining."]
    if label_set.problem_type != REGRESSION:
        lines += [
            "",
            _markdown_row("Class", "Precision", "Recall", "F1", "Validation examples"),
            _markdown_row("---", *["---:"] * 4),
        ]
        for name, scores in metrics["classes"].items():
            values = (f"{scores[field]:.3f}" for field in ("precision", "recall", "f1"))
            lines.append(_markdown_row(name, *values, f"{scores['examples']:,}"))
    return "\n".join([*lines, "", "![Predictions](predictions.png)", ""])


def label_arrays(label_set: LabelSet, examples: Examples, logits: Tensor) -> tuple[Any, Any]:
    """Return true and predicted labels as arrays of shape (N,), or (N, L) for multi-label tasks.

    Args:
        label_set: Problem type and class names.
        examples: Labeled examples.
        logits: (N, L) logits of the examples.
    """
    return np.array(examples.labels), predict_labels(label_set.problem_type, logits).numpy()


def class_names(label_set: LabelSet, label: Any) -> Any:
    """Return the class, the list of classes or the number of a label.

    Args:
        label_set: Problem type and class names.
        label: Class index, multi-hot label or number.
    """
    if label_set.problem_type == REGRESSION:
        return label
    if label_set.problem_type == SINGLE_LABEL:
        return label_set.names[label]
    return [name for name, applies in zip(label_set.names, label, strict=True) if applies]


def _markdown_row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
