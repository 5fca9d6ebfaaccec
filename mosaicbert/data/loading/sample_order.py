"""The order of samples: permutations and a mixture of sources, computed at any position without a table."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix

_ROUNDS = 6
_SMALL_HALF_BITS = 2  # of up to 16 samples: so few bits take more rounds to be scrambled
WINDOW = 2**14  # positions over which the weights of groups hold exactly, to one part in so many


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples that stand together and are passed over at their own speed.

    Attributes:
        first_sample: of the group.
        num_samples: in the group.
        weight: share of all positions, relative to the other groups'.
    """

    first_sample: int
    num_samples: int
    weight: float


def mixed_order(
    positions: NDArray[np.int64], groups: Sequence[Group], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which sample stands at each position of an endless stream that mixes groups by their weights.

    Each window of positions holds each group's share of it, in random order. Each group is passed over in epochs of its
    own, one after the other, in a new order in each.

    Args:
        positions: any numbers >= 0.
        groups: of samples.
        seed: of the run.

    Returns:
        The epoch, counted by group, and the sample of each position, both shaped like positions.
    """
    if len(groups) == 1:
        epochs, samples = order(positions, groups[0].num_samples, seed)
        return epochs, samples + groups[0].first_sample
    slots = _slots([group.weight for group in groups])
    epochs, samples = np.empty_like(positions), np.empty_like(positions)
    windows, places = np.divmod(positions, WINDOW)
    for window in np.unique(windows).tolist():
        owners, ranks = _mix_window(window, slots, seed)
        inside = np.flatnonzero(windows == window)
        for number, group in enumerate(groups):
            mine = inside[owners[places[inside]] == number]
            nth = window * slots[number] + ranks[places[mine]]
            epochs[mine], samples[mine] = order(nth, group.num_samples, int(key_of(seed, number)[0]))
            samples[mine] += group.first_sample
    return epochs, samples


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


def _slots(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the proportion of the weights that add up to WINDOW, by largest remainders."""
    exact = np.array(weights) / sum(weights) * WINDOW
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: WINDOW - int(slots.sum())]] += 1
    assert slots.all(), "a group that would never be seen: DataConfig refuses such weights"
    return tuple(slots.tolist())


@functools.lru_cache(maxsize=4)  # consecutive steps share a window
def _mix_window(window: int, slots: tuple[int, ...], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each place of a window, and how many of that group stand before it there."""
    places = np.arange(window * WINDOW, (window + 1) * WINDOW)
    _, shuffled = order(places, WINDOW, int(key_of(seed, len(slots))[0]))
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
