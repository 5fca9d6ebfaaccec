"""Evaluation metrics of scikit-learn and SciPy, as used by GLUE."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch import Tensor

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
_F1_AVERAGES: dict[str, Any] = {"f1": "binary", "macro_f1": "macro", "micro_f1": "micro"}


def problem_type_of(num_labels: int) -> str:
    """Return the Hugging Face problem type of a GLUE task.

    Args:
        num_labels: Number of classes; 1 for a regression.
    """
    return REGRESSION if num_labels == 1 else SINGLE_LABEL


def compute_metrics(names: tuple[str, ...], problem_type: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute metrics as fractions between 0 and 1 (correlations between -1 and 1).

    Args:
        names: Names of metrics. For single labels: `accuracy`, `f1` of class 1 of two, `macro_f1`, and
            `matthews_correlation`. For multi-hot labels: `subset_accuracy`, the fraction of examples whose labels are
            all correct, `label_accuracy`, that of correct entries, `micro_f1` of all entries, and `macro_f1`. For
            numbers: `pearson`, `spearman` and `mean_squared_error`, which is not a fraction. `macro_f1` is the mean
            over the L classes, including those that do not occur.
        problem_type: `SINGLE_LABEL`, `MULTI_LABEL` or `REGRESSION`.
        logits: (N, L) logits of the model.
        labels: (N,) classes or numbers, or (N, L) multi-hot labels.

    Returns:
        Metrics by name. An undefined metric is 0: a correlation of one example or of constant values, or the F1 of a
        class that never occurs.
    """
    predictions = predict_labels(problem_type, logits).double().numpy()
    targets = labels.double().numpy()
    num_classes = logits.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy and scikit-learn warn about undefined metrics
        return {name: _compute(name, predictions, targets, num_classes) for name in names}


def _compute(name: str, predictions: NDArray[np.float64], targets: NDArray[np.float64], num_classes: int) -> float:
    if name in ("accuracy", "subset_accuracy"):
        value = accuracy_score(targets, predictions)
    elif name == "label_accuracy":
        value = accuracy_score(targets.ravel(), predictions.ravel())
    elif name in _F1_AVERAGES:
        zero: Any = 0.0  # the type stubs accept only the default
        classes = None if name == "f1" else range(num_classes)
        value = f1_score(targets, predictions, labels=classes, average=_F1_AVERAGES[name], zero_division=zero)
    elif name == "matthews_correlation":
        value = matthews_corrcoef(targets, predictions)
    elif name == "mean_squared_error":
        value = mean_squared_error(targets, predictions)
    elif len(targets) < 2:
        value = 0.0
    else:
        correlation: Any = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name](predictions, targets)
        value = correlation.statistic
    return float(np.nan_to_num(value))


def predict_labels(problem_type: str, logits: Tensor) -> Tensor:
    """Convert logits to predicted labels.

    Args:
        problem_type: `SINGLE_LABEL`, `MULTI_LABEL` or `REGRESSION`.
        logits: (N, L) logits of the model.

    Returns:
        (N,) classes, (N, L) multi-hot labels, or (N,) numbers.
    """
    if problem_type == REGRESSION:
        return logits[:, 0].float()
    return (logits > 0).long() if problem_type == MULTI_LABEL else logits.argmax(dim=1)
