"""The metrics of tasks, by the names that scores give them: scikit-learn's and scipy's, as GLUE is scored with."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from torch import Tensor

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def problem_type_of(num_labels: int) -> str:
    """Hugging Face's problem_type of a task with so many classes; one is a number to predict."""
    return REGRESSION if num_labels == 1 else SINGLE_LABEL


def compute_metrics(names: tuple[str, ...], problem_type: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of predictions, as fractions.

    Args:
        names: of `accuracy` (of several labels: the share of single decisions), `f1` (of class 1 where there are two,
            else the mean over classes), `matthews_correlation`, `pearson`, `spearman`, `mean_squared_error`.
        problem: of `SINGLE_LABEL`, `MULTI_LABEL`, `REGRESSION`.
        logits: (N, L) of the model.
        labels: (N,) classes or numbers, or (N, L) of 0 and 1.

    Returns:
        By name. What is not defined is 0: a correlation of one example or with something constant, the F1 of a class
        that never occurs.
    """
    predictions, true = predict_labels(problem_type, logits).double().numpy(), labels.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's and scikit-learn's about the undefined
        return {
            name: _compute(name, predictions, true, problem_type == SINGLE_LABEL and logits.shape[1] == 2)
            for name in names
        }


def _compute(name: str, predictions: NDArray[np.float64], true: NDArray[np.float64], is_binary: bool) -> float:
    if name == "accuracy":
        value = accuracy_score(true.ravel(), predictions.ravel())
    elif name == "f1":
        zero: Any = 0.0  # its stubs know only the default
        value = f1_score(true, predictions, average="binary" if is_binary else "macro", zero_division=zero)
    elif name == "matthews_correlation":
        value = matthews_corrcoef(true, predictions)
    elif name == "mean_squared_error":
        value = mean_squared_error(true, predictions)
    elif len(true) < 2:
        value = 0.0
    else:
        correlation: Any = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name](predictions, true)
        value = correlation.statistic
    return float(np.nan_to_num(value))


def predict_labels(problem_type: str, logits: Tensor) -> Tensor:
    """What the logits (N, L) say: (N,) classes, (N, L) of 0 and 1, or (N,) numbers."""
    if problem_type == REGRESSION:
        return logits[:, 0].float()
    return (logits > 0).long() if problem_type == MULTI_LABEL else logits.argmax(dim=1)
