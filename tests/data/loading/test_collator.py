import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicbert.data.loading.masking import token_counters
from tests.data.loading.simulated import CLS, PAD, SEP, SimulatedStore, draw_seqlens, make_collator, originals


def _collate_all(store, samples, world_size, mask_rate=0.3, **fields):
    """Return the batch of every rank for a step."""
    epochs = np.zeros_like(samples)
    return [
        make_collator(store, rank, world_size, **fields).collate(epochs, samples, mask_rate)
        for rank in range(world_size)
    ]


@pytest.fixture(scope="module")
def steps():
    """Return the batches of eight ranks for a step of 512 documents."""
    return _collate_all(SimulatedStore(10_000, draw_seqlens(3.5, 128)), np.arange(512), world_size=8)


@pytest.fixture(scope="module")
def batches(steps):
    return [batch for step in steps for batch in step.micro_batches]


def test_a_step_has_every_sample_once_with_special_tokens_and_without_truncation(batches):
    store = SimulatedStore(10_000, draw_seqlens(3.5, 128))
    expected = [[CLS, *store.document(sample).tolist(), SEP] for sample in range(512)]
    assert sorted(document for batch in batches for document in originals(batch)) == sorted(expected)


def test_all_micro_batches_of_all_ranks_have_the_same_shape(batches):
    assert len({batch.shape for batch in batches}) == 1
    assert len(batches) > 8


def test_no_shape_exceeds_the_token_budget(batches):
    assert {batch.shape[0] <= 1024 for batch in batches} == {True}


def test_the_shape_is_that_of_the_tensors(batches):
    for batch in batches:
        tokens, sequences, masked = batch.shape
        assert [len(tensor) for tensor in (batch.input_ids, batch.cu_seqlens, batch.masked_indices, batch.labels)] == [
            tokens,
            sequences + 1,
            masked,
            masked,
        ]


def test_cu_seqlens_are_ascending_int32_from_zero_to_the_number_of_tokens(batches):
    for batch in batches:
        assert batch.cu_seqlens.dtype == torch.int32
        assert (batch.cu_seqlens[0], batch.cu_seqlens[-1]) == (0, batch.shape[0])
        assert (batch.cu_seqlens.diff() >= 0).all()


def test_tokens_masked_indices_and_labels_are_int64(batches):
    for batch in batches:
        assert {tensor.dtype for tensor in (batch.input_ids, batch.masked_indices, batch.labels)} == {torch.int64}


def test_no_document_is_longer_than_max_seqlen(batches):
    for batch in batches:
        assert batch.cu_seqlens.diff().max() <= batch.max_seqlen == 128


def test_real_documents_precede_padding_and_are_not_empty(batches):
    for batch in batches:
        seqlens = batch.cu_seqlens.diff()
        assert seqlens[: batch.num_sequences].min() >= 3
        assert batch.cu_seqlens[batch.num_sequences] == batch.num_tokens


def test_padding_documents_have_full_length_then_the_rest_then_zero_length(batches):
    for batch in batches:
        padding = batch.cu_seqlens.diff()[batch.num_sequences :].tolist()
        assert padding == sorted(padding, reverse=True)
        full, rest = divmod(batch.shape[0] - batch.num_tokens, 128)
        assert [length for length in padding if length] == [128] * full + [rest] * (rest > 0)


def test_padding_longer_than_max_seq_len_is_several_documents():
    store = SimulatedStore(3, np.array([126, 3, 3]))
    for step in _collate_all(store, np.arange(3), world_size=3, micro_batch_tokens=65_536):
        (batch,) = step.micro_batches
        full, rest = divmod(batch.shape[0] - batch.num_tokens, 128)
        padding = batch.cu_seqlens.diff()[batch.num_sequences :].tolist()
        assert full >= 2
        assert [length for length in padding if length] == [128] * full + [rest] * (rest > 0)


def test_padding_tokens_are_pad_tokens(batches):
    for batch in batches:
        assert (batch.input_ids[batch.num_tokens :] == PAD).all()
        assert (batch.input_ids[: batch.num_tokens] != PAD).all()


def test_padding_has_no_masked_tokens(batches):
    for batch in batches:
        assert batch.masked_indices[: batch.num_masked].max() < batch.num_tokens


def test_real_masked_indices_are_ascending_and_followed_by_zeros(batches):
    for batch in batches:
        assert (batch.masked_indices[: batch.num_masked].diff() > 0).all()
        assert not batch.masked_indices[batch.num_masked :].any()


