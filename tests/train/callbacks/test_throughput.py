"""Throughput: sizes of a step, and moving averages over the last steps of a session."""

import pytest
import torch

from mosaicbert.batch import StepBatch
from mosaicbert.train.callbacks.throughput import StepSizes, ThroughputMeter

_PEAK_FLOPS = 1e6


def _step():
    """Return a step of two micro-batches with capacity 8: documents of 3 and 2 tokens, and none."""
    cu_seqlens = torch.tensor([[0, 3, 5, 8], [0, 8, 8, 8]], dtype=torch.int32)
    return StepBatch(
        input_ids=torch.zeros(2, 8, dtype=torch.int64),
        cu_seqlens=cu_seqlens,
        max_seqlen=8,
        masked_indices=torch.zeros(2, 1, dtype=torch.int64),
        labels=torch.zeros(2, 1, dtype=torch.int64),
        num_tokens=(5, 0),
        num_sequences=(2, 0),
        num_masked=(1, 0),
        global_num_tokens=5,
        global_num_samples=2,
        global_num_masked=1,
        mask_rate=0.2,
    )


def _measure(meter, durations, *, first_step=1, seconds=0.0):
    """Add steps of 100 tokens and 1000 FLOPs, and measure after each."""
    for step, duration in enumerate(durations, start=first_step):
        seconds += duration
        meter.add(100, 1000.0)
        meter.measure(step, seconds)


def test_sizes_of_a_step_exclude_padding():
    sizes = StepSizes.of(_step())
    assert (sizes.num_tokens, sizes.squared_lengths) == (5, 3**2 + 2**2)
    assert (sizes.capacity, sizes.num_padded_tokens) == (16, 2 * 3)


def test_the_first_step_of_a_session_is_excluded_once_there_is_another():
    meter = ThroughputMeter(0, 0.0, _PEAK_FLOPS)
    _measure(meter, [50.0])
    assert meter.tokens_per_second == pytest.approx(100 / 50)
    _measure(meter, [0.5, 0.5], first_step=2, seconds=50.0)
    assert meter.seconds_per_step == pytest.approx(0.5)
    assert meter.tokens_per_second == pytest.approx(200)
    assert meter.mfu == pytest.approx(2000 / _PEAK_FLOPS)


def test_averages_cover_the_last_twenty_steps():
    meter = ThroughputMeter(0, 0.0, _PEAK_FLOPS)
    _measure(meter, [1.0] * 30 + [0.25] * 20)
    assert meter.tokens_per_second == pytest.approx(400)


def test_a_resumed_session_does_not_count_earlier_steps():
    meter = ThroughputMeter(1000, 500.0, _PEAK_FLOPS)
    _measure(meter, [9.0, 2.0], first_step=1001, seconds=500.0)
    assert meter.seconds_per_step == pytest.approx(2.0)
    assert meter.tokens_per_second == pytest.approx(50)


def test_pending_steps_are_included_in_the_next_measurement():
    meter = ThroughputMeter(0, 0.0, _PEAK_FLOPS)
    _measure(meter, [1.0])
    for _ in range(9):
        meter.add(100, 1000.0)
    _measure(meter, [10.0], first_step=11, seconds=1.0)
    assert meter.tokens_per_second == pytest.approx(100)
    assert meter.seconds_per_step == pytest.approx(1.0)
