"""Learning rate schedules: range, warmup, peak, decay and final learning rate."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mosaicbert.config import OptimizerConfig
from mosaicbert.train.progress.lr_schedule import learning_rate_fraction

_ROUNDING = 1e-12
_SCHEDULES = ["linear", "warmup_stable_decay"]
_fractions = st.floats(0.0, 1.0)


@st.composite
def _optimizers(draw, schedules=tuple(_SCHEDULES)):
    warmup = draw(_fractions)
    return OptimizerConfig(
        schedule=draw(st.sampled_from(schedules)),
        warmup_fraction=warmup,
        decay_fraction=draw(st.floats(0.0, 1.0 - warmup)),
        final_lr_fraction=draw(_fractions),
    )


@given(optimizer=_optimizers(), fraction_done=_fractions)
@example(OptimizerConfig(schedule="warmup_stable_decay", decay_fraction=1e-3, final_lr_fraction=0.0), 1.0)
def test_the_learning_rate_is_between_zero_and_its_peak(optimizer, fraction_done):
    assert 0.0 <= learning_rate_fraction(optimizer, fraction_done) <= 1.0


@given(optimizer=_optimizers(), fraction=_fractions)
def test_the_learning_rate_increases_linearly_from_zero_during_warmup(optimizer, fraction):
    done = fraction * optimizer.warmup_fraction
    if done < optimizer.warmup_fraction:
        assert learning_rate_fraction(optimizer, done) * optimizer.warmup_fraction == pytest.approx(done, rel=_ROUNDING)


@given(optimizer=_optimizers())
@example(OptimizerConfig(warmup_fraction=0.0))
@example(OptimizerConfig(warmup_fraction=1.0))
@example(OptimizerConfig(schedule="warmup_stable_decay", warmup_fraction=1.0, decay_fraction=0.0))
def test_the_learning_rate_is_at_its_peak_exactly_when_warmup_ends(optimizer):
    end = optimizer.warmup_fraction
    if optimizer.schedule == "linear" or end <= 1.0 - optimizer.decay_fraction:  # otherwise they differ by rounding
        assert learning_rate_fraction(optimizer, end) == 1.0
    if end > 0.0:
        assert learning_rate_fraction(optimizer, math.nextafter(end, 0.0)) < 1.0


@given(optimizer=_optimizers(), pair=st.tuples(_fractions, _fractions))
def test_the_learning_rate_never_decreases_during_warmup_and_never_increases_after_it(optimizer, pair):
    earlier, later = sorted(pair)
    first, second = (learning_rate_fraction(optimizer, done) for done in (earlier, later))
    if later < optimizer.warmup_fraction:
        assert first <= second
    if earlier >= optimizer.warmup_fraction:
        assert first >= second - _ROUNDING


@given(optimizer=_optimizers())
def test_the_last_step_has_the_final_learning_rate(optimizer):
    decays = optimizer.decay_fraction > 1e-9 if optimizer.schedule == "warmup_stable_decay" else True
    if decays and optimizer.warmup_fraction < 1.0 - 1e-9:
        # A short decay is only as exact as the rounding of 1 - decay_fraction.
        assert learning_rate_fraction(optimizer, 1.0) == pytest.approx(optimizer.final_lr_fraction, abs=1e-6)


def test_the_schedule_of_the_paper_ends_at_a_fiftieth_of_the_peak():
    assert learning_rate_fraction(OptimizerConfig(), 1.0) == pytest.approx(0.02, rel=_ROUNDING)


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_without_warmup_the_learning_rate_starts_at_its_peak(schedule):
    optimizer = OptimizerConfig(schedule=schedule, warmup_fraction=0.0)
    assert learning_rate_fraction(optimizer, 0.0) == 1.0


@given(warmup=st.floats(0.0, 0.99), final=_fractions, fraction=_fractions)
def test_the_linear_schedule_decreases_in_proportion_to_the_fraction_done(warmup, final, fraction):
    optimizer = OptimizerConfig(warmup_fraction=warmup, final_lr_fraction=final)
    done = warmup + fraction * (1.0 - warmup)
    assert learning_rate_fraction(optimizer, done) == pytest.approx(1.0 + (final - 1.0) * fraction, abs=1e-9)


@given(optimizer=_optimizers(["warmup_stable_decay"]), fraction=_fractions)
def test_the_stable_schedule_is_constant_between_warmup_and_decay(optimizer, fraction):
    start, end = optimizer.warmup_fraction, 1.0 - optimizer.decay_fraction
    done = start + fraction * (end - start)
    if start <= done <= end:
        assert learning_rate_fraction(optimizer, done) == 1.0


def test_the_stable_schedule_decays_as_one_minus_a_square_root():
    optimizer = OptimizerConfig(
        schedule="warmup_stable_decay", warmup_fraction=0.1, decay_fraction=0.4, final_lr_fraction=0.2
    )
    rates = [learning_rate_fraction(optimizer, 0.6 + 0.4 * fraction) for fraction in (0.0, 0.25, 0.5625, 1.0)]
    assert rates == pytest.approx([1.0, 0.6, 0.4, 0.2])


def test_the_stable_schedule_without_decay_ends_at_its_peak():
    optimizer = OptimizerConfig(schedule="warmup_stable_decay", decay_fraction=0.0)
    assert learning_rate_fraction(optimizer, 1.0) == 1.0
