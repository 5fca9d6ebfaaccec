"""What a fine-tuning reached: report.md, predictions.jsonl, and a picture."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from mosaicbert.config.finetune import FinetuneRecipe
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, predict
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import OwnData
from mosaicbert.finetune.task.labels import LabelSet

METRICS = {
    SINGLE_LABEL: ("accuracy", "f1", "matthews_correlation"),
    MULTI_LABEL: ("accuracy", "f1"),
    REGRESSION: ("pearson", "spearman", "mean_squared_error"),
}


def prediction_lines(labels: LabelSet, examples: Examples, logits: Tensor, split: str) -> Iterator[str]:
    """A line of JSON for each example: its texts, its label if it has one, what was predicted, and how likely.

    Args:
        labels: of the task.
        examples: that were predicted.
        logits: (N, L) of the model.
        split: what they are called.
    """
    predicted = predict(labels.problem, logits).tolist()
    is_single = labels.problem == SINGLE_LABEL
    likely = (logits.softmax(dim=1) if is_single else logits.sigmoid()).tolist()
    for row, texts in enumerate(zip(*examples.texts, strict=True)):
        line: dict[str, Any] = {"split": split, "texts": list(texts)}
        if examples.labels is not None:
            line["label"] = _name(labels, examples.labels[row])
        line["predicted"] = _name(labels, predicted[row])
        if labels.problem != REGRESSION:
            shares = zip(labels.names, likely[row], strict=True)
            line["probabilities"] = {name: round(share, 6) for name, share in shares}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write_report(recipe: FinetuneRecipe, data: OwnData, metrics: Mapping[str, Any], logits: Tensor) -> str:
    """The report as Markdown.

    Args:
        recipe: of the fine-tuning.
        data: that it was made with.
        metrics: the content of metrics.json.
        logits: (N, L) of the validation examples.
    """
    labels = data.labels
    others = {"random weights": metrics["random_weights"]} if "random_weights" in metrics else {}
    columns = {"fine-tuned": metrics["validation"]} | others
    lines = [
        f"# {recipe.run_name}",
        "",
        f"{recipe.model} on {recipe.data.train}: {len(data.train):,} examples to train on, {len(data.validation):,} to "
        f"validate, {recipe.train.epochs} epochs, {metrics['seconds']:.0f} s.",
        "",
        _row("metric", *columns),
        _row("---", *["---:"] * len(columns)),
        *(_row(name, *(f"{found[name]:.4f}" for found in columns.values())) for name in metrics["validation"]),
    ]
    if others:
        lines += ["", "Random weights: the same model, trained on the same data in the same way, but not pretrained."]
    if labels.problem != REGRESSION:
        lines += ["", _row("class", "precision", "recall", "F1", "examples"), _row("---", *["---:"] * 4)]
        true, predicted = arrays(labels, data.validation, logits)
        zero: Any = 0.0  # its stubs know only the default
        by_class: Any = precision_recall_fscore_support(
            true, predicted, labels=range(len(labels.names)), average=None, zero_division=zero
        )
        for name, *shares, count in zip(labels.names, *by_class, strict=True):
            lines.append(_row(name, *(f"{share:.3f}" for share in shares), f"{int(count):,}"))
    return "\n".join([*lines, "", "![Predictions](predictions.png)", ""])


def arrays(labels: LabelSet, examples: Examples, logits: Tensor) -> tuple[Any, Any]:
    """True and predicted labels as numpy has them: (N,), or (N, L) for several labels."""
    return np.array(examples.labels), predict(labels.problem, logits).numpy()


def labels_tensor(examples: Examples) -> Tensor:
    """The labels of examples."""
    return torch.tensor(examples.labels)


def _name(labels: LabelSet, label: Any) -> Any:
    if labels.problem == REGRESSION:
        return label
    if labels.problem == SINGLE_LABEL:
        return labels.names[label]
    return [name for name, applies in zip(labels.names, label, strict=True) if applies]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
