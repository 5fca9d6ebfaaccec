import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.data.loading.balancing import deal, divide
from tests.data.loading.simulated import lognormal

_SEQLENS = st.lists(st.integers(3, 128), min_size=1, max_size=200).map(np.array)


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
        bins = deal(seqlens, fewer * world_size)
        assert max(seqlens[indices].sum() for indices in bins) > budget


@given(seqlens=_SEQLENS, world_size=st.integers(1, 9), budget=st.integers(128, 1000))
def test_sequences_of_a_micro_batch_stand_longest_first(seqlens, world_size, budget):
    for part in divide(seqlens, world_size, budget):
        assert (np.diff(seqlens[part]) <= 0).all()


@given(seqlens=_SEQLENS, num_bins=st.integers(1, 40))
def test_bins_get_equal_numbers_of_sequences(seqlens, num_bins):
    counts = [len(indices) for indices in deal(seqlens, num_bins)]
    assert len(counts) == min(num_bins, len(seqlens))
    assert max(counts) - min(counts) <= 1


@given(seqlens=_SEQLENS, num_bins=st.integers(1, 40))
def test_bins_differ_by_no_more_than_the_longest_sequence(seqlens, num_bins):
    tokens = [seqlens[indices].sum() for indices in deal(seqlens, num_bins)]
    assert max(tokens) - min(tokens) <= seqlens.max()


@pytest.mark.parametrize(
    "seqlens, samples, budget",
    [
        (lognormal(5, 128), 4096, 16_384),
        (lognormal(3.5, 128), 4096, 16_384),
        (lognormal(5, 512), 1024, 16_384),
    ],
    ids=["mostly-cut-at-128", "mostly-shorter-than-128", "up-to-512"],
)
def test_the_rank_with_most_tokens_has_one_percent_more_than_the_mean_at_most(seqlens, samples, budget):
    for first in range(0, 10 * samples, samples):
        lengths = seqlens[first : first + samples] + 2
        parts = divide(lengths, 8, budget)
        tokens = [sum(lengths[part].sum() for part in parts[rank::8]) for rank in range(8)]
        assert max(tokens) <= 1.01 * np.mean(tokens)


@pytest.mark.parametrize("seqlens", [lognormal(5, 128), lognormal(3.5, 128)], ids=["mostly-cut", "mostly-shorter"])
def test_micro_batches_of_a_large_step_are_equally_long_but_for_a_few_tokens(seqlens):
    lengths = seqlens[:4096] + 2
    tokens = [lengths[part].sum() for part in divide(lengths, 8, 16_384)]
    assert max(tokens) - min(tokens) <= 8
