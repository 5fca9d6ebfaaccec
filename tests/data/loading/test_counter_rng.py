import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.counter_rng import key_of, mix, uniform

_WORD = st.integers(0, 2**64 - 1)


def _unmix(word):
    """The inverse of `mix`, in whole numbers of Python."""

    def unshift(value, bits):
        found = value
        for _ in range(64 // bits + 1):
            found = value ^ (found >> bits)
        return found

    word = unshift(word, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    word = unshift(word, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return (unshift(word, 30) - 0x9E3779B97F4A7C15) % 2**64


def test_mix_gives_the_published_numbers_of_splitmix64():
    states = np.array([(1234567 + step * 0x9E3779B97F4A7C15) % 2**64 for step in range(5)], dtype=np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(word=_WORD)
def test_mix_loses_no_word(word):
    assert _unmix(int(mix(np.array([word], dtype=np.uint64))[0])) == word


def test_every_bit_of_a_word_changes_every_bit_of_its_mix_in_half_of_the_cases():
    words = np.arange(20_000, dtype=np.uint64)
    for bit in range(0, 64, 9):
        flipped = mix(words) ^ mix(words ^ np.uint64(1 << bit))
        shares = np.unpackbits(flipped.view(np.uint8)).reshape(-1, 64).mean(0)
        assert abs(shares - 0.5).max() < 0.02, bit  # more than five standard deviations


def test_mix_does_not_write_into_its_argument():
    words = np.arange(5, dtype=np.uint64)
    mix(words)
    assert words.tolist() == [0, 1, 2, 3, 4]


def test_every_value_and_every_order_of_parts_gives_another_key():
    first, second, third = (axis.ravel() for axis in np.mgrid[:40, :40, :40])
    keys = np.concatenate([key_of(first, second, third), key_of(first, second), key_of(np.arange(40))])
    assert len(np.unique(key_of(first, second, third))) == 40**3
    assert len(np.unique(keys)) == 40**3 + 40**2 + 40


@given(seed=_WORD, epoch=_WORD, sample=_WORD)
def test_an_array_of_numbers_gives_the_keys_that_each_number_gives(seed, epoch, sample):
    epochs, samples = np.array([epoch, 0, epoch], dtype=np.uint64), np.array([sample, sample, 0], dtype=np.uint64)
    each = [key_of(seed, int(one), int(other))[0] for one, other in zip(epochs, samples, strict=True)]
    assert key_of(seed, epochs, samples).tolist() == each


@pytest.mark.parametrize("word, number", [(0, 0.0), (2**63, 0.5), (2**64 - 1, 1.0 - 2.0**-53)])
def test_uniform_begins_at_zero_and_ends_below_one(word, number):
    assert uniform(np.array([word], dtype=np.uint64)).tolist() == [number]


def test_hashes_of_consecutive_numbers_are_spread_evenly():
    numbers = uniform(key_of(17, np.arange(200_000)))
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(numbers[:-1], numbers[1:]).statistic) < 0.01
