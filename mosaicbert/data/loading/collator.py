"""Collator from samples to micro-batches: masking, balancing over ranks, and padding to static shapes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mosaicbert.batch import IGNORED, StepBatch
from mosaicbert.config.recipe import NUM_SPECIAL_TOKENS
from mosaicbert.data.loading.balancing import balance_micro_batches
from mosaicbert.data.loading.counter_rng import Words
from mosaicbert.data.loading.masking import choose_masked, replace_masked, token_counters
from mosaicbert.data.store import TokenStore
from mosaicbert.data.tokenizer import Vocabulary

_MASKED_DEVIATIONS = 3  # capacity for masked tokens above their expected number, in standard deviations
_NUM_SHAPES = 128  # micro-batches are padded to a multiple of micro_batch_tokens / _NUM_SHAPES tokens


@dataclass(frozen=True, kw_only=True)
class MlmCollator:
    """Collator for masked language modeling, from the samples of a global batch to the micro-batches of one rank.

    The result is a pure function of the arguments.

    Attributes:
        store: Split to read.
        vocabulary: Vocabulary of the store's tokenizer.
        seed: Seed of the masking.
        max_seq_len: Maximum number of tokens per sample, including [CLS] and [SEP].
        micro_batch_tokens: Maximum number of tokens per micro-batch.
        max_mask_rate: Highest mask rate of the run, which determines the capacity for masked tokens.
        rank: Rank of this process.
        world_size: Number of ranks.
    """

    store: TokenStore
    vocabulary: Vocabulary
    seed: int
    max_seq_len: int
    micro_batch_tokens: int
    max_mask_rate: float
    rank: int
    world_size: int

    def collate(self, epochs: NDArray[np.int64], samples: NDArray[np.int64], mask_rate: float) -> StepBatch:
        """Collate the micro-batches of this rank from a global batch.

        Args:
            epochs: (B,) epoch of each sample of the global batch.
            samples: (B,) index of each sample in the store.
            mask_rate: Probability that an ordinary token is masked.
        """
        documents = self.store.read(samples)
        seqlens = np.array([len(document) for document in documents], dtype=np.int64) + NUM_SPECIAL_TOKENS
        # Every rank masks all micro-batches of the step. This determines the common shape and the global number of
        # masked tokens without communication.
        bins = balance_micro_batches(seqlens, self.world_size, self.micro_batch_tokens)
        # All ranks have the same number of micro-batches, since ranks that shard the weights synchronize every pass.
        bins += [np.zeros(0, dtype=np.int64)] * (-len(bins) % self.world_size)
        unpadded = [
            self._mask(epochs[indices], samples[indices], [documents[i] for i in indices], seqlens[indices], mask_rate)
            for indices in bins
        ]
        return self._pad(unpadded[self.rank :: self.world_size], self._shape(unpadded), unpadded, mask_rate)

    def _mask(
        self,
        epochs: NDArray[np.int64],
        samples: NDArray[np.int64],
        documents: Sequence[NDArray[np.int64]],
        seqlens: NDArray[np.int64],
        mask_rate: float,
    ) -> "_UnpaddedMicroBatch":
        text = np.concatenate([np.zeros(0, dtype=np.int64), *documents])
        # Position 0 of each sequence is [CLS]. Neither [CLS] nor [SEP] is ever masked.
        counters = token_counters(self.seed, epochs, samples, seqlens - NUM_SPECIAL_TOKENS, first_position=1)
        masked_positions = choose_masked(text, counters, mask_rate, self.vocabulary)
        return _UnpaddedMicroBatch(text, seqlens, masked_positions, counters[masked_positions])

    def _shape(self, unpadded: Sequence["_UnpaddedMicroBatch"]) -> tuple[int, int, int]:
        quantum = max(8, self.micro_batch_tokens // _NUM_SHAPES)
        num_tokens, num_sequences, num_masked = zip(*(micro_batch.counts for micro_batch in unpadded), strict=True)
        tokens = min(_round_up(max(num_tokens), quantum), self.micro_batch_tokens)
        # Padding documents follow the real documents. Empty documents are almost free, so their number is rounded up.
        num_padding_documents = [-(-(tokens - num_real) // self.max_seq_len) for num_real in num_tokens]
        sequences = max(map(sum, zip(num_sequences, num_padding_documents, strict=True)))
        sequences = _round_up(sequences, max(1, 1 << sequences.bit_length() >> 2))
        # The capacity for masked tokens depends on the number of tokens only, so that it does not create more shapes.
        rate = self.max_mask_rate
        expected = tokens * rate + _MASKED_DEVIATIONS * math.sqrt(tokens * rate * (1 - rate))
        return tokens, sequences, _round_up(max(math.ceil(expected), *num_masked), max(8, quantum // 2))

    def _pad(
        self,
        unpadded: Sequence["_UnpaddedMicroBatch"],
        shape: tuple[int, int, int],
        all_unpadded: Sequence["_UnpaddedMicroBatch"],
        mask_rate: float,
    ) -> StepBatch:
        tokens, sequences, masked = shape
        input_ids = np.full((len(unpadded), tokens), self.vocabulary.pad_id, dtype=np.int64)
        cu_seqlens = np.full((len(unpadded), sequences + 1), tokens, dtype=np.int32)
        cu_seqlens[:, 0] = 0
        masked_indices = np.zeros((len(unpadded), masked), dtype=np.int64)
        labels = np.full((len(unpadded), masked), IGNORED, dtype=np.int64)
        counts = [micro_batch.counts for micro_batch in unpadded]
        for row, (micro_batch, (num_tokens, num_sequences, num_masked)) in enumerate(
            zip(unpadded, counts, strict=True)
        ):
            ends = np.cumsum(micro_batch.seqlens)
            starts = ends - micro_batch.seqlens
            is_text = np.ones(num_tokens, dtype=np.bool_)
            is_text[starts] = is_text[ends - 1] = False
            ids = input_ids[row, :num_tokens]
            ids[is_text] = micro_batch.text
            ids[starts], ids[ends - 1] = self.vocabulary.cls_id, self.vocabulary.sep_id
            cu_seqlens[row, 1 : num_sequences + 1] = ends
            # Padding documents have at most max_seq_len tokens.
            padding_starts = np.arange(num_tokens, tokens, self.max_seq_len)[1:]
            cu_seqlens[row, num_sequences + 1 : num_sequences + 1 + len(padding_starts)] = padding_starts
            indices = np.flatnonzero(is_text)[micro_batch.masked_positions]
            masked_indices[row, :num_masked] = indices
            labels[row, :num_masked] = ids[indices]
            ids[indices] = replace_masked(labels[row, :num_masked], micro_batch.counters, self.vocabulary)
        global_num_tokens, global_num_samples, global_num_masked = map(
            sum, zip(*(micro_batch.counts for micro_batch in all_unpadded), strict=True)
        )
        return StepBatch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=self.max_seq_len,
            masked_indices=torch.from_numpy(masked_indices),
            labels=torch.from_numpy(labels),
            num_tokens=tuple(num_tokens for num_tokens, _, _ in counts),
            num_sequences=tuple(num_sequences for _, num_sequences, _ in counts),
            num_masked=tuple(num_masked for _, _, num_masked in counts),
            global_num_tokens=global_num_tokens,
            global_num_samples=global_num_samples,
            global_num_masked=global_num_masked,
            mask_rate=mask_rate,
        )


@dataclass(frozen=True)
class _UnpaddedMicroBatch:
    """Micro-batch before padding to the common shape.

    Attributes:
        text: Tokens of all documents, excluding [CLS] and [SEP].
        seqlens: (B,) number of tokens of each document, including [CLS] and [SEP].
        masked_positions: (M,) positions of the masked tokens in text.
        counters: (M,) counters of the masked tokens.
    """

    text: NDArray[Any]
    seqlens: NDArray[np.int64]
    masked_positions: NDArray[np.int64]
    counters: Words

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of tokens, documents and masked tokens."""
        return len(self.text) + NUM_SPECIAL_TOKENS * len(self.seqlens), len(self.seqlens), len(self.masked_positions)


def _round_up(number: int, quantum: int) -> int:
    return -(-number // quantum) * quantum
