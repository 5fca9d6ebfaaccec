import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.data.loading.counter_rng import key_of, mix, uniform

_WORD = st.integers(0, 2**64 - 1)


def _unmix(word):
    """Return the inverse of `mix`, in Python integers."""

    def unshift(value, bits):
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    word = unshift(word, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    word = unshift(word, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return (unshift(word, 30) - 0x9E3779B97F4A7C15) % 2**64


def test_mix_returns_the_published_numbers_of_splitmix64():
    states = np.array([(1234567 + step * 0x9E3779B97F4A7C15) % 2**64 for step in range(5)], dtype=np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(word=_WORD)
def test_mix_is_a_bijection(word):
    assert _unmix(int(mix(np.array([word], dtype=np.uint64))[0])) == word


def test_every_input_bit_flips_every_output_bit_with_probability_one_half():
    words = np.arange(20_000, dtype=np.uint64)
    for bit in range(0, 64, 9):
        flipped = mix(words) ^ mix(words ^ np.uint64(1 << bit))
        fractions = np.unpackbits(flipped.view(np.uint8)).reshape(-1, 64).mean(0)
        assert abs(fractions - 0.5).max() < 0.02, bit  # more than five standard deviations


def test_mix_does_not_modify_its_argument():
    words = np.arange(5, dtype=np.uint64)
    mix(words)
    assert words.tolist() == [0, 1, 2, 3, 4]


def test_different_values_and_orders_have_different_keys():
    first, second, third = (axis.ravel() for axis in np.mgrid[:40, :40, :40])
    keys = np.concatenate([key_of(first, second, third), key_of(first, second), key_of(np.arange(40))])
    assert len(np.unique(key_of(first, second, third))) == 40**3
    assert len(np.unique(keys)) == 40**3 + 40**2 + 40


@given(seed=_WORD, epoch=_WORD, sample=_WORD)
def test_keys_of_arrays_equal_keys_of_single_numbers(seed, epoch, sample):
    epochs, samples = np.array([epoch, 0, epoch], dtype=np.uint64), np.array([sample, sample, 0], dtype=np.uint64)
    keys = [key_of(seed, int(epoch), int(sample))[0] for epoch, sample in zip(epochs, samples, strict=True)]
    assert key_of(seed, epochs, samples).tolist() == keys


@pytest.mark.parametrize("word, number", [(0, 0.0), (2**63, 0.5), (2**64 - 1, 1.0 - 2.0**-53)])
def test_uniform_numbers_range_from_zero_to_below_one(word, number):
    assert uniform(np.array([word], dtype=np.uint64)).tolist() == [number]


def test_hashes_of_consecutive_numbers_are_uniform_and_uncorrelated():
    numbers = uniform(key_of(17, np.arange(200_000)))
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(numbers[:-1], numbers[1:]).statistic) < 0.01
