"""Statistics over seeds: the mean of tasks, its bootstrap interval, and a paired test."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals
SIGNIFICANCE = 0.05
_RESAMPLES = 9_999
_SIGN_FLIPS = 2**16  # tried one by one if there are no more than so many, else drawn
_RANDOM_STATE = 0  # the same scores give the same interval


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """What the paired differences of two models say.

    Attributes:
        difference: mean over tasks of the mean over seeds, first minus second.
        interval: of the difference, see `interval_of`.
        p_value: two-sided, of the differences being as likely positive as negative.
        num_pairs: differences in all tasks together.
        smallest_p: that so many pairs can give, which they do when all have one sign.
        is_exact: whether all sign flips were tried, not a sample of them.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float
    num_pairs: int
    smallest_p: float
    is_exact: bool

    @property
    def has_enough_pairs(self) -> bool:
        """Whether any differences of so many pairs could have been significant."""
        return self.smallest_p < SIGNIFICANCE


def mean_of(tasks: Sequence[Sequence[float]]) -> float:
    """The mean over tasks of the mean over each task's seeds."""
    return statistics.fmean(map(statistics.fmean, tasks))


def deviation_of(seeds: Sequence[float]) -> float | None:
    """The sample's standard deviation, with n - 1; None for a single seed."""
    return statistics.stdev(seeds) if len(seeds) > 1 else None


def interval_of(tasks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """A 95% interval of `mean_of`, by a bootstrap that draws seeds anew within each task (percentiles).

    A task with a single seed counts as a constant. With the few seeds that there are, such an interval is somewhat too
    narrow: it resamples a variance that is short by (n - 1) / n.

    Returns:
        Its ends, or None if no task has two seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    several = [np.array(seeds) for seeds in tasks if len(seeds) > 1]
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


def paired_test(tasks: Sequence[Sequence[float]]) -> PairedTest:
    """Tests whether the mean over tasks of paired differences is zero, by flipping the signs of the pairs.

    Args:
        tasks: of each task the differences, one per seed.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    differences = np.concatenate([np.array(seeds) for seeds in tasks])
    weights = np.concatenate([np.full(len(seeds), 1 / (len(seeds) * len(tasks))) for seeds in tasks])
    return PairedTest(
        difference=mean_of(tasks),
        interval=interval_of(tasks),
        p_value=_sign_flip_p(differences, weights),
        num_pairs=len(differences),
        smallest_p=2 / 2 ** len(differences),
        is_exact=2 ** len(differences) <= _SIGN_FLIPS,
    )


def _sign_flip_p(differences: Any, weights: Any) -> float:
    if len(differences) == 1:
        return 1.0  # both signs are as far from zero; scipy refuses a single observation

    def mean(sample: Any, axis: int) -> Any:
        return np.sum(sample * weights, axis=axis)

    found = stats.permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_SIGN_FLIPS,
        alternative="two-sided",
        rng=_RANDOM_STATE,
    )
    return float(found.pvalue)
