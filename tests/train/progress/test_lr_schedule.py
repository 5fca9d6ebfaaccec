import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mosaicbert.config import OptimizerConfig
from mosaicbert.train.progress.lr_schedule import learning_rate_fraction

_ROUNDING = 1e-12
_SCHEDULES = ["linear", "warmup_stable_decay"]
_shares = st.floats(0.0, 1.0)


@st.composite
def _optimizers(draw, schedules=tuple(_SCHEDULES)):
    warmup = draw(_shares)
    return OptimizerConfig(
        schedule=draw(st.sampled_from(schedules)),
        warmup_fraction=warmup,
        decay_fraction=draw(st.floats(0.0, 1.0 - warmup)),
        final_lr_fraction=draw(_shares),
    )


@given(optimizer=_optimizers(), done=_shares)
@example(OptimizerConfig(schedule="warmup_stable_decay", decay_fraction=1e-3, final_lr_fraction=0.0), 1.0)
def test_the_rate_stays_between_zero_and_its_peak(optimizer, done):
    assert 0.0 <= learning_rate_fraction(optimizer, done) <= 1.0


@given(optimizer=_optimizers(), share=_shares)
def test_the_rate_rises_evenly_from_zero_while_it_warms_up(optimizer, share):
    done = share * optimizer.warmup_fraction
    if done < optimizer.warmup_fraction:
        assert learning_rate_fraction(optimizer, done) * optimizer.warmup_fraction == pytest.approx(done, rel=_ROUNDING)


@given(optimizer=_optimizers())
@example(OptimizerConfig(warmup_fraction=0.0))
@example(OptimizerConfig(warmup_fraction=1.0))
@example(OptimizerConfig(schedule="warmup_stable_decay", warmup_fraction=1.0, decay_fraction=0.0))
def test_the_peak_is_reached_exactly_where_the_warm_up_ends(optimizer):
    end = optimizer.warmup_fraction
    if optimizer.schedule == "linear" or end <= 1.0 - optimizer.decay_fraction:  # else one rounding apart
        assert learning_rate_fraction(optimizer, end) == 1.0
    if end > 0.0:
        assert learning_rate_fraction(optimizer, math.nextafter(end, 0.0)) < 1.0


@given(optimizer=_optimizers(), pair=st.tuples(_shares, _shares))
def test_the_rate_never_falls_in_the_warm_up_and_never_rises_after_it(optimizer, pair):
    earlier, later = sorted(pair)
    rates = [learning_rate_fraction(optimizer, done) for done in (earlier, later)]
    if later < optimizer.warmup_fraction:
        assert rates[0] <= rates[1]
    if earlier >= optimizer.warmup_fraction:
        assert rates[0] >= rates[1] - _ROUNDING


@given(optimizer=_optimizers())
def test_the_last_step_has_the_final_rate(optimizer):
    falls = optimizer.decay_fraction > 1e-9 if optimizer.schedule == "warmup_stable_decay" else True
    if falls and optimizer.warmup_fraction < 1.0 - 1e-9:
        # A short decay is known only to the rounding of 1 - decay_fraction.
        assert learning_rate_fraction(optimizer, 1.0) == pytest.approx(optimizer.final_lr_fraction, abs=1e-6)


def test_the_papers_schedule_ends_at_a_fiftieth_of_the_peak():
    assert learning_rate_fraction(OptimizerConfig(), 1.0) == pytest.approx(0.02, rel=_ROUNDING)


@pytest.mark.parametrize("schedule", _SCHEDULES)
def test_without_a_warm_up_the_rate_begins_at_its_peak(schedule):
    optimizer = OptimizerConfig(schedule=schedule, warmup_fraction=0.0)
    assert learning_rate_fraction(optimizer, 0.0) == 1.0


@given(warmup=st.floats(0.0, 0.99), final=_shares, share=_shares)
def test_a_linear_rate_falls_in_proportion_to_what_is_done(warmup, final, share):
    optimizer = OptimizerConfig(warmup_fraction=warmup, final_lr_fraction=final)
    done = warmup + share * (1.0 - warmup)
    assert learning_rate_fraction(optimizer, done) == pytest.approx(1.0 + (final - 1.0) * share, abs=1e-9)


@given(optimizer=_optimizers(["warmup_stable_decay"]), share=_shares)
def test_a_stable_rate_stays_at_its_peak_until_the_decay(optimizer, share):
    begin, end = optimizer.warmup_fraction, 1.0 - optimizer.decay_fraction
    done = begin + share * (end - begin)
    if begin <= done <= end:
        assert learning_rate_fraction(optimizer, done) == 1.0


def test_a_stable_rate_decays_as_one_minus_a_square_root():
    optimizer = OptimizerConfig(
        schedule="warmup_stable_decay", warmup_fraction=0.1, decay_fraction=0.4, final_lr_fraction=0.2
    )
    rates = [learning_rate_fraction(optimizer, 0.6 + 0.4 * share) for share in (0.0, 0.25, 0.5625, 1.0)]
    assert rates == pytest.approx([1.0, 0.6, 0.4, 0.2])


def test_a_rate_without_a_decay_stays_at_its_peak_to_the_end():
    optimizer = OptimizerConfig(schedule="warmup_stable_decay", decay_fraction=0.0)
    assert learning_rate_fraction(optimizer, 1.0) == 1.0
