import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.dataset import EvalDataset, TrainDataset
from mosaicbert.data.loading.sample_order import Group, order
from tests.data.loading.simulated import SimulatedStore, lognormal, make_collator, originals


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
    """Batches of 1, 2, 3, ... samples."""
    steps = _train_steps(collator, 1, num_steps, **fields)
    steps.first_sample = lambda batch: batch * (batch + 1) // 2
    return steps


@pytest.fixture(scope="module")
def truncated():
    """Step after step of the paper's size, as the first of eight ranks does it: texts cut at 128 tokens."""
    collator = make_collator(SimulatedStore(10**7, lognormal(5, 128)), world_size=8, micro_batch_tokens=16_384)
    dataset = _train_steps(collator, samples_per_step=4096, num_steps=200)
    return [batch for step in dataset for batch in step.micro_batches]


def test_two_hundred_steps_have_a_handful_of_shapes(truncated):
    assert len({batch.shape for batch in truncated}) <= 16


def test_micro_batches_are_99_percent_full(truncated):
    assert sum(batch.num_tokens for batch in truncated) > 0.99 * sum(batch.shape[0] for batch in truncated)


def test_every_step_has_as_many_samples_as_the_recipe_says():
    dataset = _train_steps(make_collator(SimulatedStore(1000, lognormal(3.5, 128))), samples_per_step=100, num_steps=13)
    assert [sum(batch.num_sequences for batch in step.micro_batches) for step in dataset] == [100] * 13


def test_steps_take_the_samples_in_their_order():
    store = SimulatedStore(1000, np.array([5]))
    list(_train_steps(make_collator(store), samples_per_step=64, num_steps=40))
    assert np.concatenate(store.asked).tolist() == order(np.arange(64 * 40), 1000, 17)[1].tolist()


def test_an_epoch_may_end_within_a_step():
    store = SimulatedStore(50, np.array([9]))
    list(_train_steps(make_collator(store), samples_per_step=40, num_steps=5))
    read = np.concatenate(store.asked)
    assert [sorted(epoch.tolist()) for epoch in np.split(read, 4)] == [list(range(50))] * 4


@pytest.mark.parametrize("number", [200_000, 1_000_000], ids=["first-epoch", "fifth-epoch-beyond-2^31"])
def test_a_run_over_a_billion_samples_resumes_with_the_samples_of_its_step(number):
    store = SimulatedStore(10**9, lognormal(5, 128))
    collator = make_collator(store, world_size=8, micro_batch_tokens=16_384)
    step = next(iter(_train_steps(collator, 4096, num_steps=2_000_000, first_step=number)))
    assert step.batch == number
    samples = order(np.arange(number * 4096, (number + 1) * 4096), 10**9, 17)[1]
    assert store.asked == [samples.tolist()]
    wanted = {tuple(store.document(sample).tolist()) for sample in samples.tolist()}
    assert {tuple(found[1:-1]) for batch in step.micro_batches for found in originals(batch)} <= wanted


@pytest.mark.parametrize("first_step", [0, 1, 7, 39, 40, 41])
def test_steps_begin_at_the_first_step_and_go_on_to_the_last(first_step):
    store = SimulatedStore(1000, np.array([5]))
    steps = list(_train_steps(make_collator(store), samples_per_step=64, num_steps=40, first_step=first_step))
    assert [step.batch for step in steps] == list(range(first_step, 40))
    positions = np.arange(64 * min(first_step, 40), 64 * 40)
    read = np.concatenate([np.array([], dtype=np.int64), *store.asked])
    assert read.tolist() == order(positions, 1000, 17)[1].tolist()


def test_without_a_number_of_steps_they_never_end():
    store = SimulatedStore(100, np.array([5]))
    steps = itertools.islice(
        _train_steps(make_collator(store), samples_per_step=64, num_steps=None, first_step=10**6), 50
    )
    assert [step.batch for step in steps] == list(range(10**6, 10**6 + 50))


@settings(max_examples=25)
@given(
    skipped=st.sets(st.integers(0, 50), max_size=20),
    first_step=st.integers(0, 12),
    num_steps=st.none() | st.integers(0, 30),
)
def test_steps_take_the_batches_that_are_not_skipped_in_order(skipped, first_step, num_steps):
    store = SimulatedStore(1000, np.array([5]))
    steps = _train_steps(make_collator(store), 4, num_steps, first_step=first_step, skipped=skipped)
    found = [step.batch for step in itertools.islice(steps, 40)]
    remaining = [batch for batch in range(200) if batch not in skipped]
    assert found == remaining[first_step : first_step + 40 if num_steps is None else num_steps]
    assert store.asked == [order(np.arange(4 * batch, 4 * batch + 4), 1000, 17)[1].tolist() for batch in found]


