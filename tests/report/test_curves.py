import math

import numpy as np
import pytest

from mosaicbert.report.curves import MAX_POINTS, column, data_wait_fraction, downsample, smooth


@pytest.mark.parametrize("length", [1, 3, MAX_POINTS, MAX_POINTS + 1, MAX_POINTS + 2, 4001, 70_000])
def test_downsampling_keeps_the_first_and_last_point_and_at_most_max_points(length):
    x = np.arange(length, dtype=float)
    selected, values = downsample(x, np.sin(x))
    assert (selected[0], selected[-1]) == (0, length - 1)
    assert len(selected) == len(values) <= MAX_POINTS
    assert np.array_equal(values, np.sin(selected))
    assert (np.diff(selected) > 0).all()


@pytest.mark.parametrize("index", [1, 34_567, 69_998])
def test_downsampling_keeps_a_spike_of_one_step(index):
    values = np.zeros(70_000)
    values[index] = 9.0
    assert 9.0 in downsample(np.arange(70_000.0), values)[1]


def test_downsampling_removes_non_finite_points():
    selected, values = downsample(np.array([1.0, 2.0, math.nan, 4.0]), np.array([5.0, math.nan, 5.0, math.inf]))
    assert (selected.tolist(), values.tolist()) == ([1.0], [5.0])


def test_null_and_missing_values_are_nan():
    assert np.array_equal(
        column([{"loss": 1}, {"loss": None}, {}, {"loss": math.nan}], "loss"), [1, *[math.nan] * 3], True
    )


def test_smoothing_skips_non_finite_values():
    smoothed = smooth(np.array([2.0, math.nan, 2.0, math.inf, 2.0]))
    assert np.array_equal(smoothed, [2.0, math.nan, 2.0, math.nan, 2.0], True)


def test_smoothing_reduces_noise_and_preserves_the_mean():
    noise = 5.0 + np.random.default_rng(0).normal(size=10_000)
    assert smooth(noise)[5000:].std() < 0.1
    assert abs(smooth(noise)[-1] - 5.0) < 0.3


def test_the_data_wait_is_a_fraction_of_the_time_since_the_previous_line():
    lines = [{"seconds": 4.0, "data_wait_seconds": 1.0}, {"seconds": 6.0, "data_wait_seconds": 1.0}]
    assert data_wait_fraction(lines).tolist() == [0.25, 0.5]
