import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.order import order


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_every_sample_comes_exactly_once_per_epoch(num_samples, seed, epoch):
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    epochs, samples = order(positions, num_samples, seed)
    assert (epochs == epoch).all()
    assert sorted(samples.tolist()) == list(range(num_samples))


def test_a_position_gives_the_same_sample_whatever_it_is_asked_with():
    whole = order(np.arange(5000), 1700, seed=3)[1]
    scattered = np.array([4999, 0, 1700, 3399])
    assert order(scattered, 1700, seed=3)[1].tolist() == whole[scattered].tolist()


def test_epochs_and_seeds_give_different_orders():
    first, second = np.split(order(np.arange(2000), 1000, seed=1)[1], 2)
    other = order(np.arange(1000), 1000, seed=2)[1]
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


def test_the_first_tenth_of_an_epoch_is_spread_evenly_over_the_corpus():
    samples = order(np.arange(100_000), 1_000_000, seed=17)[1]
    counts = np.histogram(samples, bins=50, range=(0, 1_000_000))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_in_the_order_are_uncorrelated():
    samples = order(np.arange(100_000), 1_000_003, seed=17)[1]
    assert abs(stats.spearmanr(samples[:-1], samples[1:]).statistic) < 0.01


@pytest.mark.parametrize("num_samples", [10**9, 2**40 + 7], ids=["1e9", "beyond-2^40"])
def test_positions_of_a_huge_corpus_need_no_table(num_samples):
    samples = order(np.arange(num_samples - 1000, num_samples), num_samples, seed=5)[1]
    assert len(set(samples.tolist())) == 1000
    assert samples.max() < num_samples