def test_labels_are_tokens_at_masked_positions_and_minus_100_at_padding(batches):
    for batch in batches:
        assert batch.labels[: batch.num_masked].min() >= 5
        assert (batch.labels[batch.num_masked :] == -100).all()


def test_special_and_unknown_tokens_are_unchanged(batches):
    for batch in batches:
        for document, start in zip(originals(batch), batch.cu_seqlens[: batch.num_sequences].tolist(), strict=True):
            masked = batch.input_ids[start : start + len(document)].tolist()
            assert [old for old, new in zip(document, masked, strict=True) if old < 5 and old != new] == []


def test_counts_are_those_of_the_real_documents(batches):
    for batch in batches:
        documents = originals(batch)
        assert batch.num_sequences == len(documents)
        assert batch.num_tokens == sum(map(len, documents))
        assert batch.num_masked == (batch.labels != -100).sum()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_has_the_global_number_of_masked_tokens(world_size):
    store = SimulatedStore(10_000, draw_seqlens(3.5, 128))
    steps = _collate_all(store, np.arange(512), world_size)
    total = sum(batch.num_masked for step in steps for batch in step.micro_batches)
    assert {step.global_num_masked for step in steps} == {total}


@settings(max_examples=25)
@given(
    seqlens=st.lists(st.integers(1, 30), min_size=1, max_size=40).map(np.array),
    world_size=st.integers(1, 5),
    max_tokens=st.integers(32, 300),
    rate=st.floats(0.001, 0.999),
)
def test_every_step_has_one_shape_within_the_token_budget_and_all_tokens(seqlens, world_size, max_tokens, rate):
    store = SimulatedStore(len(seqlens), seqlens)
    steps = _collate_all(
        store, np.arange(len(seqlens)), world_size, rate, max_seq_len=32, micro_batch_tokens=max_tokens
    )
    batches = [batch for step in steps for batch in step.micro_batches]
    (shape,) = {batch.shape for batch in batches}
    assert shape[0] <= max_tokens
    assert sum(batch.num_tokens for batch in batches) == seqlens.sum() + 2 * len(seqlens)
    assert sum(batch.num_masked for batch in batches) == steps[0].global_num_masked
    for batch in batches:
        assert batch.cu_seqlens.diff().min() >= 0
        assert batch.cu_seqlens.diff().max() <= 32
        assert batch.cu_seqlens[-1] == shape[0]


def test_a_step_without_masked_tokens_has_only_padding_labels():
    (step,) = _collate_all(SimulatedStore(4, np.array([1, 2, 3])), np.arange(4), 1, mask_rate=1e-9)
    assert step.global_num_masked == 0
    assert {batch.num_masked for batch in step.micro_batches} == {0}
    assert all((batch.labels == -100).all() for batch in step.micro_batches)


def test_masks_follow_from_seed_epoch_and_sample():
    store = SimulatedStore(10**6, np.array([60, 90, 120]))
    epochs, samples = np.array([3, 0, 5]), np.array([999_999, 17, 4])
    (batch,) = make_collator(store, seed=29).collate(epochs, samples, 0.4).micro_batches
    ends = batch.cu_seqlens[:4].tolist()
    masked = batch.masked_indices[: batch.num_masked].numpy()
    for document, first, end in zip(originals(batch), ends[:-1], ends[1:], strict=True):
        (index,) = (n for n in range(3) if document[1:-1] == store.document(samples[n]).tolist())
        counters = token_counters(29, epochs[index : index + 1], samples[index : index + 1], np.array([end - first]))
        chosen = (counters < np.uint64(0.4 * 2.0**64)) & (np.array(document) >= 5)
        assert (masked[(masked >= first) & (masked < end)] - first).tolist() == np.flatnonzero(chosen).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_has_the_global_numbers_of_tokens_and_samples(world_size):
    steps = _collate_all(SimulatedStore(10_000, draw_seqlens(3.5, 128)), np.arange(512), world_size)
    tokens, samples = (sum(sum(getattr(step, name)) for step in steps) for name in ("num_tokens", "num_sequences"))
    assert {(step.global_num_tokens, step.global_num_samples) for step in steps} == {(tokens, samples)}
    assert samples == 512


def test_a_step_has_its_mask_rate():
    store = SimulatedStore(100, np.array([9]))
    assert [make_collator(store).collate(np.zeros(4, int), np.arange(4), rate).mask_rate for rate in (0.1, 0.2)] == [
        0.1,
        0.2,
    ]
