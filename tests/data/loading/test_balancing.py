import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.data.loading.balancing import assign_to_bins, balance_micro_batches
from tests.data.loading.simulated import draw_seqlens

_SEQLENS = st.lists(st.integers(3, 128), min_size=1, max_size=200).map(np.array)


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_every_sequence_is_in_exactly_one_micro_batch(seqlens, world_size, max_tokens):
    micro_batches = balance_micro_batches(seqlens, world_size, max_tokens)
    assert sorted(np.concatenate(micro_batches).tolist()) == list(range(len(seqlens)))


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_no_micro_batch_is_empty_or_exceeds_the_token_budget(seqlens, world_size, max_tokens):
    micro_batches = balance_micro_batches(seqlens, world_size, max_tokens)
    assert min(len(micro_batch) for micro_batch in micro_batches) > 0
    assert max(seqlens[micro_batch].sum() for micro_batch in micro_batches) <= max_tokens


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_ranks_have_equal_numbers_of_micro_batches_unless_each_has_one_sequence(seqlens, world_size, max_tokens):
    micro_batches = balance_micro_batches(seqlens, world_size, max_tokens)
    assert len(micro_batches) % world_size == 0 or len(micro_batches) == len(seqlens)


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_every_rank_has_a_micro_batch_if_there_are_enough_sequences(seqlens, world_size, max_tokens):
    assert len(balance_micro_batches(seqlens, world_size, max_tokens)) >= min(world_size, len(seqlens))


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_the_number_of_micro_batches_is_minimal_for_balanced_bins(seqlens, world_size, max_tokens):
    micro_batches = balance_micro_batches(seqlens, world_size, max_tokens)
    fewer = -(-len(micro_batches) // world_size) - 1
    if fewer:
        bins = assign_to_bins(seqlens, fewer * world_size)
        assert max(seqlens[indices].sum() for indices in bins) > max_tokens


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), max_tokens=st.integers(128, 1000))
def test_sequences_of_a_micro_batch_are_sorted_by_decreasing_length(seqlens, world_size, max_tokens):
    for micro_batch in balance_micro_batches(seqlens, world_size, max_tokens):
        assert (np.diff(seqlens[micro_batch]) <= 0).all()


@given(seqlens=_SEQLENS, num_bins=st.integers(1, 40))
def test_bins_have_equal_numbers_of_sequences(seqlens, num_bins):
    counts = [len(indices) for indices in assign_to_bins(seqlens, num_bins)]
    assert len(counts) == min(num_bins, len(seqlens))
    assert max(counts) - min(counts) <= 1


@given(seqlens=_SEQLENS, num_bins=st.integers(1, 40))
def test_bin_sizes_differ_by_at_most_the_longest_sequence(seqlens, num_bins):
    tokens = [seqlens[indices].sum() for indices in assign_to_bins(seqlens, num_bins)]
    assert max(tokens) - min(tokens) <= seqlens.max()


@pytest.mark.parametrize(
    "seqlens, samples, max_tokens",
    [
        (draw_seqlens(5, 128), 4096, 16_384),
        (draw_seqlens(3.5, 128), 4096, 16_384),
        (draw_seqlens(5, 512), 1024, 16_384),
    ],
    ids=["mostly-truncated-at-128", "mostly-shorter-than-128", "up-to-512"],
)
def test_the_largest_rank_has_at_most_one_percent_more_tokens_than_the_mean(seqlens, samples, max_tokens):
    for first in range(0, 10 * samples, samples):
        lengths = seqlens[first : first + samples] + 2
        micro_batches = balance_micro_batches(lengths, 8, max_tokens)
        tokens = [sum(lengths[micro_batch].sum() for micro_batch in micro_batches[rank::8]) for rank in range(8)]
        assert max(tokens) <= 1.01 * np.mean(tokens)


@pytest.mark.parametrize(
    "seqlens", [draw_seqlens(5, 128), draw_seqlens(3.5, 128)], ids=["mostly-truncated", "mostly-shorter"]
)
def test_micro_batches_of_a_large_step_differ_by_few_tokens(seqlens):
    lengths = seqlens[:4096] + 2
    tokens = [lengths[micro_batch].sum() for micro_batch in balance_micro_batches(lengths, 8, 16_384)]
    assert max(tokens) - min(tokens) <= 8
