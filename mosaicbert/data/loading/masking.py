"""Which tokens are masked: a function of (seed, epoch, sample, position) that no worker, rank or resume can change."""

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.loading.counter_rng import Words, key_of, mix, uniform
from mosaicbert.data.tokenizer import Vocabulary

# BERT's split of the chosen tokens (Devlin et al. 2019, arXiv:1810.04805): 80% [MASK], 10% another token, 10% kept.
_MASK_SHARE = 0.8
_RANDOM_SHARE = 0.1


def choose_masked(
    input_ids: NDArray[np.int64], counters: Words, rate: float, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """Chooses a share of the ordinary tokens, each for itself.

    Args:
        input_ids: (T,) tokens, some of which may be special.
        counters: (T,) one number per token that no other token of the run has, see `token_counters`.
        rate: the probability that an ordinary token is chosen; what is chosen at a rate is also chosen at a higher one.
        vocabulary: of the tokenizer.

    Returns:
        The positions (M,) of the chosen tokens, ascending.
    """
    chosen = np.flatnonzero(counters < np.uint64(rate * 2.0**64))
    return chosen[~vocabulary.is_special[input_ids[chosen]]]


def replace_masked(labels: NDArray[np.int64], counters: Words, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """What stands in the place of chosen tokens: [MASK], another token, or the same.

    Args:
        labels: (M,) the tokens that stood there.
        counters: (M,) of these tokens.
        vocabulary: of the tokenizer.
    """
    fate = uniform(key_of(counters, 1))
    drawn = key_of(counters, 2) % np.uint64(len(vocabulary.ordinary_ids))
    replacements = labels.copy()
    replacements[fate < _MASK_SHARE] = vocabulary.mask_id
    random = (fate >= _MASK_SHARE) & (fate < _MASK_SHARE + _RANDOM_SHARE)
    replacements[random] = vocabulary.ordinary_ids[drawn[random]]
    return replacements


def token_counters(
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
    seqlens: NDArray[np.int64],
    first_position: int = 0,
) -> Words:
    """One number for every token of some documents, of B documents with T tokens in all: (T,).

    Args:
        seed: of the run.
        epochs: (B,) of each document.
        samples: (B,) their numbers in the store.
        seqlens: (B,) tokens of each.
        first_position: in its document, of each document's first token.
    """
    keys = key_of(seed, epochs.astype(np.uint64), samples.astype(np.uint64))  # (B,)
    starts = np.cumsum(seqlens) - seqlens - first_position
    positions = np.arange(seqlens.sum()) - np.repeat(starts, seqlens)
    return mix(np.repeat(keys, seqlens) ^ positions.astype(np.uint64))
