import itertools
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.collator import EvalDataset, MlmCollator, TrainDataset, deal, divide
from mosaicbert.data.loading.masking import Vocabulary, token_counters
from mosaicbert.data.loading.sample_order import Group, order

_SEQLENS = st.lists(st.integers(3, 128), min_size=1, max_size=200).map(np.array)
_ENTRIES = 1000
_PAD, _UNKNOWN, _CLS, _SEP, _MASK = range(5)
_VOCABULARY = Vocabulary(
    cls_id=_CLS,
    sep_id=_SEP,
    mask_id=_MASK,
    pad_id=_PAD,
    ordinary_ids=np.arange(5, _ENTRIES),
    is_special=np.arange(_ENTRIES) < 5,
)
_POOL = np.random.default_rng(3).integers(5, _ENTRIES, 100_000).astype(np.uint16)
_POOL[::50] = _UNKNOWN


@dataclass
class SimulatedStore:
    """A split of any size whose documents are computed when they are asked for."""

    num_samples: int
    seqlens: np.ndarray  # tokens of documents without [CLS] and [SEP]; sample n has the one at n, counted round
    asked: list = field(default_factory=list)

    def read(self, samples):
        self.asked.append(samples.tolist())
        return [self.document(sample) for sample in samples.tolist()]

    def document(self, sample):
        first = sample * 7919 % 99_000
        return _POOL[first : first + self.seqlens[sample % len(self.seqlens)]]


def _lognormal(mean, longest, number=50_000):
    return np.clip(np.random.default_rng(1).lognormal(mean, 1, number), 1, longest - 2).astype(int)


def _maker(store, rank=0, world_size=1, max_seq_len=128, micro_batch_tokens=1024, seed=17):
    return MlmCollator(
        store=store,
        vocabulary=_VOCABULARY,
        seed=seed,
        max_seq_len=max_seq_len,
        micro_batch_tokens=micro_batch_tokens,
        largest_mask_rate=0.3,
        rank=rank,
        world_size=world_size,
    )


def _make_all(store, samples, world_size, mask_rate=0.3, **fields):
    """What every rank does of a step over some samples."""
    epochs = np.zeros_like(samples)
    return [_maker(store, rank, world_size, **fields).make(epochs, samples, mask_rate) for rank in range(world_size)]


def _train_steps(maker, samples_per_step, num_steps, mask_rate=0.3, **fields):
    groups = [Group(first_sample=0, num_samples=maker.store.num_samples, weight=1.0)]
    return TrainDataset(
        maker,
        groups=groups,
        first_sample=lambda batch: batch * samples_per_step,
        num_steps=num_steps,
        mask_rate=lambda _: mask_rate,
        **fields,
    )


def _growing_steps(maker, num_steps, **fields):
    """Batches of 1, 2, 3, ... samples."""
    steps = _train_steps(maker, 1, num_steps, **fields)
    steps.first_sample = lambda batch: batch * (batch + 1) // 2
    return steps


def _originals(batch):
    """The documents of a micro-batch before they were masked."""
    input_ids = batch.input_ids.clone()
    input_ids[batch.masked_indices[: batch.num_masked]] = batch.labels[: batch.num_masked]
    ends = batch.cu_seqlens[: batch.num_sequences + 1].tolist()
    return [input_ids[first:end].tolist() for first, end in pairwise(ends)]


@pytest.fixture(scope="module")
def steps():
    """What eight ranks do of a step of 512 documents."""
    return _make_all(SimulatedStore(10_000, _lognormal(3.5, 128)), np.arange(512), world_size=8)


@pytest.fixture(scope="module")
def batches(steps):
    return [batch for step in steps for batch in step.micro_batches]


