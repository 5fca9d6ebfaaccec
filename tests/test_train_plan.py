import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mosaicbert.config import DataConfig, Duration, SourceConfig, TrainConfig
from mosaicbert.train_plan import TrainPlan, TrainPosition, has_passed

_DATA = DataConfig(sources={"text": SourceConfig(path="text.jsonl")})
_MAX_NUM_SIZES = 9  # eight warmup sizes and the final size


def _plan(duration, tokens_per_sample=100.0, batch=10, initial=None, warmup=None, **data):
    train = TrainConfig(
        duration=duration, global_batch_samples=batch, initial_batch_samples=initial, batch_warmup_tokens=warmup
    )
    return TrainPlan(replace(_DATA, **data), train, tokens_per_sample)


def _sizes(plan, num_batches):
    return np.diff([plan.first_sample(batch) for batch in range(num_batches + 1)])


def _batches_until_full(plan, last):
    """Return the number of batches before the first full batch."""
    batch = 0
    while plan.first_sample(batch + 1) - plan.first_sample(batch) < last:
        batch += 1
    return batch


@st.composite
def growing(draw):
    """Draw the fields of a batch size warmup over at most a few hundred steps."""
    last = draw(st.integers(1, 5000))
    first = draw(st.integers(1, last))
    tokens_per_sample = draw(st.floats(3.0, 1000.0))
    warmup = max(1, round(draw(st.floats(0.0, 300.0)) * first * tokens_per_sample))
    return {"batch": last, "initial": first, "warmup": warmup, "tokens_per_sample": tokens_per_sample}


@pytest.mark.parametrize(
    "duration, steps",
    [
        ("7 steps", 7),
        ("70 samples", 7),
        ("79 samples", 7),
        ("80 samples", 8),
        ("10 samples", 1),
        ("7000 tokens", 7),  # 100 tokens per sample, 10 samples per batch
        ("7001 tokens", 8),
        ("6999 tokens", 7),
        ("1 tokens", 1),
        ("30min", None),
    ],
)
def test_the_number_of_steps_is_rounded_down_for_samples_and_up_for_tokens(duration, steps):
    assert _plan(duration).num_steps == steps


def test_tokens_are_converted_by_the_mean_sample_length():
    assert _plan("7000 tokens", tokens_per_sample=50.0).num_steps == 14


def test_batches_of_constant_size_are_consecutive():
    assert [_plan("30min").first_sample(batch) for batch in range(5)] == [0, 10, 20, 30, 40]


def test_the_run_of_the_paper_has_70_000_steps():
    assert _plan("286_720_000 samples", batch=4096).num_steps == 70_000


@given(fields=growing())
def test_a_growing_batch_never_shrinks_and_has_few_sizes_up_to_the_full_size(fields):
    plan = _plan("1 steps", **fields)
    end = _batches_until_full(plan, fields["batch"])
    sizes = _sizes(plan, end + 3)
    assert sizes[0] == fields["initial"]
    assert (sizes[end:] == fields["batch"]).all()
    assert (np.diff(sizes) >= 0).all()
    assert sizes.min() > 0
    assert len(set(sizes.tolist())) <= _MAX_NUM_SIZES


@given(fields=growing())
def test_the_warmup_length_is_exact_to_one_batch_of_each_size(fields):
    # With this difference all warmup sizes are distinct and smaller than the final size.
    assume(fields["batch"] >= fields["initial"] + 16)
    plan = _plan("1 steps", **fields)
    end = _batches_until_full(plan, fields["batch"])
    samples = plan.first_sample(end)
    expected = fields["warmup"] / fields["tokens_per_sample"]
    assert abs(samples - expected) <= sum(set(_sizes(plan, end).tolist()))


@pytest.mark.parametrize("warmup, batches", [(1, 8), (240_000, 153)], ids=["minimum-warmup", "from-10-to-26"])
def test_a_growing_batch_has_eight_warmup_sizes_each_for_an_eighth_of_the_samples(warmup, batches):
    plan = _plan("1 steps", batch=26, initial=10, warmup=warmup)  # 100 tokens per sample
    sizes = _sizes(plan, batches)
    assert sorted(set(sizes.tolist())) == list(range(10, 26, 2))
    assert plan.first_sample(batches + 1) - plan.first_sample(batches) == 26
    for size in set(sizes.tolist()):
        assert (sizes == size).sum() == max(1, round(warmup / 100 / 8 / size))


