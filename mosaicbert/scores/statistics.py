"""Statistics over seeds: the mean of tasks, its bootstrap interval, and a paired test."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals
SIGNIFICANCE = 0.05
_RESAMPLES = 9_999
_RANDOM_STATE = 0  # the same scores give the same interval
_ROUNDING = 1e-9  # differences of scores from 0 to 100 that agree to this are the same but for fp64's rounding
_FEWEST_DEGREES = 2  # of freedom, in all tasks together: one is a single difference of two numbers


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """What the paired differences of two models say.

    Attributes:
        difference: mean over the tested tasks of the mean over seeds, first minus second.
        interval: 95%, of the difference; None with too few pairs, or with a difference that does not scatter.
        p_value: two-sided, of no difference; None likewise. The interval holds 0 where it is 0.05 or more.
        tested: indices of the tasks that have two pairs or more. The spread of the others is not known.
        num_pairs: differences in the tested tasks together.
        is_without_scatter: whether there are enough pairs, but those of a task all differ by the same.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    tested: tuple[int, ...]
    num_pairs: int
    is_without_scatter: bool = False


def mean_of(tasks: Sequence[Sequence[float]]) -> float:
    """The mean over tasks of the mean over each task's seeds."""
    return statistics.fmean(map(statistics.fmean, tasks))


def deviation_of(seeds: Sequence[float]) -> float | None:
    """The sample's standard deviation, with n - 1; None for a single seed."""
    return statistics.stdev(seeds) if len(seeds) > 1 else None


def interval_of(tasks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """A 95% interval of `mean_of`, by a bootstrap that draws seeds anew within each task (percentiles).

    The seeds of a task are spread by sqrt(n / (n - 1)) around their mean before they are drawn from, since a plain
    bootstrap of n values has a variance that is short by (n - 1) / n. A task with a single seed counts as a constant.

    Returns:
        Its ends, or None if no task has two seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13; the factor: Rao and Wu,
    Resampling inference with complex survey data, JASA 83 (1988).
    """
    several = [_spread(np.array(seeds)) for seeds in tasks if len(seeds) > 1]
    if not several:
        return None
    constant = sum(seeds[0] for seeds in tasks if len(seeds) == 1)

    def mean(*samples: Any, axis: int) -> Any:
        return (constant + sum(sample.mean(axis=axis) for sample in samples)) / len(tasks)

    found = stats.bootstrap(
        several,
        mean,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=_RANDOM_STATE,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _spread(seeds: Any) -> Any:
    return seeds.mean() + (seeds - seeds.mean()) * math.sqrt(len(seeds) / (len(seeds) - 1))


def paired_test(tasks: Sequence[Sequence[float]]) -> PairedTest:
    """Tests whether the mean over tasks of paired differences is zero: a paired t-test, stratified by task.

    Each task's differences scatter around a mean of the task's own, with a variance of its own, so a task that the
    second model wins does not hide one that the first wins by more. With n_k differences of variance s_k^2 in each of K
    tasks:

        variance of the difference = sum_k v_k,  v_k = s_k^2 / (n_k K^2)
        degrees of freedom = (sum_k v_k)^2 / sum_k (v_k^2 / (n_k - 1))

    Args:
        tasks: of each task the differences, one per seed.

    Source: Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 2 (1946).
    """
    tested = tuple(index for index, seeds in enumerate(tasks) if len(seeds) > 1)
    used = [tasks[index] for index in tested]
    parts = [(_variance(seeds) / len(seeds) / len(used) ** 2, len(seeds) - 1) for seeds in used]
    variance, difference = sum(part for part, _ in parts), mean_of(used or tasks)
    is_enough = sum(degrees for _, degrees in parts) >= _FEWEST_DEGREES
    interval, p_value = None, None
    if is_enough and variance > 0.0:
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        error = math.sqrt(variance)
        low, high = stats.t.interval(LEVEL, freedom, loc=difference, scale=error)
        interval, p_value = (float(low), float(high)), float(2 * stats.t.sf(abs(difference) / error, freedom))
    elif is_enough and abs(difference) <= _ROUNDING:
        interval, p_value = (0.0, 0.0), 1.0
    return PairedTest(
        difference=difference,
        interval=interval,
        p_value=p_value,
        tested=tested,
        num_pairs=sum(map(len, used)),
        is_without_scatter=is_enough and p_value is None,
    )


def _variance(seeds: Sequence[float]) -> float:
    return statistics.variance(seeds) if max(seeds) - min(seeds) > _ROUNDING else 0.0