@pytest.mark.parametrize("skipped", [(3, 4, 0), [4, 0, 3], {0, 3, 4}, frozenset((0, 3, 4))], ids=repr)
def test_the_skipped_batches_may_stand_in_any_order(skipped):
    steps = _train_steps(make_collator(SimulatedStore(100, np.array([5]))), 4, num_steps=4, skipped=skipped)
    assert [step.batch for step in steps] == [1, 2, 5, 6]


def test_a_step_behind_a_skipped_batch_is_made_as_it_would_have_been_later():
    collator = make_collator(SimulatedStore(1000, lognormal(3.5, 128)))
    skipping = _train_steps(collator, 64, num_steps=10, skipped=(2, 5))
    whole = _train_steps(collator, 64, num_steps=12)
    for step, batch in enumerate((0, 1, 3, 4, 6, 7)):
        assert skipping.batch_of(step) == batch
        (ours,), (theirs,) = ([made[number].micro_batches[0]] for made, number in ((skipping, step), (whole, batch)))
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_skipped_batch_leaves_the_mask_rates_with_the_steps():
    steps = _train_steps(make_collator(SimulatedStore(1000, np.array([9]))), 64, num_steps=4, skipped=(1, 2))
    steps.mask_rate = lambda step: [0.05, 0.10, 0.15, 0.20][step]
    assert [(step.batch, step.mask_rate) for step in steps] == [(0, 0.05), (3, 0.10), (4, 0.15), (5, 0.20)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_have_the_sizes_between_their_first_samples(world_size):
    store = SimulatedStore(1000, lognormal(3.5, 128))
    ranks = [_growing_steps(make_collator(store, rank, world_size), 40, first_step=2) for rank in range(world_size)]
    for number, steps in enumerate(zip(*ranks, strict=True), start=2):
        assert {step.global_samples for step in steps} == {number + 1}
        assert sum(batch.num_sequences for step in steps for batch in step.micro_batches) == number + 1


def test_an_epoch_uses_each_sample_once_while_batches_grow():
    store = SimulatedStore(300, np.array([9]))
    list(_growing_steps(make_collator(store), 48))
    read = np.concatenate(store.asked)
    epochs = [read[first : first + 300].tolist() for first in (0, 300, 600, 900)]
    assert [sorted(epoch) for epoch in epochs[:3]] == [list(range(300))] * 3
    assert len(epochs[3]) == len(set(epochs[3])) == 48 * 49 // 2 - 900


def test_a_part_of_a_split_is_evaluated_on_samples_from_all_over_it():
    store = SimulatedStore(100_000, np.array([9]))
    list(EvalDataset(make_collator(store), max_samples=2000, mask_rate=0.15))
    read = np.concatenate(store.asked)
    assert len(read) == len(set(read.tolist())) == 2000
    assert stats.chisquare(np.histogram(read, bins=20, range=(0, 100_000))[0]).pvalue > 1e-3


@pytest.mark.parametrize("num_samples, asked", [(5000, 5000), (5000, 9000), (1023, 1023), (1, 1)])
def test_a_whole_split_is_evaluated_once(num_samples, asked):
    store = SimulatedStore(num_samples, np.array([9]))
    made = list(EvalDataset(make_collator(store), max_samples=asked, mask_rate=0.15))
    assert len(made) == max(1, num_samples // 1024)
    assert sorted(np.concatenate(store.asked).tolist()) == list(range(num_samples))


def test_every_rank_evaluates_as_many_steps_and_none_without_a_micro_batch():
    store = SimulatedStore(5000, lognormal(3.5, 128))
    made = [list(EvalDataset(make_collator(store, rank, 7), max_samples=2100, mask_rate=0.15)) for rank in range(7)]
    assert [len(steps) for steps in made] == [2] * 7
    assert min(len(step.micro_batches) for steps in made for step in steps) > 0


def test_fewer_held_out_samples_than_processes_are_refused():
    with pytest.raises(ValueError, match="must be at least 4, the number of processes, got 3"):
        EvalDataset(make_collator(SimulatedStore(3, np.array([9])), world_size=4), max_samples=100, mask_rate=0.15)
