import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.sample_order import Group, mixed_order, order

_WINDOW = 16_384  # number of positions over which the fractions of a mixture are exact
_WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5)


def _groups(weights, sizes):
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    return [
        Group(first_sample=first, num_samples=size, weight=weight)
        for first, size, weight in zip(firsts, sizes, weights, strict=True)
    ]


def _owners(samples, groups):
    return np.searchsorted([group.first_sample for group in groups], samples, side="right") - 1


def _permutations(num_samples, num_epochs, seed, offsets=None):
    """Return the sample order of the first epochs, one per row, at all or at some positions of an epoch."""
    offsets = np.arange(num_samples) if offsets is None else np.array(offsets)
    positions = np.arange(num_epochs)[:, None] * num_samples + offsets
    return order(positions.ravel(), num_samples, seed)[1].reshape(num_epochs, len(offsets))


def _pairs_p_value(first, second, num_samples):
    """Return the p-value of a uniform distribution of pairs of distinct samples."""
    pairs = np.bincount(first * num_samples + second, minlength=num_samples**2).reshape(num_samples, num_samples)
    return stats.chisquare(pairs[~np.eye(num_samples, dtype=bool)]).pvalue


@settings(max_examples=50)
@given(num_samples=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**30))
def test_every_sample_occurs_exactly_once_per_epoch(num_samples, seed, epoch):
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    epochs, samples = order(positions, num_samples, seed)
    assert (epochs == epoch).all()
    assert sorted(samples.tolist()) == list(range(num_samples))


@pytest.mark.parametrize("bits", range(13))
def test_every_sample_occurs_once_for_sizes_around_powers_of_two(bits):
    for num_samples in {max(1, 2**bits - 1), 2**bits, 2**bits + 1}:
        assert sorted(order(np.arange(num_samples), num_samples, seed=9)[1].tolist()) == list(range(num_samples))


@given(
    num_samples=st.integers(1, 10**12),
    seed=st.integers(0, 2**63),
    positions=st.lists(st.integers(0, 10**13), min_size=1, max_size=20),
)
def test_the_sample_at_a_position_does_not_depend_on_other_positions(num_samples, seed, positions):
    epochs, samples = order(np.array(positions), num_samples, seed)
    alone = [order(np.array([position]), num_samples, seed) for position in positions]
    assert [(epoch[0], sample[0]) for epoch, sample in alone] == list(zip(epochs, samples, strict=True))


@pytest.mark.parametrize("num_samples, permutations", [(7, 20_000), (64, 10_000), (100, 5000)])
def test_every_sample_is_equally_likely_at_every_position(num_samples, permutations):
    table = _permutations(num_samples, permutations, seed=3)
    counts = np.array([np.bincount(column, minlength=num_samples) for column in table.T])
    # The degrees of freedom and the factor follow from the fixed sums of rows and columns.
    statistic = (num_samples - 1) * np.square(counts - permutations / num_samples).sum() / permutations
    assert stats.chi2.sf(statistic, (num_samples - 1) ** 2) > 1e-3


@pytest.mark.parametrize("num_samples", [7, 64, 100])
def test_every_sample_is_equally_likely_at_the_first_position_over_seeds(num_samples):
    firsts = [order(np.array([0]), num_samples, seed)[1][0] for seed in range(2000)]
    assert stats.chisquare(np.bincount(firsts, minlength=num_samples)).pvalue > 1e-3


@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("num_samples, permutations", [(7, 20_000), (64, 60_000), (100, 60_000)])
def test_every_pair_of_neighbors_is_equally_likely(num_samples, permutations, offset):
    first, second = _permutations(num_samples, permutations, seed=4, offsets=[offset, offset + 1]).T
    assert _pairs_p_value(first, second, num_samples) > 1e-3


def test_the_orders_of_consecutive_epochs_are_independent():
    table = _permutations(100, 4000, seed=5)
    # The number of positions at which two independent permutations agree is nearly Poisson with mean 1.
    agreements = int((table[1:] == table[:-1]).sum())
    assert stats.poisson(3999).cdf(agreements) == pytest.approx(0.5, abs=0.499)
    large = _permutations(100_003, 2, seed=5)
    assert abs(stats.spearmanr(large[0], large[1]).statistic) < 0.015


