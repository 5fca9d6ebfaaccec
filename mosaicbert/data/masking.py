"""Which tokens are masked: a function of (seed, epoch, sample, position) that no worker, rank or resume can change."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.data.hashing import Words, key_of, mix, uniform

# BERT's split of the chosen tokens (Devlin et al. 2019, arXiv:1810.04805): 80% [MASK], 10% another token, 10% kept.
_MASK_SHARE = 0.8
_RANDOM_SHARE = 0.1


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    Attributes:
        cls_id: the id of [CLS], which begins every sequence.
        sep_id: the id of [SEP], which ends it.
        mask_id: the id of [MASK].
        ordinary_ids: (N,) ids of the tokenizer's entries that are not special: what may be masked, and drawn.
        is_special: (entries,) bool, True for [PAD], [UNK], [CLS], [SEP] and [MASK].
    """

    cls_id: int
    sep_id: int
    mask_id: int
    ordinary_ids: NDArray[np.int64]
    is_special: NDArray[np.bool_]


def mask_tokens(
    input_ids: NDArray[np.int64], counters: Words, rate: float, vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Masks a share of the ordinary tokens.

    Args:
        input_ids: (T,) tokens, specials included.
        counters: (T,) one number per token that no other token of the run has, see `token_counters`.
        rate: the probability that an ordinary token is chosen.
        vocabulary: of the tokenizer.

    Returns:
        input_ids with masks, the positions (M,) of the chosen tokens, ascending, and what stood there (M,).
    """
    chosen = (uniform(mix(counters)) < rate) & ~vocabulary.is_special[input_ids]
    masked_indices = chosen.nonzero()[0]
    labels = input_ids[masked_indices]

    fate = uniform(key_of(counters[masked_indices], 1))
    drawn = key_of(counters[masked_indices], 2) % np.uint64(len(vocabulary.ordinary_ids))
    replacements = labels.copy()
    replacements[fate < _MASK_SHARE] = vocabulary.mask_id
    random = (fate >= _MASK_SHARE) & (fate < _MASK_SHARE + _RANDOM_SHARE)
    replacements[random] = vocabulary.ordinary_ids[drawn[random]]

    masked = input_ids.copy()
    masked[masked_indices] = replacements
    return masked, masked_indices, labels


def token_counters(
    seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64], seqlens: NDArray[np.int64]
) -> Words:
    """One number for every token of some documents, of B documents with T tokens in all: (T,)."""
    keys = key_of(seed, epochs.astype(np.uint64), samples.astype(np.uint64))  # (B,)
    starts = np.cumsum(seqlens) - seqlens
    positions = np.arange(seqlens.sum()) - np.repeat(starts, seqlens)
    return mix(np.repeat(keys, seqlens) ^ positions.astype(np.uint64))
