"""Columns of metric lines, smoothed and thinned, so that a long run draws as quickly as a short one."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

MOST_POINTS = 2000  # of a curve: more than a panel has pixels
_LEAST_SPAN = 10  # values that the running mean looks back over
_SPAN_SHARE = 0.01  # of a long run's values
_EARLY_SHARE = 0.1  # of the values so far, while they are few


def column(lines: list[dict[str, Any]], name: str) -> Numbers:
    """One value per line; NaN where it is null or missing."""
    values = (line.get(name) for line in lines)
    return np.array([value if isinstance(value, (int, float)) else math.nan for value in values], dtype=np.float64)


def wait_share(training: list[dict[str, Any]]) -> Numbers:
    """The share of training time that the loop waited for the loader, from each line to the next."""
    elapsed = np.diff(column(training, "seconds"), prepend=0.0)
    return column(training, "data_wait_seconds") / np.where(elapsed > 0, elapsed, math.nan)


def smooth(values: Numbers) -> Numbers:
    """Running mean that looks back over a tenth of the values so far, and at most a hundredth of all or ten.

    So it follows the steep first steps and is calm later. NaN is passed over and stays NaN.
    """
    longest = max(_LEAST_SPAN, _SPAN_SHARE * len(values))
    means: list[float] = []
    mean = 0.0
    seen = 0
    for value in values.tolist():
        if math.isfinite(value):
            mean += (value - mean) / min(longest, 1 + _EARLY_SHARE * seen)
            seen += 1
            means.append(mean)
        else:
            means.append(math.nan)
    return np.array(means, dtype=np.float64)


def thin(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """At most MOST_POINTS of the finite points, in order: the first, the last, and each stretch's extremes.

    A spike of a single step is an extreme of its stretch, so it is still seen.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) <= MOST_POINTS:
        return x, y
    inner = y[1:-1]
    width = math.ceil(len(inner) / (MOST_POINTS // 2 - 1))
    stretches = np.pad(inner, (0, -len(inner) % width), mode="edge").reshape(-1, width)
    first = 1 + width * np.arange(len(stretches))
    extremes = [first + stretches.argmin(axis=1), first + stretches.argmax(axis=1)]
    kept = np.unique(np.concatenate([[0], *extremes, [len(y) - 1]]))
    return x[kept], y[kept]
