"""Sample order: permutations and a mixture of sources, computed at any position without a table."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix

_ROUNDS = 6
_SMALL_HALF_BITS = 2  # of up to 16 samples: so few bits need more rounds to mix
WINDOW = 2**14  # positions in which each group has exactly its fraction, rounded to 1 / WINDOW


@dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive samples of the store with epochs of their own.

    Attributes:
        first_sample: Index of the first sample.
        num_samples: Number of samples.
        weight: Fraction of all positions, relative to the weights of the other groups.
    """

    first_sample: int
    num_samples: int
    weight: float


def mixed_order(
    positions: NDArray[np.int64], groups: Sequence[Group], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the samples at positions of an endless stream that mixes groups by their weights.

    Each window of positions has each group's fraction of them, in random order. Each group has its own epochs, each in
    a new order.

    Args:
        positions: Positions, at least 0.
        groups: Groups of samples.
        seed: Seed of the run.

    Returns:
        The epoch of the group, and the index of the sample, at each position; both shaped like positions.
    """
    if len(groups) == 1:
        epochs, samples = order(positions, groups[0].num_samples, seed)
        return epochs, samples + groups[0].first_sample
    slots = _slots([group.weight for group in groups])
    epochs, samples = np.empty_like(positions), np.empty_like(positions)
    windows, offsets = np.divmod(positions, WINDOW)
    for window in np.unique(windows).tolist():
        owners, ranks = _mix_window(window, slots, seed)
        inside = np.flatnonzero(windows == window)
        for number, group in enumerate(groups):
            of_group = inside[owners[offsets[inside]] == number]
            nth = window * slots[number] + ranks[offsets[of_group]]
            epochs[of_group], samples[of_group] = order(nth, group.num_samples, int(key_of(seed, number)[0]))
            samples[of_group] += group.first_sample
    return epochs, samples


def order(positions: NDArray[np.int64], num_samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the samples at positions of an endless stream that has every sample once per epoch, in random order.

    Args:
        positions: Positions, at least 0.
        num_samples: Number of samples in an epoch.
        seed: Seed of the run.

    Returns:
        The epoch, and the index of the sample, at each position; both shaped like positions.

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


def _slots(weights: Sequence[float]) -> tuple[int, ...]:
    """Round weights to whole numbers that add up to WINDOW, by largest remainders."""
    exact = np.array(weights) / sum(weights) * WINDOW
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: WINDOW - int(slots.sum())]] += 1
    assert slots.all(), "a group without a position: DataConfig rejects such weights"
    return tuple(slots.tolist())


@functools.lru_cache(maxsize=4)  # consecutive steps share a window
def _mix_window(window: int, slots: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the group of each position of a window, and its rank among those of the group."""
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
    for number in range(_ROUNDS if half_bits > _SMALL_HALF_BITS else 2 * _ROUNDS):
        left, right = right, left ^ (mix(keys ^ mix(right ^ (np.uint64(number) << np.uint64(56)))) & mask)
    return (left << half_bits) | right
