"""Evaluation metrics of scikit-learn and SciPy, as used by GLUE."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch import Tensor

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def problem_type_of(num_labels: int) -> str:
    """Return the Hugging Face problem type of a GLUE task.

    Args:
        num_labels: Number of classes; 1 for a regression.
    """
    return REGRESSION if num_labels == 1 else SINGLE_LABEL


def compute_metrics(names: tuple[str, ...], problem_type: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute metrics as fractions between 0 and 1 (correlations between -1 and 1).

    Args:
        names: Names of metrics. `accuracy` of multi-hot labels is the fraction of correct entries. `f1` is the F1 of
            class 1 for two classes, else the mean over classes. The other names are `matthews_correlation`, `pearson`,
            `spearman` and `mean_squared_error`, which is not a fraction.
        problem_type: `SINGLE_LABEL`, `MULTI_LABEL` or `REGRESSION`.
        logits: (N, L) logits of the model.
        labels: (N,) classes or numbers, or (N, L) multi-hot labels.

    Returns:
        Metrics by name. An undefined metric is 0: a correlation of one example or of constant values, or the F1 of a
        class that never occurs.
    """
    predictions = predict_labels(problem_type, logits).double().numpy()
    targets = labels.double().numpy()
    is_binary = problem_type == SINGLE_LABEL and logits.shape[1] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy and scikit-learn warn about undefined metrics
        return {name: _compute(name, predictions, targets, is_binary) for name in names}


def _compute(name: str, predictions: NDArray[np.float64], targets: NDArray[np.float64], is_binary: bool) -> float:
    if name == "accuracy":
        value = accuracy_score(targets.ravel(), predictions.ravel())
    elif name == "f1":
        zero: Any = 0.0  # the type stubs accept only the default
        value = f1_score(targets, predictions, average="binary" if is_binary else "macro", zero_division=zero)
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
