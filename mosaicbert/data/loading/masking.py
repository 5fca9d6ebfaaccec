"""Masking as a pure function of seed, epoch, sample and position, independent of workers and ranks."""

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix, uniform
from mosaicbert.data.tokenizer import Vocabulary

# Replacement of masked tokens in BERT (Devlin et al. 2019, arXiv:1810.04805): 80% [MASK], 10% random, 10% unchanged.
_MASK_FRACTION = 0.8
_RANDOM_FRACTION = 0.1


def choose_masked(
    input_ids: NDArray[np.int64], counters: Words, rate: float, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """Choose the tokens to mask, each ordinary token independently.

    Args:
        input_ids: (T,) token ids. Special tokens are never chosen.
        counters: (T,) counter of each token, see `token_counters`.
        rate: Probability of each ordinary token. A token chosen at one rate is also chosen at every higher rate.
        vocabulary: Vocabulary of the tokenizer.

    Returns:
        Positions (M,) of the chosen tokens, ascending.
    """
    chosen = np.flatnonzero(counters < np.uint64(rate * 2.0**64))
    return chosen[~vocabulary.is_special[input_ids[chosen]]]


def replace_masked(labels: NDArray[np.int64], counters: Words, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Replace masked tokens with [MASK] or a random token, or keep them, with the probabilities of BERT.

    Args:
        labels: (M,) original token ids at the masked positions.
        counters: (M,) counter of each masked token.
        vocabulary: Vocabulary of the tokenizer.
    """
    draws = uniform(key_of(counters, 1))
    indices = key_of(counters, 2) % np.uint64(len(vocabulary.ordinary_ids))
    replacements = labels.copy()
    replacements[draws < _MASK_FRACTION] = vocabulary.mask_id
    is_random = (draws >= _MASK_FRACTION) & (draws < _MASK_FRACTION + _RANDOM_FRACTION)
    replacements[is_random] = vocabulary.ordinary_ids[indices[is_random]]
    return replacements


def token_counters(
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
    seqlens: NDArray[np.int64],
    first_position: int = 0,
) -> Words:
    """Compute the random number counter (T,) of every token of B documents with T tokens in total.

    Args:
        seed: Seed of the run.
        epochs: (B,) epoch of each document.
        samples: (B,) index of each document in the store.
        seqlens: (B,) number of tokens of each document.
        first_position: Position of the first token of each document.
    """
    keys = key_of(seed, epochs.astype(np.uint64), samples.astype(np.uint64))  # (B,)
    starts = np.cumsum(seqlens) - seqlens - first_position
    positions = np.arange(seqlens.sum()) - np.repeat(starts, seqlens)
    return mix(np.repeat(keys, seqlens) ^ positions.astype(np.uint64))