def test_a_batch_with_equal_initial_and_final_size_is_constant():
    plan = _plan("1 steps", initial=10, warmup=10_000)
    assert set(_sizes(plan, 50).tolist()) == {10}


@given(fields=growing(), samples=st.integers(0, 10**6), data=st.data())
def test_the_number_of_batches_within_samples_counts_complete_batches(fields, samples, data):
    plan = _plan("1 steps", **fields)
    # Off-by-one errors occur at the boundaries of batches.
    boundary = plan.first_sample(data.draw(st.integers(0, 500)))
    for number in (samples, boundary, boundary + 1, max(0, boundary - 1)):
        batches = plan._num_batches_within(number)
        assert plan.first_sample(batches) <= number < plan.first_sample(batches + 1)


@given(fields=growing(), data=st.data())
def test_a_run_in_samples_ends_with_the_last_complete_batch_of_a_growing_batch(fields, data):
    samples = data.draw(st.integers(fields["initial"], 10**6))
    plan = _plan(f"{samples} samples", **fields)
    assert plan.num_steps >= 1
    assert plan.first_sample(plan.num_steps) <= samples < plan.first_sample(plan.num_steps + 1)


@given(fields=growing(), data=st.data())
def test_a_run_in_tokens_is_expected_to_end_with_the_batch_that_reaches_them(fields, data):
    tokens = data.draw(st.integers(1, 10**8))
    plan = _plan(f"{tokens} tokens", **fields)
    expected = math.ceil(tokens / fields["tokens_per_sample"])
    assert plan.first_sample(plan.num_steps - 1) < expected <= plan.first_sample(plan.num_steps)


def _walk(plan, seconds_per_step=0.7, tokens_per_sample=99):
    """Yield the positions of a run from its start to its end."""
    position = TrainPosition()
    yield position
    while not plan.is_done(position):
        samples = plan.first_sample(position.steps + 1)
        position = TrainPosition(
            steps=position.steps + 1,
            samples=samples,
            tokens=samples * tokens_per_sample,
            seconds=(position.steps + 1) * seconds_per_step,
        )
        yield position


@pytest.mark.parametrize(
    "batch", [{}, {"batch": 40, "initial": 5, "warmup": 20_000}], ids=["constant-batch", "growing-batch"]
)
@pytest.mark.parametrize(
    "duration", ["40 steps", "1234 samples", "100_000 tokens", "19s", "1 steps", "40 samples", "1 tokens", "0.1s"]
)
def test_the_completed_fraction_increases_from_0_to_exactly_1(duration, batch):
    plan = _plan(duration, **batch)
    fractions = [plan.fraction_done(position) for position in _walk(plan)]
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert (np.diff(fractions) > 0).all()


@pytest.mark.parametrize("unit", ["samples", "tokens", "s"])
def test_the_completed_fraction_uses_the_unit_of_the_duration(unit):
    position = TrainPosition(steps=1, samples=30, tokens=600, seconds=9000.0)
    plan = _plan(f"12000 {unit}")
    assert plan.fraction_done(position) == {"samples": 30, "tokens": 600, "s": 9000}[unit] / 12_000


@pytest.mark.parametrize(
    "duration, before_end, end",
    [
        ("7 steps", {"steps": 6}, {"steps": 7}),
        ("79 samples", {"steps": 6, "samples": 69}, {"steps": 7, "samples": 70}),
        ("7000 tokens", {"steps": 99, "tokens": 6999}, {"steps": 1, "tokens": 7000}),
        ("1min", {"steps": 99, "seconds": 59.999}, {"steps": 1, "seconds": 60.0}),
    ],
)
def test_a_run_is_done_exactly_when_its_duration_is_reached(duration, before_end, end):
    plan = _plan(duration)
    assert not plan.is_done(TrainPosition(**before_end))
    assert plan.is_done(TrainPosition(**end))


def test_a_run_is_done_at_every_position_beyond_its_end():
    for duration in ("7 steps", "70 samples", "7000 tokens", "7s"):
        plan, beyond = _plan(duration), TrainPosition(steps=8, samples=80, tokens=8000, seconds=8.0)
        assert plan.is_done(beyond)
        assert plan.fraction_done(beyond) == 1.0


