"""Spike detector: spikes, batches to skip, non-finite steps, and restored state."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import FaultConfig
from mosaicbert.train.faults.spike_detector import RollbackRequest, SpikeDetector

_FIRST_BATCH = 1000  # so that numbers of steps and of batches differ


def _detector(**config):
    return SpikeDetector(FaultConfig(**config))


def _feed(detector, values, *, first_step=1):
    """Check pairs of loss and gradient norm. Return the results up to the first rollback request."""
    results = []
    for step, (loss, norm) in enumerate(values, start=first_step):
        try:
            results.append(detector.check(step, _FIRST_BATCH + step, loss, norm))
        except RollbackRequest as cause:
            results.append((cause.step, cause.batches, cause.reason))
            break
    return results


def _are_fine(results):
    return results == [True] * len(results)


def _steady(steps, *, level=3.0, noise=0.02, seed=0):
    draw = random.Random(seed)
    return [(level * (1 + noise * draw.gauss(0, 1)), math.exp(0.3 * draw.gauss(0, 1))) for _ in range(steps)]


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.05], ids=["constant", "quiet", "noisy"])
@pytest.mark.parametrize("level", [0.3, 2.0, 10.8])
def test_a_steady_loss_is_never_a_spike(level, noise):
    assert _are_fine(_feed(_detector(), _steady(3000, level=level, noise=noise, seed=1)))


@pytest.mark.parametrize("level", [0.3, 2.0, 10.8])
def test_a_loss_that_doubles_rolls_the_run_back_and_skips_its_batch(level):
    detector = _detector()
    _feed(detector, _steady(250, level=level))
    with pytest.raises(RollbackRequest, match=f"loss {2 * level:.3f} after a median of ") as caught:
        detector.check(251, 1251, 2 * level, 1.0)
    assert (caught.value.step, caught.value.batches) == (251, [1251])


@given(deviations=st.floats(1.0, 50.0), excess=st.floats(0.9, 1.1).filter(lambda excess: abs(excess - 1.0) > 1e-6))
def test_a_spike_exceeds_the_median_by_the_configured_robust_deviations(deviations, excess):
    detector = _detector(spike_deviations=deviations, window_steps=8)
    for step in range(8):
        detector.check(step, step, 4.0 + (-1) ** step, 1.0)  # median 4, median absolute deviation 1
    loss = 4.0 + excess * deviations * 1.4826
    if excess < 1.0:
        assert detector.check(9, 9, loss, 1.0)
    else:
        with pytest.raises(RollbackRequest):
            detector.check(9, 9, loss, 1.0)


def test_a_loss_that_was_constant_may_increase_by_a_tenth():
    constant = [(3.0, 1.0)] * 200
    assert _are_fine(_feed(_detector(), [*constant, (3.29, 1.0)]))
    assert _feed(_detector(), [*constant, (3.31, 1.0)])[-1][:2] == (201, [1201])


def test_a_sudden_decrease_of_the_loss_is_not_a_spike():
    assert _are_fine(_feed(_detector(), [*_steady(200), (0.01, 1.0)]))


def test_batches_since_the_checkpoint_with_outlying_gradients_are_skipped_too():
    values = _steady(206)
    values[201] = (values[201][0], 100.0)
    values[203] = (values[203][0], 100.0)
    values[205] = (9.0, 1.0)
    *before, last = _feed(_detector(), values)
    assert _are_fine(before)
    assert last[:2] == (206, [1202, 1204, 1206])


def test_a_batch_from_before_the_checkpoint_is_not_skipped():
    detector = _detector()
    _feed(detector, [*_steady(200), (3.0, 100.0)])
    detector.clear_suspects()
    assert _feed(detector, [(3.0, 1.0), (9.0, 1.0)], first_step=202)[-1][:2] == (203, [1203])


def test_an_outlying_gradient_norm_alone_is_not_a_spike():
    assert _are_fine(_feed(_detector(), [*_steady(200), (3.0, 1e6)]))


@pytest.mark.parametrize("window", [8, 9, 100])
def test_no_spike_is_detected_before_half_a_window(window):
    half = window // 2
    early, late = ([*_steady(steps), (1e6, 1e6)] for steps in (half - 1, half))
    assert _are_fine(_feed(_detector(window_steps=window), early))
    assert _feed(_detector(window_steps=window), late)[-1][:2] == (half + 1, [1001 + half])


def test_only_the_losses_of_the_last_window_are_compared():
    values = [*_steady(100, level=30.0), *_steady(100, level=2.0)]
    assert _feed(_detector(), [*values, (10.0, 1.0)])[-1][:2] == (201, [1201])


@pytest.mark.parametrize("steps", [20, 100, 2000], ids=["steep", "window", "slow"])
def test_the_initial_decrease_of_the_loss_is_not_a_spike(steps):
    draw = random.Random(2)
    decreasing = [
        (6.0 + 4.8 * math.exp(-step / steps) + 0.1 * draw.gauss(0, 1), 1 + 9 * math.exp(-step / steps))
        for step in range(3 * steps + 200)
    ]
    assert _are_fine(_feed(_detector(), decreasing))


@pytest.mark.parametrize("invalid", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantity", ["loss", "norm"])
def test_a_non_finite_step_is_not_applied_and_not_added_to_the_window(quantity, invalid):
    detector, expected = _detector(), _detector()
    values = _steady(60)
    _feed(detector, values[:30])
    pair = (invalid, 1.0) if quantity == "loss" else (3.0, invalid)
    assert detector.check(31, 1031, *pair) is False
    _feed(detector, values[30:])
    _feed(expected, values)
    assert detector.num_skipped == 1
    assert detector.state_dict() == expected.state_dict() | {"num_skipped": 1}


@pytest.mark.parametrize("limit", [1, 10])
def test_too_many_non_finite_steps_in_a_row_roll_the_run_back_and_skip_their_batches(limit):
    results = _feed(_detector(max_skipped_steps=limit), [(math.nan, 1.0)] * (limit + 5))
    assert results[:-1] == [False] * limit
    assert results[-1][:2] == (limit + 1, list(range(1001, 1002 + limit)))


def test_a_finite_step_resets_the_count_of_non_finite_steps():
    row = [(math.nan, 1.0)] * 10
    detector = _detector(max_skipped_steps=10)
    results = _feed(detector, [*row, (3.0, 1.0), *row])
    assert results == [False] * 10 + [True] + [False] * 10
    assert detector.num_skipped == 20


_values = st.tuples(
    st.sampled_from([1.9, 2.0, 2.0, 2.1, 5.0, math.nan, math.inf]), st.sampled_from([0.9, 1.0, 1.1, 40.0, math.nan])
)


@given(values=st.lists(_values, max_size=60), num_before=st.integers(0, 60), is_used=st.booleans())
def test_a_restored_detector_makes_the_same_decisions(values, num_before, is_used):
    config = {"window_steps": 8, "max_skipped_steps": 2}
    detector, restored = _detector(**config), _detector(**config)
    if is_used:
        _feed(restored, _steady(8))
    results = _feed(detector, values[:num_before])
    if results and isinstance(results[-1], tuple):
        return
    detector.clear_suspects()
    restored.load_state_dict(json.loads(json.dumps(detector.state_dict(), allow_nan=False)))
    assert _feed(restored, values[num_before:]) == _feed(detector, values[num_before:])
    assert restored.state_dict() == detector.state_dict()


def test_the_state_is_a_copy():
    detector = _detector()
    _feed(detector, _steady(5))
    before = detector.state_dict()
    copy = json.loads(json.dumps(before))
    _feed(detector, [(math.nan, 1.0), (3.0, 1.0)])
    assert before == copy
