"""Variance of a task score due to the choice of the validation examples, by a bootstrap of the predictions."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mosaicbert.scores.predictions import Predictions
from mosaicbert.scores.statistics import VarianceTerm

_CLASS_RESAMPLES = 2_000
_NUMBER_RESAMPLES = 500
_RANDOM_STATE = 0  # for reproducible intervals

_Array = NDArray[np.float64]


def bootstrap_examples(
    metrics: Sequence[str], first: Sequence[Predictions], second: Sequence[Predictions] = ()
) -> VarianceTerm:
    """Estimate the variance of a task score, or of a difference of two, due to the choice of the examples.

    The score is the mean over metrics and over seeds, in percent. All seeds, and both models, are evaluated on the same
    resampled examples, because they share the validation set.

    Args:
        metrics: Names of the metrics, with the suffix of their split.
        first: Predictions of the seeds of a model, on the same examples.
        second: Predictions of another model that is subtracted; empty for the score of one model.

    Returns:
        Variance in squared percent. Its degrees of freedom are those of the examples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
    """
    weights = np.array([1.0 / len(first)] * len(first) + [-1.0 / len(second) for _ in second])
    variance, degrees_of_freedom = 0.0, 0
    for split in first[0].splits:
        names = [name.removesuffix(split) for name in metrics if name.endswith(split)]
        if not names:
            continue
        labels = first[0].splits[split].label_array()
        predictions = np.stack([record.splits[split].prediction_array() for record in (*first, *second)])
        resample = _resample_numbers if "spearman" in names else _resample_classes
        values = resample(labels, predictions, names)  # (R, seeds)
        variance += float(np.var(100.0 * len(names) / len(metrics) * values @ weights, ddof=1))
        degrees_of_freedom += len(labels) - 1
    return VarianceTerm(variance, max(1, degrees_of_freedom))


def _resample_classes(labels: _Array, predictions: _Array, names: Sequence[str]) -> _Array:
    # A metric of classes depends only on how often each combination of label and predictions occurs.
    columns = np.vstack([labels, predictions])
    _, indices, counts = np.unique(columns, axis=1, return_index=True, return_counts=True)
    order = np.argsort(indices)  # of the examples, so that the resamples do not depend on the order of the models
    rows, counts = columns[:, indices[order]], counts[order]
    num_examples = len(labels)
    random = np.random.default_rng(_RANDOM_STATE)
    resampled = random.multinomial(num_examples, counts / num_examples, size=_CLASS_RESAMPLES).astype(np.float64)
    targets = rows[0]
    return np.stack(
        [
            np.mean([_CLASS_METRICS[name](resampled, targets, predicted) for name in names], axis=0)
            for predicted in rows[1:]
        ],
        axis=1,
    )


def _resample_numbers(labels: _Array, predictions: _Array, names: Sequence[str]) -> _Array:
    assert list(names) == ["spearman"]
    random = np.random.default_rng(_RANDOM_STATE)
    indices = random.integers(len(labels), size=(_NUMBER_RESAMPLES, len(labels)))
    targets = _standardized_ranks(labels[indices])
    return np.stack(
        [(targets * _standardized_ranks(predicted[indices])).sum(axis=1) for predicted in predictions], axis=1
    )


def _standardized_ranks(values: _Array) -> _Array:
    ranks = stats.rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, norms, out=np.zeros_like(ranks), where=norms > 0)  # constant values have no correlation


def _accuracy(counts: _Array, targets: _Array, predicted: _Array) -> _Array:
    return counts @ (targets == predicted) / counts.sum(axis=1)


def _f1(counts: _Array, targets: _Array, predicted: _Array) -> _Array:
    true_positives = counts @ ((targets == 1) & (predicted == 1))
    errors = counts @ (targets != predicted)
    total = 2 * true_positives + errors
    return np.divide(2 * true_positives, total, out=np.zeros_like(total), where=total > 0)


def _matthews_correlation(counts: _Array, targets: _Array, predicted: _Array) -> _Array:
    tp, tn, fp, fn = (
        counts @ ((targets == target) & (predicted == prediction))
        for target, prediction in ((1, 1), (0, 0), (0, 1), (1, 0))
    )
    norm = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, norm, out=np.zeros_like(norm), where=norm > 0)


_CLASS_METRICS: dict[str, Callable[[_Array, _Array, _Array], _Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
}
