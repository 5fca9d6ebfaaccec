"""The metrics of tasks, by the names that scores give them."""

import torch
from torch import Tensor
from torchmetrics.functional import matthews_corrcoef, pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multilabel_accuracy,
    multilabel_f1_score,
)

_DIGITS = 6  # what fp32 has

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def problem_of(num_labels: int) -> str:
    """Hugging Face's problem_type of a task with so many classes; one is a number to predict."""
    return REGRESSION if num_labels == 1 else SINGLE_LABEL


def compute_metrics(names: tuple[str, ...], problem: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of predictions, as fractions.

    Args:
        names: of `accuracy`, `f1` (of class 1 where there are two, else the mean over classes), `matthews_correlation`,
            `pearson`, `spearman`, `mean_squared_error`.
        problem: of `SINGLE_LABEL`, `MULTI_LABEL`, `REGRESSION`.
        logits: (N, L) of the model.
        labels: (N,) classes or numbers, or (N, L) of 0 and 1.

    Returns:
        By name. A correlation with something constant is 0.
    """
    logits = logits.float()
    values = {name: float(torch.nan_to_num(_METRICS[name](problem, logits, labels))) for name in names}
    return {name: round(value, _DIGITS) for name, value in values.items()}


def predict(problem: str, logits: Tensor) -> Tensor:
    """What the logits (N, L) say: (N,) classes, (N, L) of 0 and 1, or (N,) numbers."""
    if problem == REGRESSION:
        return logits[:, 0].float()
    return (logits > 0).long() if problem == MULTI_LABEL else logits.argmax(dim=1)


def _accuracy(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    if problem == MULTI_LABEL:
        return multilabel_accuracy(predict(problem, logits), labels.long(), logits.shape[1], average="micro")
    return multiclass_accuracy(predict(problem, logits), labels, logits.shape[1], average="micro")


def _f1(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    if problem == MULTI_LABEL:
        return multilabel_f1_score(predict(problem, logits), labels.long(), logits.shape[1], average="macro")
    if logits.shape[1] == 2:
        return binary_f1_score(predict(problem, logits), labels)
    return multiclass_f1_score(predict(problem, logits), labels, logits.shape[1], average="macro")


def _matthews(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    return matthews_corrcoef(predict(problem, logits), labels, task="multiclass", num_classes=logits.shape[1])


def _pearson(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    return pearson_corrcoef(predict(problem, logits).double(), labels.double())


def _spearman(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    return spearman_corrcoef(predict(problem, logits).double(), labels.double())


def _squared_error(problem: str, logits: Tensor, labels: Tensor) -> Tensor:
    return (predict(problem, logits).double() - labels.double()).square().mean()


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "mean_squared_error": _squared_error,
}
