"""Balancing of sequences over micro-batches and ranks by their numbers of tokens."""

import numpy as np
from numpy.typing import NDArray


def divide(seqlens: NDArray[np.int64], world_size: int, budget: int) -> list[NDArray[np.int64]]:
    """Divide the sequences of a global batch among the micro-batches of all ranks.

    The micro-batches are as few as balanced bins allow, and nearly equally long.

    Args:
        seqlens: (B,) tokens of each sequence, none above the budget.
        world_size: Number of ranks.
        budget: Maximum number of tokens of a micro-batch.

    Returns:
        The indices of the sequences of each micro-batch, longest first. Rank r owns the micro-batches r,
        r + world_size, ... No micro-batch is empty, and every rank has one if there are at least world_size sequences.
    """
    num_per_rank = max(1, -(-int(seqlens.sum()) // (world_size * budget)))
    while True:
        bins = deal(seqlens, num_per_rank * world_size)
        if max(seqlens[indices].sum() for indices in bins) <= budget:
            return bins
        num_per_rank += 1


def deal(seqlens: NDArray[np.int64], num_bins: int) -> list[NDArray[np.int64]]:
    """Deal sequences to bins, longest first, in rounds; in each round the emptiest bin gets the longest sequence.

    Bins get equal numbers of sequences and nearly equal numbers of tokens.

    Args:
        seqlens: (B,) tokens of each sequence.
        num_bins: Number of bins.

    Returns:
        The indices of the sequences of each bin, longest first. Empty bins are omitted.
    """
    longest_first = np.argsort(-seqlens, kind="stable")
    if num_bins == 1:
        return [longest_first]
    bin_of = np.empty(len(seqlens), dtype=np.int64)
    num_tokens = np.zeros(num_bins, dtype=np.int64)
    for start in range(0, len(seqlens), num_bins):
        dealt = longest_first[start : start + num_bins]
        emptiest = np.argsort(num_tokens, kind="stable")[: len(dealt)]
        bin_of[start : start + num_bins] = emptiest
        num_tokens[emptiest] += seqlens[dealt]
    by_bin = longest_first[np.argsort(bin_of, kind="stable")]
    return np.split(by_bin, np.cumsum(np.bincount(bin_of))[:-1])
