"""Documents to measure on: lengths of a real text, or made up like those of the web, and batches of random tokens."""

import random
from pathlib import Path

import torch

from mosaicbert.batch import MicroBatch

MADE_UP = "made up, log-normal"


def real_seqlens(store: Path, num_tokens: int) -> list[int]:
    """Lengths of documents drawn at random from a token store, the last one cut so that they are `num_tokens`."""
    import numpy as np  # with what follows, in the trainer's requirements only

    from mosaicbert.data.store import TRAIN, TokenStore

    samples = TokenStore(store, TRAIN)
    order = np.random.default_rng(0).permutation(samples.num_samples)
    seqlens: list[int] = []
    for document in samples.read(order):
        seqlens.append(len(document))
        if sum(seqlens) >= num_tokens:
            return cut(seqlens, num_tokens)
    raise ValueError(f"{store}: holds {sum(seqlens):,} tokens, less than {num_tokens:,}; prepare more text.")


def web_like_seqlens(num_tokens: int, longest: int) -> list[int]:
    """Log-normal, half of them under 200 tokens, cut off as a recipe cuts them. They are `num_tokens` at least."""
    draw = random.Random(0)
    seqlens: list[int] = []
    while sum(seqlens) < num_tokens:
        seqlens.append(min(longest, max(8, round(draw.lognormvariate(5.3, 1.0)))))
    return seqlens


def cut(seqlens: list[int], num_tokens: int) -> list[int]:
    """Shortens the last document so that all of them are `num_tokens`."""
    return [*seqlens[:-1], num_tokens - sum(seqlens[:-1])]


def random_batch(seqlens: list[int], vocab_size: int = 8192, mask_rate: float = 0.15) -> MicroBatch:
    """Random tokens, masked at random, in documents sorted as the loader deals them out."""
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