def test_the_orders_of_different_seeds_are_independent():
    orders = [order(np.arange(100_003), 100_003, seed)[1] for seed in (1, 2)]
    assert abs(stats.spearmanr(*orders).statistic) < 0.015


def test_the_first_tenth_of_an_epoch_is_uniform_over_the_corpus():
    for epoch in range(3):
        samples = order(epoch * 1_000_000 + np.arange(100_000), 1_000_000, seed=17)[1]
        counts = np.histogram(samples, bins=50, range=(0, 1_000_000))[0]
        assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbors_in_the_order_are_uncorrelated():
    samples = order(np.arange(100_000), 1_000_003, seed=17)[1]
    assert abs(stats.spearmanr(samples[:-1], samples[1:]).statistic) < 0.01


@pytest.mark.parametrize("num_samples", [10**9, 2**40 + 7], ids=["1e9", "beyond-2^40"])
def test_an_epoch_of_a_huge_corpus_is_followed_by_the_next(num_samples):
    epochs, samples = order(np.arange(num_samples - 5000, num_samples + 5000), num_samples, seed=5)
    assert epochs.tolist() == [0] * 5000 + [1] * 5000
    assert len(set(samples[:5000].tolist())) == len(set(samples[5000:].tolist())) == 5000
    assert samples.min() >= 0
    assert stats.chisquare(np.histogram(samples, bins=50, range=(0, num_samples))[0]).pvalue > 1e-3