@given(
    first=st.floats(0.001, 0.999),
    last=st.floats(0.001, 0.999),
    steps=st.integers(2, 10_000),
    unit=st.sampled_from(["steps", "samples", "tokens"]),
)
def test_the_mask_rate_of_the_last_step_is_the_final_mask_rate(first, last, steps, unit):
    size = {"steps": 1, "samples": 10, "tokens": 1000}[unit]
    plan = _plan(f"{steps * size} {unit}", mask_rate=first, final_mask_rate=last)
    assert plan.num_steps == steps
    assert plan.mask_rate(0) == first
    assert plan.mask_rate(steps - 1) == last


def test_the_mask_rate_changes_linearly_from_the_first_to_the_last_step():
    plan = _plan("50 samples", mask_rate=0.30, final_mask_rate=0.10)
    assert [plan.mask_rate(step) for step in range(5)] == pytest.approx([0.30, 0.25, 0.20, 0.15, 0.10])


def test_the_mask_rate_is_constant_beyond_the_expected_number_of_steps():
    plan = _plan("5000 tokens", mask_rate=0.30, final_mask_rate=0.15)
    assert plan.mask_rate(5) == plan.mask_rate(100) == plan.mask_rate(4)


@pytest.mark.parametrize("duration", ["5 steps", "30min"])
def test_the_mask_rate_is_constant_without_a_final_mask_rate(duration):
    plan = _plan(duration, mask_rate=0.30)
    assert {plan.mask_rate(step) for step in (0, 1, 4, 1000)} == {0.30}


def _positions(field, counts):
    return [TrainPosition(**{field: count}) for count in counts]


@given(
    interval=st.integers(1, 10**6),
    strides=st.lists(st.integers(0, 10**6), max_size=60),
    field=st.sampled_from(["steps", "samples", "tokens"]),
    start=st.integers(0, 10**12),
)
def test_an_interval_has_passed_exactly_in_steps_that_reach_or_cross_a_multiple(interval, strides, field, start):
    counts = np.cumsum([start, *strides]).tolist()
    positions = _positions(field, counts)
    for (before, after), (low, high) in zip(pairwise(positions), pairwise(counts), strict=True):
        contains_multiple = high // interval * interval > low
        assert has_passed(Duration(interval, field), before, after) == contains_multiple


@given(
    interval=st.floats(0.01, 1e5),
    strides=st.lists(st.floats(1e-4, 0.999), min_size=1, max_size=200),
    field=st.sampled_from(["seconds", "tokens"]),
)
def test_every_multiple_of_an_interval_passes_once_with_shorter_steps(interval, strides, field):
    if field == "tokens":
        interval = math.ceil(interval)
    counts = np.cumsum([0.0, *(interval * stride for stride in strides)])
    counts = np.floor(counts).astype(int) if field == "tokens" else counts
    positions = _positions(field, counts.tolist())
    passed = [has_passed(Duration(interval, field), *pair) for pair in pairwise(positions)]
    assert sum(passed) == math.floor(counts[-1] / interval)


@given(interval=st.integers(1, 1000), multiples=st.integers(1, 20))
def test_an_interval_in_steps_passes_at_its_multiples(interval, multiples):
    steps = [step for step in range(1, interval * multiples + 1) if _has_passed_at(interval, step)]
    assert steps == [interval * number for number in range(1, multiples + 1)]


def _has_passed_at(interval, step):
    return has_passed(Duration(interval, "steps"), TrainPosition(steps=step - 1), TrainPosition(steps=step))


def test_a_position_is_counted_in_each_unit():
    position = TrainPosition(steps=1, samples=2, tokens=3, seconds=4.5)
    assert [position.count(unit) for unit in ("steps", "samples", "tokens", "seconds")] == [1, 2, 3, 4.5]


@pytest.mark.parametrize("duration, expected", [("7 steps", 70), ("79 samples", 70), ("7001 tokens", 80), ("7s", None)])
def test_the_number_of_samples_is_that_of_complete_batches(duration, expected):
    assert _plan(duration).num_samples == expected


@pytest.mark.parametrize("duration, expected", [("7 steps", 7), ("79 samples", 7), ("7001 tokens", None), ("7s", None)])
def test_the_number_of_steps_is_exact_only_for_steps_and_samples(duration, expected):
    assert _plan(duration).exact_num_steps == expected
