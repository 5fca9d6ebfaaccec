"""Simulated token store and its collator."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mosaicbert.data.loading.collator import MlmCollator
from mosaicbert.data.tokenizer import Vocabulary

VOCAB_SIZE = 1000
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
VOCABULARY = Vocabulary(
    cls_id=CLS,
    sep_id=SEP,
    mask_id=MASK,
    pad_id=PAD,
    ordinary_ids=np.arange(5, VOCAB_SIZE),
    is_special=np.arange(VOCAB_SIZE) < 5,
)
_POOL = np.random.default_rng(3).integers(5, VOCAB_SIZE, 100_000).astype(np.uint16)
_POOL[::50] = UNKNOWN


@dataclass
class SimulatedStore:
    """Split of any size whose documents are computed on access.

    Attributes:
        num_samples: Number of samples.
        seqlens: Number of tokens of the documents, without [CLS] and [SEP], repeated cyclically.
        requests: Sample indices of each call of `read`.
    """

    num_samples: int
    seqlens: np.ndarray
    requests: list = field(default_factory=list)

    def read(self, samples):
        self.requests.append(samples.tolist())
        return [self.document(sample) for sample in samples.tolist()]

    def document(self, sample):
        first = sample * 7919 % 99_000
        return _POOL[first : first + self.seqlens[sample % len(self.seqlens)]]


def draw_seqlens(mean, max_seq_len, size=50_000):
    return np.clip(np.random.default_rng(1).lognormal(mean, 1, size), 1, max_seq_len - 2).astype(int)


def make_collator(store, rank=0, world_size=1, max_seq_len=128, micro_batch_tokens=1024, seed=17):
    return MlmCollator(
        store=store,
        vocabulary=VOCABULARY,
        seed=seed,
        max_seq_len=max_seq_len,
        micro_batch_tokens=micro_batch_tokens,
        max_mask_rate=0.3,
        rank=rank,
        world_size=world_size,
    )


def originals(batch):
    """Return the documents of a micro-batch before masking."""
    input_ids = batch.input_ids.clone()
    input_ids[batch.masked_indices[: batch.num_masked]] = batch.labels[: batch.num_masked]
    ends = batch.cu_seqlens[: batch.num_sequences + 1].tolist()
    return [input_ids[first:end].tolist() for first, end in pairwise(ends)]
