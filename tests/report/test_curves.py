import math

import numpy as np
import pytest

from mosaicbert.report.curves import MOST_POINTS, column, smooth, thin, wait_share


@pytest.mark.parametrize("length", [1, 3, MOST_POINTS, MOST_POINTS + 1, MOST_POINTS + 2, 4001, 70_000])
def test_thinning_keeps_the_first_and_the_last_point_and_at_most_so_many(length):
    x = np.arange(length, dtype=float)
    kept, values = thin(x, np.sin(x))
    assert (kept[0], kept[-1]) == (0, length - 1)
    assert len(kept) == len(values) <= MOST_POINTS
    assert np.array_equal(values, np.sin(kept))
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("place", [1, 34_567, 69_998])
def test_thinning_keeps_a_spike_of_one_step(place):
    values = np.zeros(70_000)
    values[place] = 9.0
    assert 9.0 in thin(np.arange(70_000.0), values)[1]


def test_thinning_drops_points_that_are_no_numbers():
    kept, values = thin(np.array([1.0, 2.0, math.nan, 4.0]), np.array([5.0, math.nan, 5.0, math.inf]))
    assert (kept.tolist(), values.tolist()) == ([1.0], [5.0])


def test_null_and_missing_values_are_nan():
    assert np.array_equal(
        column([{"loss": 1}, {"loss": None}, {}, {"loss": math.nan}], "loss"), [1, *[math.nan] * 3], True
    )


def test_smoothing_passes_over_what_is_no_number():
    smoothed = smooth(np.array([2.0, math.nan, 2.0, math.inf, 2.0]))
    assert np.array_equal(smoothed, [2.0, math.nan, 2.0, math.nan, 2.0], True)


def test_smoothing_calms_noise_and_keeps_its_mean():
    noise = 5.0 + np.random.default_rng(0).normal(size=10_000)
    assert smooth(noise)[5000:].std() < 0.1
    assert abs(smooth(noise)[-1] - 5.0) < 0.3


def test_loader_waits_are_shares_of_the_time_since_the_line_before():
    lines = [{"seconds": 4.0, "data_wait_seconds": 1.0}, {"seconds": 6.0, "data_wait_seconds": 1.0}]
    assert wait_share(lines).tolist() == [0.25, 0.5]