@pytest.fixture(scope="module")
def truncated():
    """Step after step of the paper's size, as the first of eight ranks does it: texts cut at 128 tokens."""
    maker = _maker(SimulatedStore(10**7, _lognormal(5, 128)), world_size=8, micro_batch_tokens=16_384)
    dataset = _train_steps(maker, samples_per_step=4096, num_steps=200)
    return [batch for step in dataset for batch in step.micro_batches]


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_a_step_is_divided_without_losing_or_repeating_a_sequence(seqlens, world_size, budget):
    parts = divide(seqlens, world_size, budget)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(seqlens)))


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_no_micro_batch_is_empty_or_above_the_budget(seqlens, world_size, budget):
    parts = divide(seqlens, world_size, budget)
    assert min(len(part) for part in parts) > 0
    assert max(seqlens[part].sum() for part in parts) <= budget


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_ranks_have_equally_many_micro_batches_unless_each_holds_one_sequence(seqlens, world_size, budget):
    parts = divide(seqlens, world_size, budget)
    assert len(parts) % world_size == 0 or len(parts) == len(seqlens)


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_every_rank_has_a_micro_batch_if_there_are_sequences_enough(seqlens, world_size, budget):
    assert len(divide(seqlens, world_size, budget)) >= min(world_size, len(seqlens))


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_micro_batches_are_as_few_as_dealing_allows(seqlens, world_size, budget):
    parts = divide(seqlens, world_size, budget)
    fewer = -(-len(parts) // world_size) - 1
    if fewer:
        hands = deal(seqlens, fewer * world_size)
        assert max(seqlens[hand].sum() for hand in hands) > budget


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_sequences_of_a_micro_batch_stand_longest_first(seqlens, world_size, budget):
    for part in divide(seqlens, world_size, budget):
        assert (np.diff(seqlens[part]) <= 0).all()


@given(seqlens=_SEQLENS, num_hands=st.integers(1, 40))
def test_hands_get_equal_numbers_of_sequences(seqlens, num_hands):
    counts = [len(hand) for hand in deal(seqlens, num_hands)]
    assert len(counts) == min(num_hands, len(seqlens))
    assert max(counts) - min(counts) <= 1


@given(seqlens=_SEQLENS, num_hands=st.integers(1, 40))
def test_hands_differ_by_no_more_than_the_longest_sequence(seqlens, num_hands):
    tokens = [seqlens[hand].sum() for hand in deal(seqlens, num_hands)]
    assert max(tokens) - min(tokens) <= seqlens.max()


@pytest.mark.parametrize(
    "seqlens, samples, budget",
    [(_lognormal(5, 128), 4096, 16_384), (_lognormal(3.5, 128), 4096, 16_384), (_lognormal(5, 512), 1024, 16_384)],
    ids=["mostly-cut-at-128", "mostly-shorter-than-128", "up-to-512"],
)
def test_the_rank_with_most_tokens_has_one_percent_more_than_the_mean_at_most(seqlens, samples, budget):
    for first in range(0, 10 * samples, samples):
        lengths = seqlens[first : first + samples] + 2
        parts = divide(lengths, 8, budget)
        tokens = [sum(lengths[part].sum() for part in parts[rank::8]) for rank in range(8)]
        assert max(tokens) <= 1.01 * np.mean(tokens)


@pytest.mark.parametrize("seqlens", [_lognormal(5, 128), _lognormal(3.5, 128)], ids=["mostly-cut", "mostly-shorter"])
def test_micro_batches_of_a_large_step_are_equally_long_but_for_a_few_tokens(seqlens):
    lengths = seqlens[:4096] + 2
    tokens = [lengths[part].sum() for part in divide(lengths, 8, 16_384)]
    assert max(tokens) - min(tokens) <= 8


def test_a_step_holds_each_of_its_samples_once_framed_and_in_full(batches):
    store = SimulatedStore(10_000, _lognormal(3.5, 128))
    wanted = [[_CLS, *store.document(sample).tolist(), _SEP] for sample in range(512)]
    assert sorted(document for batch in batches for document in _originals(batch)) == sorted(wanted)


def test_all_micro_batches_of_all_ranks_have_the_same_shape(batches):
    assert len({batch.shape for batch in batches}) == 1
    assert len(batches) > 8


def test_shapes_stay_within_the_budget(batches):
    assert {batch.shape[0] <= 1024 for batch in batches} == {True}


def test_a_shape_describes_the_tensors(batches):
    for batch in batches:
        tokens, sequences, masked = batch.shape
        assert [len(tensor) for tensor in (batch.input_ids, batch.cu_seqlens, batch.masked_indices, batch.labels)] == [
            tokens,
            sequences + 1,
            masked,
            masked,
        ]


def test_bounds_ascend_from_zero_to_the_last_token_in_int32(batches):
    for batch in batches:
        assert batch.cu_seqlens.dtype == torch.int32
        assert (batch.cu_seqlens[0], batch.cu_seqlens[-1]) == (0, batch.shape[0])
        assert (batch.cu_seqlens.diff() >= 0).all()


def test_tokens_positions_and_labels_are_int64(batches):
    for batch in batches:
        assert {tensor.dtype for tensor in (batch.input_ids, batch.masked_indices, batch.labels)} == {torch.int64}


def test_no_document_is_longer_than_max_seqlen_says(batches):
    for batch in batches:
        assert batch.cu_seqlens.diff().max() <= batch.max_seqlen == 128


def test_real_documents_stand_before_filler_and_are_not_empty(batches):
    for batch in batches:
        seqlens = batch.cu_seqlens.diff()
        assert seqlens[: batch.num_sequences].min() >= 3
        assert batch.cu_seqlens[batch.num_sequences] == batch.num_tokens


def test_filler_documents_are_full_then_shorter_then_empty(batches):
    for batch in batches:
        filler = batch.cu_seqlens.diff()[batch.num_sequences :].tolist()
        assert filler == sorted(filler, reverse=True)
        full, rest = divmod(batch.shape[0] - batch.num_tokens, 128)
        assert [length for length in filler if length] == [128] * full + [rest] * (rest > 0)


def test_filler_longer_than_a_document_is_several_documents():
    store = SimulatedStore(3, np.array([126, 3, 3]))
    for step in _make_all(store, np.arange(3), world_size=3, micro_batch_tokens=65_536):
        (batch,) = step.micro_batches
        full, rest = divmod(batch.shape[0] - batch.num_tokens, 128)
        filler = batch.cu_seqlens.diff()[batch.num_sequences :].tolist()
        assert full >= 2
        assert [length for length in filler if length] == [128] * full + [rest] * (rest > 0)


def test_filler_tokens_are_pads(batches):
    for batch in batches:
        assert (batch.input_ids[batch.num_tokens :] == _PAD).all()
        assert (batch.input_ids[: batch.num_tokens] != _PAD).all()


def test_filler_holds_no_masked_position(batches):
    for batch in batches:
        assert batch.masked_indices[: batch.num_masked].max() < batch.num_tokens


def test_real_masked_positions_ascend_and_come_before_filler_that_points_at_the_first_token(batches):
    for batch in batches:
        assert (batch.masked_indices[: batch.num_masked].diff() > 0).all()
        assert not batch.masked_indices[batch.num_masked :].any()


def test_labels_are_tokens_where_something_is_masked_and_minus_100_at_filler(batches):
    for batch in batches:
        assert batch.labels[: batch.num_masked].min() >= 5
        assert (batch.labels[batch.num_masked :] == -100).all()


def test_special_and_unknown_tokens_are_left_alone(batches):
    for batch in batches:
        for document, masked in zip(_originals(batch), batch.cu_seqlens[: batch.num_sequences].tolist(), strict=True):
            after = batch.input_ids[masked : masked + len(document)].tolist()
            assert [one for one, other in zip(document, after, strict=True) if one < 5 and one != other] == []


def test_numbers_are_those_of_the_documents(batches):
    for batch in batches:
        documents = _originals(batch)
        assert batch.num_sequences == len(documents)
        assert batch.num_tokens == sum(map(len, documents))
        assert batch.num_masked == (batch.labels != -100).sum()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_knows_the_masked_tokens_of_all(world_size):
    store = SimulatedStore(10_000, _lognormal(3.5, 128))
    made = _make_all(store, np.arange(512), world_size)
    total = sum(batch.num_masked for step in made for batch in step.micro_batches)
    assert {step.global_masked for step in made} == {total}


@settings(max_examples=25)
@given(
    seqlens=st.lists(st.integers(1, 30), min_size=1, max_size=40).map(np.array),
    world_size=st.integers(1, 5),
    budget=st.integers(32, 300),
    rate=st.floats(0.001, 0.999),
)
def test_any_step_has_one_shape_within_the_budget_and_every_token(seqlens, world_size, budget, rate):
    store = SimulatedStore(len(seqlens), seqlens)
    made = _make_all(store, np.arange(len(seqlens)), world_size, rate, max_seq_len=32, micro_batch_tokens=budget)
    found = [batch for step in made for batch in step.micro_batches]
    (shape,) = {batch.shape for batch in found}
    assert shape[0] <= budget
    assert sum(batch.num_tokens for batch in found) == seqlens.sum() + 2 * len(seqlens)
    assert sum(batch.num_masked for batch in found) == made[0].global_masked
    for batch in found:
        assert batch.cu_seqlens.diff().min() >= 0
        assert batch.cu_seqlens.diff().max() <= 32
        assert batch.cu_seqlens[-1] == shape[0]


def test_a_step_in_which_nothing_is_masked_has_no_labels_but_filler():
    (step,) = _make_all(SimulatedStore(4, np.array([1, 2, 3])), np.arange(4), 1, mask_rate=1e-9)
    assert step.global_masked == 0
    assert {batch.num_masked for batch in step.micro_batches} == {0}
    assert all((batch.labels == -100).all() for batch in step.micro_batches)


def test_masks_are_those_of_seed_epoch_and_sample():
    store = SimulatedStore(10**6, np.array([60, 90, 120]))
    epochs, samples = np.array([3, 0, 5]), np.array([999_999, 17, 4])
    (batch,) = _maker(store, seed=29).make(epochs, samples, 0.4).micro_batches
    ends = batch.cu_seqlens[:4].tolist()
    masked = batch.masked_indices[: batch.num_masked].numpy()
    for document, first, end in zip(_originals(batch), ends[:-1], ends[1:], strict=True):
        (which,) = (n for n in range(3) if document[1:-1] == store.document(samples[n]).tolist())
        counters = token_counters(29, epochs[which : which + 1], samples[which : which + 1], np.array([end - first]))
        chosen = (counters < np.uint64(0.4 * 2.0**64)) & (np.array(document) >= 5)
        assert (masked[(masked >= first) & (masked < end)] - first).tolist() == np.flatnonzero(chosen).tolist()


def test_two_hundred_steps_have_a_handful_of_shapes(truncated):
    assert len({batch.shape for batch in truncated}) <= 16


def test_micro_batches_are_99_percent_full(truncated):
    assert sum(batch.num_tokens for batch in truncated) > 0.99 * sum(batch.shape[0] for batch in truncated)


def test_every_step_has_as_many_samples_as_the_recipe_says():
    dataset = _train_steps(_maker(SimulatedStore(1000, _lognormal(3.5, 128))), samples_per_step=100, num_steps=13)
    assert [sum(batch.num_sequences for batch in step.micro_batches) for step in dataset] == [100] * 13


def test_steps_take_the_samples_in_their_order():
    store = SimulatedStore(1000, np.array([5]))
    list(_train_steps(_maker(store), samples_per_step=64, num_steps=40))
    assert np.concatenate(store.asked).tolist() == order(np.arange(64 * 40), 1000, 17)[1].tolist()


def test_an_epoch_may_end_within_a_step():
    store = SimulatedStore(50, np.array([9]))
    list(_train_steps(_maker(store), samples_per_step=40, num_steps=5))
    read = np.concatenate(store.asked)
    assert [sorted(epoch.tolist()) for epoch in np.split(read, 4)] == [list(range(50))] * 4


@pytest.mark.parametrize("number", [200_000, 1_000_000], ids=["first-epoch", "fifth-epoch-beyond-2^31"])
def test_a_run_over_a_billion_samples_resumes_with_the_samples_of_its_step(number):
    store = SimulatedStore(10**9, _lognormal(5, 128))
    maker = _maker(store, world_size=8, micro_batch_tokens=16_384)
    step = next(iter(_train_steps(maker, 4096, num_steps=2_000_000, first_step=number)))
    assert step.batch == number
    samples = order(np.arange(number * 4096, (number + 1) * 4096), 10**9, 17)[1]
    assert store.asked == [samples.tolist()]
    wanted = {tuple(store.document(sample).tolist()) for sample in samples.tolist()}
    assert {tuple(found[1:-1]) for batch in step.micro_batches for found in _originals(batch)} <= wanted


@pytest.mark.parametrize("first_step", [0, 1, 7, 39, 40, 41])
def test_steps_begin_at_the_first_step_and_go_on_to_the_last(first_step):
    store = SimulatedStore(1000, np.array([5]))
    steps = list(_train_steps(_maker(store), samples_per_step=64, num_steps=40, first_step=first_step))
    assert [step.batch for step in steps] == list(range(first_step, 40))
    positions = np.arange(64 * min(first_step, 40), 64 * 40)
    read = np.concatenate([np.array([], dtype=np.int64), *store.asked])
    assert read.tolist() == order(positions, 1000, 17)[1].tolist()


def test_without_a_number_of_steps_they_never_end():
    store = SimulatedStore(100, np.array([5]))
    steps = itertools.islice(_train_steps(_maker(store), samples_per_step=64, num_steps=None, first_step=10**6), 50)
    assert [step.batch for step in steps] == list(range(10**6, 10**6 + 50))


@settings(max_examples=25)
@given(
    skipped=st.sets(st.integers(0, 50), max_size=20),
    first_step=st.integers(0, 12),
    num_steps=st.none() | st.integers(0, 30),
)
def test_steps_take_the_batches_that_are_not_skipped_in_order(skipped, first_step, num_steps):
    store = SimulatedStore(1000, np.array([5]))
    steps = _train_steps(_maker(store), 4, num_steps, first_step=first_step, skipped=skipped)
    found = [step.batch for step in itertools.islice(steps, 40)]
    remaining = [batch for batch in range(200) if batch not in skipped]
    assert found == remaining[first_step : first_step + 40 if num_steps is None else num_steps]
    assert store.asked == [order(np.arange(4 * batch, 4 * batch + 4), 1000, 17)[1].tolist() for batch in found]


@pytest.mark.parametrize("skipped", [(3, 4, 0), [4, 0, 3], {0, 3, 4}, frozenset((0, 3, 4))], ids=repr)
def test_the_skipped_batches_may_stand_in_any_order(skipped):
    steps = _train_steps(_maker(SimulatedStore(100, np.array([5]))), 4, num_steps=4, skipped=skipped)
    assert [step.batch for step in steps] == [1, 2, 5, 6]


def test_a_step_behind_a_skipped_batch_is_made_as_it_would_have_been_later():
    maker = _maker(SimulatedStore(1000, _lognormal(3.5, 128)))
    skipping = _train_steps(maker, 64, num_steps=10, skipped=(2, 5))
    whole = _train_steps(maker, 64, num_steps=12)
    for step, batch in enumerate((0, 1, 3, 4, 6, 7)):
        assert skipping.batch_of(step) == batch
        (ours,), (theirs,) = ([made[number].micro_batches[0]] for made, number in ((skipping, step), (whole, batch)))
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_skipped_batch_leaves_the_mask_rates_with_the_steps():
    steps = _train_steps(_maker(SimulatedStore(1000, np.array([9]))), 64, num_steps=4, skipped=(1, 2))
    steps.mask_rate = lambda step: [0.05, 0.10, 0.15, 0.20][step]
    assert [(step.batch, step.mask_rate) for step in steps] == [(0, 0.05), (3, 0.10), (4, 0.15), (5, 0.20)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_have_the_sizes_between_their_first_samples(world_size):
    store = SimulatedStore(1000, _lognormal(3.5, 128))
    ranks = [_growing_steps(_maker(store, rank, world_size), 40, first_step=2) for rank in range(world_size)]
    for number, steps in enumerate(zip(*ranks, strict=True), start=2):
        assert {step.global_samples for step in steps} == {number + 1}
        assert sum(batch.num_sequences for step in steps for batch in step.micro_batches) == number + 1


def test_an_epoch_uses_each_sample_once_while_batches_grow():
    store = SimulatedStore(300, np.array([9]))
    list(_growing_steps(_maker(store), 48))
    read = np.concatenate(store.asked)
    epochs = [read[first : first + 300].tolist() for first in (0, 300, 600, 900)]
    assert [sorted(epoch) for epoch in epochs[:3]] == [list(range(300))] * 3
    assert len(epochs[3]) == len(set(epochs[3])) == 48 * 49 // 2 - 900


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_knows_the_tokens_and_samples_of_all(world_size):
    made = _make_all(SimulatedStore(10_000, _lognormal(3.5, 128)), np.arange(512), world_size)
    tokens, samples = (sum(sum(getattr(step, name)) for step in made) for name in ("num_tokens", "num_sequences"))
    assert {(step.global_tokens, step.global_samples) for step in made} == {(tokens, samples)}
    assert samples == 512


def test_a_step_knows_the_rate_that_it_was_masked_at():
    store = SimulatedStore(100, np.array([9]))
    assert [_maker(store).make(np.zeros(4, int), np.arange(4), rate).mask_rate for rate in (0.1, 0.2)] == [0.1, 0.2]


def test_a_part_of_a_split_is_evaluated_on_samples_from_all_over_it():
    store = SimulatedStore(100_000, np.array([9]))
    list(EvalDataset(_maker(store), max_samples=2000, mask_rate=0.15))
    read = np.concatenate(store.asked)
    assert len(read) == len(set(read.tolist())) == 2000
    assert stats.chisquare(np.histogram(read, bins=20, range=(0, 100_000))[0]).pvalue > 1e-3


@pytest.mark.parametrize("num_samples, asked", [(5000, 5000), (5000, 9000), (1023, 1023), (1, 1)])
def test_a_whole_split_is_evaluated_once(num_samples, asked):
    store = SimulatedStore(num_samples, np.array([9]))
    made = list(EvalDataset(_maker(store), max_samples=asked, mask_rate=0.15))
    assert len(made) == max(1, num_samples // 1024)
    assert sorted(np.concatenate(store.asked).tolist()) == list(range(num_samples))


def test_every_rank_evaluates_as_many_steps_and_none_without_a_micro_batch():
    store = SimulatedStore(5000, _lognormal(3.5, 128))
    made = [list(EvalDataset(_maker(store, rank, 7), max_samples=2100, mask_rate=0.15)) for rank in range(7)]
    assert [len(steps) for steps in made] == [2] * 7
    assert min(len(step.micro_batches) for steps in made for step in steps) > 0


def test_fewer_held_out_samples_than_processes_are_refused():
    with pytest.raises(ValueError, match="3 held-out samples cannot be shared by 4 processes"):
        EvalDataset(_maker(SimulatedStore(3, np.array([9])), world_size=4), max_samples=100, mask_rate=0.15)