@pytest.mark.parametrize("num_samples", [10**9, 2**40 + 7], ids=["1e9", "beyond-2^40"])
def test_the_order_of_a_huge_corpus_does_not_need_a_table(num_samples):
    tracemalloc.start()
    order(np.arange(num_samples // 2, num_samples // 2 + 1000), num_samples, seed=5)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


@settings(max_examples=20)
@given(weights=_WEIGHTS, seed=st.integers(0, 2**31 - 1), window=st.integers(0, 10**9))
def test_every_window_has_the_fraction_of_each_group_by_largest_remainders(weights, seed, window):
    groups = _groups(weights, [1000 + 77 * number for number in range(len(weights))])
    _, samples = mixed_order(np.arange(window * _WINDOW, (window + 1) * _WINDOW), groups, seed)
    counts = np.bincount(_owners(samples, groups), minlength=len(groups)).tolist()
    exact = [Fraction(weight) / sum(map(Fraction, weights)) * _WINDOW for weight in weights]
    rounded_up = [count - int(number) for count, number in zip(counts, exact, strict=True)]
    assert sum(counts) == _WINDOW
    assert set(rounded_up) <= {0, 1}
    remainders = {
        value: [number % 1 for number, up in zip(exact, rounded_up, strict=True) if up == value] for value in (0, 1)
    }
    assert min(remainders[1], default=1) >= max(remainders[0], default=0) - 1e-9  # ties may be rounded either way


@pytest.mark.parametrize("length", [64, 512, 4096])
def test_shorter_windows_have_binomial_fractions_of_each_group(length):
    groups = _groups([0.7, 0.2, 0.1], [5000, 900, 70])
    _, samples = mixed_order(np.arange(_WINDOW), groups, seed=6)
    for number, group in enumerate(groups):
        counts = (_owners(samples, groups) == number).reshape(-1, length).sum(1)
        distribution = stats.binom(length, group.weight)
        assert distribution.cdf(counts.min()) > 1e-3 * length / _WINDOW
        assert distribution.sf(counts.max() - 1) > 1e-3 * length / _WINDOW


def test_the_groups_at_consecutive_positions_are_independent():
    groups = _groups([0.5, 0.3, 0.2], [5000, 900, 70])
    owners = _owners(mixed_order(np.arange(4 * _WINDOW), groups, seed=6)[1], groups)
    table = np.bincount(owners[:-1] * 3 + owners[1:], minlength=9).reshape(3, 3)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_order_of_groups_differs_between_windows_and_seeds():
    groups = _groups([0.5, 0.5], [5000, 900])
    first, second = _owners(mixed_order(np.arange(2 * _WINDOW), groups, seed=6)[1], groups).reshape(2, -1)
    other = _owners(mixed_order(np.arange(_WINDOW), groups, seed=7)[1], groups)
    for owners in (second, other):
        assert abs((first == owners).mean() - 0.5) < 0.01


@pytest.mark.parametrize("weights", [[0.6, 0.3, 0.1], [1.0, 1.0, 1.0]], ids=["unequal", "equal"])
def test_every_sample_of_a_group_occurs_once_per_epoch_of_the_group(weights):
    sizes = [50_000, 37, 8192]
    groups = _groups(weights, sizes)
    epochs, samples = mixed_order(np.arange(5 * _WINDOW), groups, seed=8)
    for number, group in enumerate(groups):
        is_owned = _owners(samples, groups) == number
        num_complete, num_remaining = divmod(int(is_owned.sum()), group.num_samples)
        counts = np.zeros((num_complete + 1, group.num_samples), dtype=int)
        np.add.at(counts, (epochs[is_owned], samples[is_owned] - group.first_sample), 1)
        assert (counts[:num_complete] == 1).all()
        assert counts[num_complete].max(initial=0) <= 1
        assert counts[num_complete].sum() == num_remaining


def test_the_epochs_of_a_group_are_consecutive():
    groups = _groups([0.5, 0.5], [1000, 300])
    epochs, samples = mixed_order(np.arange(3 * _WINDOW), groups, seed=4)
    for number in (0, 1):
        of_group = epochs[_owners(samples, groups) == number]
        assert (np.diff(of_group) >= 0).all()


def test_groups_have_different_orders():
    groups = _groups([1.0, 1.0], [5_000, 5_000])
    epochs, samples = mixed_order(np.arange(_WINDOW), groups, seed=8)
    second_epochs = [samples[(epochs == 1) & (_owners(samples, groups) == number)] % 5_000 for number in (0, 1)]
    # With the same order for both groups, the samples of epoch 1 would be the same.
    num_common = len(np.intersect1d(*second_epochs))
    assert [len(drawn) for drawn in second_epochs] == [3_192] * 2
    assert stats.hypergeom(5_000, 3_192, 3_192).cdf(num_common) == pytest.approx(0.5, abs=0.499)


def test_a_single_group_has_the_order_of_its_samples():
    positions = np.arange(3000)
    epochs, samples = order(positions, 1000, seed=9)
    mixed_epochs, mixed_samples = mixed_order(positions, [Group(first_sample=50, num_samples=1000, weight=0.3)], seed=9)
    assert mixed_epochs.tolist() == epochs.tolist()
    assert mixed_samples.tolist() == (samples + 50).tolist()


def test_the_order_depends_only_on_the_ratio_of_weights():
    positions, sizes = np.arange(10_000), [4000, 300, 20]
    fractions, multiples = (_groups(weights, sizes) for weights in ([0.7, 0.2, 0.1], [7.0, 2.0, 1.0]))
    assert np.array_equal(mixed_order(positions, fractions, seed=1), mixed_order(positions, multiples, seed=1))


def test_a_small_group_of_equal_weight_has_more_epochs():
    groups = _groups([0.5, 0.5], [100_000, 1000])
    epochs, samples = mixed_order(np.arange(_WINDOW), groups, seed=2)
    owners = _owners(samples, groups)
    assert [int(epochs[owners == number].max()) for number in (0, 1)] == [0, 8]


@settings(max_examples=15)
@given(
    weights=_WEIGHTS,
    seed=st.integers(0, 2**31 - 1),
    first=st.integers(0, 10**12),
    offsets=st.lists(st.integers(0, 199), min_size=1, max_size=8),
)
def test_the_mixed_sample_at_a_position_does_not_depend_on_other_positions(weights, seed, first, offsets):
    groups = _groups(weights, [1000 + 77 * number for number in range(len(weights))])
    stream = mixed_order(np.arange(first, first + 200), groups, seed)
    for offset in offsets:
        single = mixed_order(np.array([first + offset]), groups, seed)
        assert [column[0] for column in single] == [column[offset] for column in stream]
