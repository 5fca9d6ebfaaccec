"""The order of samples: a permutation per epoch, computed at any position without a table."""

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.hashing import Words, key_of, mix

_ROUNDS = 6


def order(positions: NDArray[np.int64], num_samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which sample stands at each position of an endless stream that passes over all samples once per epoch.

    Args:
        positions: any numbers >= 0.
        num_samples: samples in an epoch.
        seed: of the run.

    Returns:
        The epoch and the sample of each position, both shaped like positions.

    Source: a Feistel network on the index (Luby, Rackoff 1988, doi:10.1137/0217022), walked until it lands below
    num_samples (Black, Rogaway 2002, doi:10.1007/3-540-45760-7_9).
    """
    epochs, indices = np.divmod(positions, num_samples)
    half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
    keys = key_of(seed, epochs.astype(np.uint64))
    samples = _permute(indices.astype(np.uint64), keys, half_bits)
    while (outside := samples >= num_samples).any():
        samples[outside] = _permute(samples[outside], keys[outside], half_bits)
    return epochs, samples.astype(np.int64)


def _permute(words: Words, keys: Words, half_bits: np.uint64) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = words >> half_bits, words & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(keys ^ mix(right ^ (np.uint64(number) << np.uint64(56)))) & mask)
    return (left << half_bits) | right
