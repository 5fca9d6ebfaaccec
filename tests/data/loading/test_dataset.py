import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.dataset import EvalDataset, TrainDataset
from mosaicbert.data.loading.sample_order import Group, order
from tests.data.loading.simulated import SimulatedStore, draw_seqlens, make_collator, originals


def _train_steps(collator, samples_per_step, num_steps, mask_rate=0.3, **fields):
    groups = [Group(first_sample=0, num_samples=collator.store.num_samples, weight=1.0)]
    return TrainDataset(
        collator,
        groups=groups,
        first_sample=lambda batch: batch * samples_per_step,
        num_steps=num_steps,
        mask_rate=lambda _: mask_rate,
        **fields,
    )


def _growing_steps(collator, num_steps, **fields):
    """Create a dataset with batches of 1, 2, 3, ... samples."""
    steps = _train_steps(collator, 1, num_steps, **fields)
    steps.first_sample = lambda batch: batch * (batch + 1) // 2
    return steps


@pytest.fixture(scope="module")
def truncated():
    """Return micro-batches of the first of eight ranks with the batch size of the paper and truncated texts."""
    collator = make_collator(SimulatedStore(10**7, draw_seqlens(5, 128)), world_size=8, micro_batch_tokens=16_384)
    dataset = _train_steps(collator, samples_per_step=4096, num_steps=200)
    return [batch for step in dataset for batch in step.micro_batches]


def test_two_hundred_steps_have_at_most_16_shapes(truncated):
    assert len({batch.shape for batch in truncated}) <= 16


def test_micro_batches_are_99_percent_full(truncated):
    assert sum(batch.num_tokens for batch in truncated) > 0.99 * sum(batch.shape[0] for batch in truncated)


def test_every_step_has_the_given_number_of_samples():
    dataset = _train_steps(
        make_collator(SimulatedStore(1000, draw_seqlens(3.5, 128))), samples_per_step=100, num_steps=13
    )
    assert [sum(batch.num_sequences for batch in step.micro_batches) for step in dataset] == [100] * 13


def test_steps_follow_the_sample_order():
    store = SimulatedStore(1000, np.array([5]))
    list(_train_steps(make_collator(store), samples_per_step=64, num_steps=40))
    assert np.concatenate(store.requests).tolist() == order(np.arange(64 * 40), 1000, 17)[1].tolist()


def test_an_epoch_can_end_within_a_step():
    store = SimulatedStore(50, np.array([9]))
    list(_train_steps(make_collator(store), samples_per_step=40, num_steps=5))
    read = np.concatenate(store.requests)
    assert [sorted(epoch.tolist()) for epoch in np.split(read, 4)] == [list(range(50))] * 4


@pytest.mark.parametrize("number", [200_000, 1_000_000], ids=["first-epoch", "fifth-epoch-beyond-2^31"])
def test_a_run_over_a_billion_samples_resumes_with_the_samples_of_its_step(number):
    store = SimulatedStore(10**9, draw_seqlens(5, 128))
    collator = make_collator(store, world_size=8, micro_batch_tokens=16_384)
    step = next(iter(_train_steps(collator, 4096, num_steps=2_000_000, first_step=number)))
    assert step.batch == number
    samples = order(np.arange(number * 4096, (number + 1) * 4096), 10**9, 17)[1]
    assert store.requests == [samples.tolist()]
    expected = {tuple(store.document(sample).tolist()) for sample in samples.tolist()}
    assert {tuple(document[1:-1]) for batch in step.micro_batches for document in originals(batch)} <= expected


@pytest.mark.parametrize("first_step", [0, 1, 7, 39, 40, 41])
def test_steps_range_from_the_first_step_to_the_last(first_step):
    store = SimulatedStore(1000, np.array([5]))
    steps = list(_train_steps(make_collator(store), samples_per_step=64, num_steps=40, first_step=first_step))
    assert [step.batch for step in steps] == list(range(first_step, 40))
    positions = np.arange(64 * min(first_step, 40), 64 * 40)
    read = np.concatenate([np.array([], dtype=np.int64), *store.requests])
    assert read.tolist() == order(positions, 1000, 17)[1].tolist()


def test_a_dataset_without_a_number_of_steps_is_endless():
    store = SimulatedStore(100, np.array([5]))
    steps = itertools.islice(
        _train_steps(make_collator(store), samples_per_step=64, num_steps=None, first_step=10**6), 50
    )
    assert [step.batch for step in steps] == list(range(10**6, 10**6 + 50))


