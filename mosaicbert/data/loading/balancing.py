"""Balancing of sequences over micro-batches and ranks by number of tokens."""

import numpy as np
from numpy.typing import NDArray


def balance_micro_batches(seqlens: NDArray[np.int64], world_size: int, max_tokens: int) -> list[NDArray[np.int64]]:
    """Divide the sequences of a global batch among the micro-batches of all ranks.

    The number of micro-batches is the smallest for which balanced bins fit the token budget. All micro-batches have
    nearly the same number of tokens.

    Args:
        seqlens: (B,) number of tokens of each sequence, at most max_tokens.
        world_size: Number of ranks.
        max_tokens: Maximum number of tokens per micro-batch.

    Returns:
        Indices of the sequences of each micro-batch, longest sequence first. Rank r processes the micro-batches r,
        r + world_size, and so on. No micro-batch is empty, and every rank has at least one if there are at least
        world_size sequences.
    """
    num_per_rank = max(1, -(-int(seqlens.sum()) // (world_size * max_tokens)))
    while True:
        bins = assign_to_bins(seqlens, num_per_rank * world_size)
        if max(seqlens[indices].sum() for indices in bins) <= max_tokens:
            return bins
        num_per_rank += 1


def assign_to_bins(seqlens: NDArray[np.int64], num_bins: int) -> list[NDArray[np.int64]]:
    """Assign sequences to bins with equal numbers of sequences and nearly equal numbers of tokens.

    The sequences are assigned longest first, in rounds of one sequence per bin. In each round the bin with the fewest
    tokens receives the longest sequence.

    Args:
        seqlens: (B,) number of tokens of each sequence.
        num_bins: Number of bins.

    Returns:
        Indices of the sequences of each bin, longest sequence first. Empty bins are omitted.
    """
    longest_first = np.argsort(-seqlens, kind="stable")
    if num_bins == 1:
        return [longest_first]
    bin_of = np.empty(len(seqlens), dtype=np.int64)
    num_tokens = np.zeros(num_bins, dtype=np.int64)
    for start in range(0, len(seqlens), num_bins):
        round_indices = longest_first[start : start + num_bins]
        bins = np.argsort(num_tokens, kind="stable")[: len(round_indices)]
        bin_of[start : start + num_bins] = bins
        num_tokens[bins] += seqlens[round_indices]
    by_bin = longest_first[np.argsort(bin_of, kind="stable")]
    return np.split(by_bin, np.cumsum(np.bincount(bin_of))[:-1])
