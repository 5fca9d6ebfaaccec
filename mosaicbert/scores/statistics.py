"""Statistics over tasks and seeds: mean, bootstrap confidence interval and paired test."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

_CONFIDENCE_LEVEL = 0.95
SIGNIFICANCE_LEVEL = 0.05
_RESAMPLES = 9_999
_RANDOM_STATE = 0  # for reproducible intervals
_ROUNDING = 1e-9  # maximum rounding error of a difference of two scores
_MIN_DEGREES_OF_FREEDOM = 2  # sum over all tasks


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Result of a paired test of two models.

    Attributes:
        difference: Mean over the tested tasks of the mean difference over seeds, first minus second model.
        interval: 95% confidence interval of the difference; None with too few pairs or zero variance. It contains 0 if
            and only if the p-value is at least 0.05.
        p_value: Two-sided p-value of the null hypothesis of no difference; None with too few pairs or zero variance.
        tested_tasks: Indices of the tasks with at least two pairs, whose variance can be estimated.
        num_pairs: Number of pairs in the tested tasks.
        has_zero_variance: True if there are enough pairs, but the differences of each task are equal and not zero.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    tested_tasks: tuple[int, ...]
    num_pairs: int
    has_zero_variance: bool = False


def mean_over_tasks(tasks: Sequence[Sequence[float]]) -> float:
    """Return the mean over tasks of the mean over the seeds of each task."""
    return statistics.fmean(map(statistics.fmean, tasks))


def sample_deviation(seeds: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1), or None for a single seed."""
    return statistics.stdev(seeds) if len(seeds) > 1 else None


def bootstrap_interval(tasks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Compute the 95% confidence interval of `mean_over_tasks` by a stratified percentile bootstrap.

    Seeds are resampled within each task. The deviations from the task mean are scaled by sqrt(n / (n - 1)) first, since
    a plain bootstrap of n values underestimates the variance by (n - 1) / n. A task with a single seed is a constant.

    Returns:
        Lower and upper bound, or None if no task has two seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Scale factor: Rao and Wu,
    Resampling inference with complex survey data, JASA 83 (1988).
    """
    resampled = [_rescale(np.array(seeds)) for seeds in tasks if len(seeds) > 1]
    if not resampled:
        return None
    constant = sum(seeds[0] for seeds in tasks if len(seeds) == 1)

    def mean(*samples: Any, axis: int) -> Any:
        return (constant + sum(sample.mean(axis=axis) for sample in samples)) / len(tasks)

    result = stats.bootstrap(
        resampled,
        mean,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE_LEVEL,
        method="percentile",
        rng=_RANDOM_STATE,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _rescale(seeds: Any) -> Any:
    return seeds.mean() + (seeds - seeds.mean()) * math.sqrt(len(seeds) / (len(seeds) - 1))


def paired_test(tasks: Sequence[Sequence[float]]) -> PairedTest:
    """Test whether the mean over tasks of paired differences is zero, by a paired t-test stratified by task.

    Each task has its own mean and variance of the differences, so that variation between tasks does not count as noise.
    With n_k differences of variance s_k^2 in task k of K tasks:

        variance of the difference = sum_k v_k,  v_k = s_k^2 / (n_k K^2)
        degrees of freedom = (sum_k v_k)^2 / sum_k (v_k^2 / (n_k - 1))

    Args:
        tasks: Differences of each task, one per seed.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 2 (1946).
    """
    tested_tasks = tuple(index for index, seeds in enumerate(tasks) if len(seeds) > 1)
    differences = [tasks[index] for index in tested_tasks]
    terms = [(_variance(seeds) / len(seeds) / len(differences) ** 2, len(seeds) - 1) for seeds in differences]
    variance, difference = sum(term for term, _ in terms), mean_over_tasks(differences or tasks)
    is_testable = sum(degrees for _, degrees in terms) >= _MIN_DEGREES_OF_FREEDOM
    interval, p_value = None, None
    if is_testable and variance > 0.0:
        degrees_of_freedom = variance**2 / sum(term**2 / degrees for term, degrees in terms)
        standard_error = math.sqrt(variance)
        low, high = stats.t.interval(_CONFIDENCE_LEVEL, degrees_of_freedom, loc=difference, scale=standard_error)
        interval = float(low), float(high)
        p_value = float(2 * stats.t.sf(abs(difference) / standard_error, degrees_of_freedom))
    elif is_testable and abs(difference) <= _ROUNDING:
        interval, p_value = (0.0, 0.0), 1.0
    return PairedTest(
        difference=difference,
        interval=interval,
        p_value=p_value,
        tested_tasks=tested_tasks,
        num_pairs=sum(map(len, differences)),
        has_zero_variance=is_testable and p_value is None,
    )


def _variance(seeds: Sequence[float]) -> float:
    return statistics.variance(seeds) if max(seeds) - min(seeds) > _ROUNDING else 0.0
