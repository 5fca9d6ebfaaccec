"""Masking as a pure function of (seed, epoch, sample, position), independent of worker, rank and resume."""

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix, uniform
from mosaicbert.data.tokenizer import Vocabulary

# BERT's split of the chosen tokens (Devlin et al. 2019, arXiv:1810.04805): 80% [MASK], 10% another token, 10% kept.
_MASK_FRACTION = 0.8
_RANDOM_FRACTION = 0.1


def choose_masked(
    input_ids: NDArray[np.int64], counters: Words, rate: float, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """Choose a fraction of the ordinary tokens, each independently.

    Args:
        input_ids: (T,) tokens; special ones are never chosen.
        counters: (T,) unique number of each token, see `token_counters`.
        rate: Probability that an ordinary token is chosen. Tokens chosen at a rate are also chosen at any higher one.
        vocabulary: Vocabulary of the tokenizer.

    Returns:
        The positions (M,) of the chosen tokens, ascending.
    """
    chosen = np.flatnonzero(counters < np.uint64(rate * 2.0**64))
    return chosen[~vocabulary.is_special[input_ids[chosen]]]


def replace_masked(labels: NDArray[np.int64], counters: Words, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Replace chosen tokens by [MASK], by a random token, or by themselves.

    Args:
        labels: (M,) original tokens at the masked positions.
        counters: (M,) counters of these tokens.
        vocabulary: Vocabulary of the tokenizer.
    """
    fate = uniform(key_of(counters, 1))
    drawn = key_of(counters, 2) % np.uint64(len(vocabulary.ordinary_ids))
    replacements = labels.copy()
    replacements[fate < _MASK_FRACTION] = vocabulary.mask_id
    random = (fate >= _MASK_FRACTION) & (fate < _MASK_FRACTION + _RANDOM_FRACTION)
    replacements[random] = vocabulary.ordinary_ids[drawn[random]]
    return replacements


def token_counters(
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
    seqlens: NDArray[np.int64],
    first_position: int = 0,
) -> Words:
    """Compute a unique number for every token of B documents with T tokens in total: (T,).

    Args:
        seed: Seed of the run.
        epochs: (B,) epoch of each document.
        samples: (B,) index of each document in the store.
        seqlens: (B,) tokens of each document.
        first_position: Position of the first token of each document.
    """
    keys = key_of(seed, epochs.astype(np.uint64), samples.astype(np.uint64))  # (B,)
    starts = np.cumsum(seqlens) - seqlens - first_position
    positions = np.arange(seqlens.sum()) - np.repeat(starts, seqlens)
    return mix(np.repeat(keys, seqlens) ^ positions.astype(np.uint64))
