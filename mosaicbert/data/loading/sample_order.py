"""Sample order: shuffled epochs and mixtures of sources, computed at any position without a table."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix

_NUM_ROUNDS = 6
_SMALL_HALF_BITS = 2  # up to 16 samples, whose few bits need more rounds
WINDOW = 2**14  # number of positions over which the fraction of each group is exact, rounded to 1 / WINDOW


@dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive samples in the store that are shuffled together.

    Attributes:
        first_sample: Index of the first sample.
        num_samples: Number of samples.
        weight: Relative frequency in the sample order.
    """

    first_sample: int
    num_samples: int
    weight: float


def mixed_order(
    positions: NDArray[np.int64], groups: Sequence[Group], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the samples at positions of an endless stream that mixes groups by weight.

    In every window of WINDOW positions each group has its exact fraction, in random order. Each group has its own
    epochs, each with a new order.

    Args:
        positions: Non-negative positions.
        groups: Groups of samples.
        seed: Seed of the run.

    Returns:
        Epoch of the group and index of the sample at each position, both with the shape of positions.
    """
    if len(groups) == 1:
        epochs, samples = order(positions, groups[0].num_samples, seed)
        return epochs, samples + groups[0].first_sample
    slots = _slots([group.weight for group in groups])
    epochs, samples = np.empty_like(positions), np.empty_like(positions)
    windows, offsets = np.divmod(positions, WINDOW)
    for window in np.unique(windows).tolist():
        owners, ranks = _mix_window(window, slots, seed)
        in_window = np.flatnonzero(windows == window)
        for index, group in enumerate(groups):
            in_group = in_window[owners[offsets[in_window]] == index]
            group_positions = window * slots[index] + ranks[offsets[in_group]]
            group_seed = int(key_of(seed, index)[0])
            epochs[in_group], samples[in_group] = order(group_positions, group.num_samples, group_seed)
            samples[in_group] += group.first_sample
    return epochs, samples


def order(positions: NDArray[np.int64], num_samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the samples at positions of an endless stream of shuffled epochs.

    Args:
        positions: Non-negative positions.
        num_samples: Number of samples per epoch.
        seed: Seed of the run.

    Returns:
        Epoch and index of the sample at each position, both with the shape of positions.

    Source: Feistel network on the index (Luby, Rackoff 1988, doi:10.1137/0217022) with cycle walking to values below
    num_samples (Black, Rogaway 2002, doi:10.1007/3-540-45760-7_9).
    """
    epochs, indices = np.divmod(positions, num_samples)
    half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
    keys = key_of(seed, epochs.astype(np.uint64))
    samples = _permute(indices.astype(np.uint64), keys, half_bits)
    while (is_outside := samples >= num_samples).any():
        samples[is_outside] = _permute(samples[is_outside], keys[is_outside], half_bits)
    return epochs, samples.astype(np.int64)


def _slots(weights: Sequence[float]) -> tuple[int, ...]:
    """Round weights to integers whose sum is WINDOW, by the largest remainder method."""
    exact = np.array(weights) / sum(weights) * WINDOW
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: WINDOW - int(slots.sum())]] += 1
    assert slots.all(), "every group must have a position, which DataConfig ensures"
    return tuple(slots.tolist())


@functools.lru_cache(maxsize=4)  # consecutive steps use the same window
def _mix_window(window: int, slots: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the group of each position of a window, and the rank of the position within its group."""
    positions = np.arange(window * WINDOW, (window + 1) * WINDOW)
    _, shuffled = order(positions, WINDOW, int(key_of(seed, len(slots))[0]))
    owners = np.searchsorted(np.cumsum(slots), shuffled, side="right")
    by_owner = np.argsort(owners, kind="stable")
    ranks = np.empty(WINDOW, dtype=np.int64)
    ranks[by_owner] = np.arange(WINDOW) - np.repeat(np.cumsum(slots) - slots, slots)
    return owners, ranks


def _permute(words: Words, keys: Words, half_bits: np.uint64) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = words >> half_bits, words & mask
    for index in range(_NUM_ROUNDS if half_bits > _SMALL_HALF_BITS else 2 * _NUM_ROUNDS):
        left, right = right, left ^ (mix(keys ^ mix(right ^ (np.uint64(index) << np.uint64(56)))) & mask)
    return (left << half_bits) | right
