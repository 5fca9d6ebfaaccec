"""Benchmark inputs: document lengths of a token store or of simulated web text, and batches of random tokens."""

import random
from pathlib import Path

import torch

from mosaicbert.batch import MicroBatch

SIMULATED = "simulated, log-normal"


def real_seqlens(store: Path, num_tokens: int) -> list[int]:
    """Draw random document lengths from a token store, `num_tokens` tokens in total.

    Args:
        store: Folder of the token store.
        num_tokens: Total number of tokens. The last document is truncated to match it.

    Raises:
        ValueError: If the store has fewer tokens.
    """
    import numpy as np  # not available without the train extra

    from mosaicbert.data.store import TRAIN, TokenStore

    split = TokenStore(store, TRAIN)
    order = np.random.default_rng(0).permutation(split.num_samples)
    seqlens: list[int] = []
    for document in split.read(order):
        seqlens.append(len(document))
        if sum(seqlens) >= num_tokens:
            return cut(seqlens, num_tokens)
    raise ValueError(f"{store} must have at least {num_tokens:,} tokens, got {sum(seqlens):,}. Prepare more text.")


def web_like_seqlens(num_tokens: int, max_length: int) -> list[int]:
    """Draw log-normal document lengths with a median of 200 tokens, at least `num_tokens` tokens in total.

    Args:
        num_tokens: Minimum total number of tokens.
        max_length: Maximum length of a document in tokens.
    """
    draw = random.Random(0)
    seqlens: list[int] = []
    while sum(seqlens) < num_tokens:
        seqlens.append(min(max_length, max(8, round(draw.lognormvariate(5.3, 1.0)))))
    return seqlens


def cut(seqlens: list[int], num_tokens: int) -> list[int]:
    """Truncate the last document to a total of `num_tokens` tokens."""
    return [*seqlens[:-1], num_tokens - sum(seqlens[:-1])]


def random_batch(seqlens: list[int], vocab_size: int = 8192, mask_rate: float = 0.15) -> MicroBatch:
    """Make a micro-batch of random tokens with random masked positions.

    Args:
        seqlens: Lengths of the documents in tokens. They are sorted in descending order, as in the loader.
        vocab_size: Vocabulary size.
        mask_rate: Fraction of masked tokens.
    """
    seqlens = sorted(seqlens, reverse=True)
    draw = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, vocab_size, (sum(seqlens),), generator=draw)
    masked = (torch.rand(sum(seqlens), generator=draw) < mask_rate).nonzero(as_tuple=True)[0]
    cu_seqlens = torch.tensor([0, *seqlens]).cumsum(0).int()
    return MicroBatch(
        input_ids=input_ids,
        cu_seqlens=cu_seqlens,
        max_seqlen=max(seqlens),
        masked_indices=masked,
        labels=input_ids[masked],
        num_tokens=len(input_ids),
        num_sequences=len(seqlens),
        num_masked=len(masked),
    )