@settings(max_examples=25)
@given(
    skipped_batches=st.sets(st.integers(0, 50), max_size=20),
    first_step=st.integers(0, 12),
    num_steps=st.none() | st.integers(0, 30),
)
def test_steps_use_the_remaining_batches_in_order(skipped_batches, first_step, num_steps):
    store = SimulatedStore(1000, np.array([5]))
    steps = _train_steps(make_collator(store), 4, num_steps, first_step=first_step, skipped_batches=skipped_batches)
    batches = [step.batch for step in itertools.islice(steps, 40)]
    remaining = [batch for batch in range(200) if batch not in skipped_batches]
    assert batches == remaining[first_step : first_step + 40 if num_steps is None else num_steps]
    assert store.requests == [order(np.arange(4 * batch, 4 * batch + 4), 1000, 17)[1].tolist() for batch in batches]


@pytest.mark.parametrize("skipped_batches", [(3, 4, 0), [4, 0, 3], {0, 3, 4}, frozenset((0, 3, 4))], ids=repr)
def test_skipped_batches_are_accepted_in_any_order(skipped_batches):
    steps = _train_steps(
        make_collator(SimulatedStore(100, np.array([5]))), 4, num_steps=4, skipped_batches=skipped_batches
    )
    assert [step.batch for step in steps] == [1, 2, 5, 6]


def test_a_batch_is_collated_identically_after_skipped_batches():
    collator = make_collator(SimulatedStore(1000, draw_seqlens(3.5, 128)))
    skipping = _train_steps(collator, 64, num_steps=10, skipped_batches=(2, 5))
    complete = _train_steps(collator, 64, num_steps=12)
    for step, batch in enumerate((0, 1, 3, 4, 6, 7)):
        assert skipping.batch_of(step) == batch
        actual, expected = skipping[step].micro_batches[0], complete[batch].micro_batches[0]
        assert torch.equal(actual.input_ids, expected.input_ids)
        assert torch.equal(actual.labels, expected.labels)


def test_mask_rates_follow_the_steps_after_skipped_batches():
    steps = _train_steps(make_collator(SimulatedStore(1000, np.array([9]))), 64, num_steps=4, skipped_batches=(1, 2))
    steps.mask_rate = lambda step: [0.05, 0.10, 0.15, 0.20][step]
    assert [(step.batch, step.mask_rate) for step in steps] == [(0, 0.05), (3, 0.10), (4, 0.15), (5, 0.20)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_sizes_are_differences_of_first_samples(world_size):
    store = SimulatedStore(1000, draw_seqlens(3.5, 128))
    ranks = [_growing_steps(make_collator(store, rank, world_size), 40, first_step=2) for rank in range(world_size)]
    for number, steps in enumerate(zip(*ranks, strict=True), start=2):
        assert {step.global_num_samples for step in steps} == {number + 1}
        assert sum(batch.num_sequences for step in steps for batch in step.micro_batches) == number + 1


def test_an_epoch_uses_each_sample_once_with_growing_batches():
    store = SimulatedStore(300, np.array([9]))
    list(_growing_steps(make_collator(store), 48))
    read = np.concatenate(store.requests)
    epochs = [read[first : first + 300].tolist() for first in (0, 300, 600, 900)]
    assert [sorted(epoch) for epoch in epochs[:3]] == [list(range(300))] * 3
    assert len(epochs[3]) == len(set(epochs[3])) == 48 * 49 // 2 - 900


def test_an_evaluation_subset_is_uniform_over_the_split():
    store = SimulatedStore(100_000, np.array([9]))
    list(EvalDataset(make_collator(store), max_samples=2000, mask_rate=0.15))
    read = np.concatenate(store.requests)
    assert len(read) == len(set(read.tolist())) == 2000
    assert stats.chisquare(np.histogram(read, bins=20, range=(0, 100_000))[0]).pvalue > 1e-3


@pytest.mark.parametrize("num_samples, max_samples", [(5000, 5000), (5000, 9000), (1023, 1023), (1, 1)])
def test_an_evaluation_of_the_whole_split_uses_each_sample_once(num_samples, max_samples):
    store = SimulatedStore(num_samples, np.array([9]))
    steps = list(EvalDataset(make_collator(store), max_samples=max_samples, mask_rate=0.15))
    assert len(steps) == max(1, num_samples // 1024)
    assert sorted(np.concatenate(store.requests).tolist()) == list(range(num_samples))


def test_all_ranks_evaluate_the_same_number_of_non_empty_steps():
    store = SimulatedStore(5000, draw_seqlens(3.5, 128))
    steps = [list(EvalDataset(make_collator(store, rank, 7), max_samples=2100, mask_rate=0.15)) for rank in range(7)]
    assert [len(steps) for steps in steps] == [2] * 7
    assert min(len(step.micro_batches) for steps in steps for step in steps) > 0


def test_fewer_validation_samples_than_processes_are_rejected():
    with pytest.raises(ValueError, match="must be at least 4, the number of processes, got 3"):
        EvalDataset(make_collator(SimulatedStore(3, np.array([9])), world_size=4), max_samples=100, mask_rate=0.15)
