"""Statistics of scores: variance over seeds and over examples, confidence intervals, and tests of differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CONFIDENCE_LEVEL = 0.95
SIGNIFICANCE_LEVEL = 0.05
_ROUNDING = 1e-9  # maximum rounding error of a difference of two scores


@dataclass(frozen=True)
class VarianceTerm:
    """Independent part of the variance of an estimate.

    Attributes:
        variance: Estimated variance.
        degrees_of_freedom: Degrees of freedom of the variance estimate.
    """

    variance: float
    degrees_of_freedom: float


@dataclass(frozen=True, kw_only=True)
class DifferenceTest:
    """Test whether a difference of two scores is zero.

    Attributes:
        difference: First minus second score.
        interval: 95% confidence interval of the difference; None if the variance is unknown or zero. It contains 0 if
            and only if the p-value is at least 0.05.
        p_value: Two-sided p-value of the null hypothesis of no difference; None without an interval.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def mean_over_tasks(tasks: Sequence[Sequence[float]]) -> float:
    """Return the mean over tasks of the mean over the seeds of each task."""
    return statistics.fmean(map(statistics.fmean, tasks))


def sample_deviation(seeds: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1), or None for a single seed."""
    return statistics.stdev(seeds) if len(seeds) > 1 else None


def seed_terms(tasks: Sequence[Sequence[float]]) -> list[VarianceTerm]:
    """Estimate the variance of `mean_over_tasks` due to the seeds.

    With n_k seeds of variance s_k^2 in task k of K tasks, the variance is sum_k s_k^2 / (n_k K^2).

    Args:
        tasks: Scores of each task, one per seed.

    Returns:
        One term for each task with at least two seeds.
    """
    return [
        VarianceTerm(_variance(seeds) / len(seeds) / len(tasks) ** 2, len(seeds) - 1)
        for seeds in tasks
        if len(seeds) > 1
    ]


def example_term(groups: Sequence[NDArray[np.float64]]) -> VarianceTerm:
    """Estimate the variance of a mean over groups of means over examples, due to the choice of the examples.

    Args:
        groups: Values of the examples of each group, (N,) each. Groups of one example have no variance.
    """
    variance = sum(float(np.var(values, ddof=1)) / len(values) for values in groups if len(values) > 1)
    degrees = sum(len(values) - 1 for values in groups)
    return VarianceTerm(variance / len(groups) ** 2, max(1, degrees))


def accuracy_term(accuracies: Sequence[float], num_examples: Sequence[int]) -> VarianceTerm:
    """Estimate the variance of a mean of accuracies, due to the choice of the examples: sum p (1 - p) / (n - 1) / K^2.

    Args:
        accuracies: Accuracy of each of K groups, as a fraction.
        num_examples: Number of examples of each group.
    """
    variance = sum(p * (1 - p) / max(1, n - 1) for p, n in zip(accuracies, num_examples, strict=True))
    return VarianceTerm(variance / len(accuracies) ** 2, max(1, sum(num_examples) - len(num_examples)))


def combine_terms(terms: Sequence[VarianceTerm]) -> VarianceTerm:
    """Add independent variances.

        degrees of freedom = (sum_k v_k)^2 / sum_k (v_k^2 / f_k)

    Args:
        terms: Terms with variance v_k and degrees of freedom f_k, at least one of them.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 2 (1946).
    """
    variance = sum(term.variance for term in terms)
    if variance <= _ROUNDING**2:
        return VarianceTerm(0.0, sum(term.degrees_of_freedom for term in terms))
    return VarianceTerm(variance, variance**2 / sum(term.variance**2 / term.degrees_of_freedom for term in terms))


def t_interval(value: float, terms: Sequence[VarianceTerm]) -> tuple[float, float] | None:
    """Return the 95% confidence interval of an estimate from Student's t distribution.

    Args:
        value: Estimate.
        terms: Parts of its variance.

    Returns:
        Lower and upper bound, or None without a term.
    """
    if not terms:
        return None
    total = combine_terms(terms)
    if total.variance == 0.0:
        return value, value
    low, high = stats.t.interval(
        _CONFIDENCE_LEVEL, total.degrees_of_freedom, loc=value, scale=math.sqrt(total.variance)
    )
    return float(low), float(high)


def difference_test(difference: float, terms: Sequence[VarianceTerm]) -> DifferenceTest:
    """Test whether a difference of two scores is zero. For the seeds of two models, this is Welch's t-test.

    Args:
        difference: First minus second score.
        terms: Parts of the variance of the difference.
    """
    total = combine_terms(terms) if terms else None
    if total is None or (total.variance == 0.0 and abs(difference) > _ROUNDING):
        return DifferenceTest(difference=difference, interval=None, p_value=None)
    if total.variance == 0.0:
        return DifferenceTest(difference=difference, interval=(0.0, 0.0), p_value=1.0)
    statistic = abs(difference) / math.sqrt(total.variance)
    p_value = float(2 * stats.t.sf(statistic, total.degrees_of_freedom))
    return DifferenceTest(difference=difference, interval=t_interval(difference, terms), p_value=p_value)


def _variance(seeds: Sequence[float]) -> float:
    return statistics.variance(seeds) if max(seeds) - min(seeds) > _ROUNDING else 0.0
