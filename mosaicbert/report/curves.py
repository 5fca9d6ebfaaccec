"""Curves from metric lines: columns, smoothing and downsampling."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

MAX_POINTS = 2000  # maximum per curve, more than the width of a panel in pixels
_MIN_SPAN = 10  # number of values in the running mean
_SPAN_FRACTION = 0.01  # of all values of a long run
_EARLY_SPAN_FRACTION = 0.1  # of the previous values at the start of a run


def column(lines: list[dict[str, Any]], name: str) -> Numbers:
    """Return the values of one key, with NaN for null and missing values."""
    values = (line.get(name) for line in lines)
    return np.array([value if isinstance(value, (int, float)) else math.nan for value in values], dtype=np.float64)


def data_wait_fraction(training: list[dict[str, Any]]) -> Numbers:
    """Return the fraction of time spent waiting for the data loader since the previous line."""
    elapsed = np.diff(column(training, "seconds"), prepend=0.0)
    return column(training, "data_wait_seconds") / np.where(elapsed > 0, elapsed, math.nan)


def smooth(values: Numbers) -> Numbers:
    """Compute a running mean that follows the steep start of a curve.

    The span is a tenth of the previous values, up to 1% of all values or 10. Values that are not finite are skipped,
    and their means are NaN.
    """
    max_span = max(_MIN_SPAN, _SPAN_FRACTION * len(values))
    means: list[float] = []
    mean = 0.0
    num_finite = 0
    for value in values.tolist():
        if math.isfinite(value):
            mean += (value - mean) / min(max_span, 1 + _EARLY_SPAN_FRACTION * num_finite)
            num_finite += 1
            means.append(mean)
        else:
            means.append(math.nan)
    return np.array(means, dtype=np.float64)


def downsample(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """At most MOST_POINTS of the finite points, in order: the first, the last, and each stretch's extremes.

    A spike of a single step is an extreme of its segment, so it is preserved.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) <= MAX_POINTS:
        return x, y
    inner = y[1:-1]
    width = math.ceil(len(inner) / (MAX_POINTS // 2 - 1))
    segments = np.pad(inner, (0, -len(inner) % width), mode="edge").reshape(-1, width)
    first = 1 + width * np.arange(len(segments))
    extremes = [first + segments.argmin(axis=1), first + segments.argmax(axis=1)]
    selected = np.unique(np.concatenate([[0], *extremes, [len(y) - 1]]))
    return x[selected], y[selected]
