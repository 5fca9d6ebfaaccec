"""The order of samples: permutations and a mixture of sources, computed at any position without a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.hashing import Words, key_of, mix

_ROUNDS = 6
_MIXTURE = 2**16  # samples over which the weights of sources hold exactly, to one part in so many


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

    Every 65,536 consecutive positions, counted from a multiple of that, hold each group's share of them in random
    order. Each group is passed over in epochs of its own, in a new order in each.

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
    first_slots = np.cumsum(slots) - slots
    portions, places = order(positions, _MIXTURE, int(key_of(seed, len(groups))[0]))
    owners = np.searchsorted(first_slots, places, side="right") - 1
    epochs, samples = np.empty_like(positions), np.empty_like(positions)
    for number, group in enumerate(groups):
        mine = owners == number
        within = portions[mine] * slots[number] + places[mine] - first_slots[number]
        epochs[mine], samples[mine] = order(within, group.num_samples, int(key_of(seed, number)[0]))
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


def _slots(weights: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers in the proportion of the weights that add up to _MIXTURE, by largest remainders."""
    exact = np.array(weights) / sum(weights) * _MIXTURE
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: _MIXTURE - int(slots.sum())]] += 1
    assert slots.all(), "a group that would never be seen: DataConfig refuses such weights"
    return slots


def _permute(words: Words, keys: Words, half_bits: np.uint64) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = words >> half_bits, words & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(keys ^ mix(right ^ (np.uint64(number) << np.uint64(56)))) & mask)
    return (left << half_bits) | right
