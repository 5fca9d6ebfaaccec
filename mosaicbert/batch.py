"""MicroBatch and StepBatch, the contract between data and model: unpadded documents that cu_seqlens separates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100  # the label of a position where nothing is to be predicted


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch: documents, some tokens of which are masked and to be predicted, filled up to static shapes.

    Behind the real documents may stand filler: documents of filler tokens, then empty ones; behind the real masked
    tokens, positions with the label -100. Filler changes no real token's output, and no loss.

    Attributes:
        input_ids: (T,) int64, the documents one behind the other, masks already applied.
        cu_seqlens: (B + 1,) int32, where each document begins; the first is 0, the last is T.
        max_seqlen: tokens of the longest document, at least.
        masked_indices: (M,) int64, positions in input_ids; the real ones are ascending.
        labels: (M,) int64, the token that stood at each of them, or -100.
        num_tokens: real tokens.
        num_sequences: real documents.
        num_masked: real masked tokens.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_indices: Tensor
    labels: Tensor
    num_tokens: int
    num_sequences: int
    num_masked: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The static sizes: T tokens, B documents, M masked tokens, filler included."""
        return self.input_ids.shape[0], self.cu_seqlens.shape[0] - 1, self.labels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MicroBatch:
        """The same batch on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """The real documents as padded models take them.

        Returns:
            input_ids, attention_mask and labels, each (num_sequences, longest document) int64; labels are -100 where
            nothing is masked.
        """
        seqlens = self.cu_seqlens[: self.num_sequences + 1].diff().long()
        longest = int(seqlens.max())
        mask = torch.arange(longest, device=seqlens.device) < seqlens[:, None]  # (B, S)
        flat_labels = torch.full_like(self.input_ids, IGNORED)
        flat_labels[self.masked_indices[: self.num_masked]] = self.labels[: self.num_masked]
        input_ids = torch.full(mask.shape, pad_token_id, device=mask.device, dtype=torch.int64)
        labels = torch.full_like(input_ids, IGNORED)
        input_ids[mask], labels[mask] = self.input_ids[: self.num_tokens], flat_labels[: self.num_tokens]
        return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one rank does in a training step: K micro-batches of one shape, kept together so that they travel as one.

    Every rank has as many if there are sequences enough for all.

    Attributes:
        input_ids: (K, T) int64; row k of this and the others has the meaning of that field of `MicroBatch`.
        cu_seqlens: (K, B + 1) int32.
        max_seqlen: tokens of the longest document, at least.
        masked_indices: (K, M) int64.
        labels: (K, M) int64.
        num_tokens: of each micro-batch.
        num_sequences: of each micro-batch.
        num_masked: of each micro-batch.
        global_tokens: real tokens of all ranks together, which each rank computes by itself.
        global_samples: real documents of all ranks together.
        global_masked: masked tokens of all ranks together.
        mask_rate: that the step was masked at.
        batch: number of the batch in the run's order; 0 in evaluation.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_indices: Tensor
    labels: Tensor
    num_tokens: tuple[int, ...]
    num_sequences: tuple[int, ...]
    num_masked: tuple[int, ...]
    global_tokens: int
    global_samples: int
    global_masked: int
    mask_rate: float
    batch: int = 0

    def pin_memory(self) -> StepBatch:
        """The same step in memory that a GPU copies from without waiting; what a DataLoader asks for."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """The micro-batches, as views."""
        return [
            MicroBatch(
                input_ids=self.input_ids[number],
                cu_seqlens=self.cu_seqlens[number],
                max_seqlen=self.max_seqlen,
                masked_indices=self.masked_indices[number],
                labels=self.labels[number],
                num_tokens=self.num_tokens[number],
                num_sequences=self.num_sequences[number],
                num_masked=self.num_masked[number],
            )
            for number in range(len(self.num_tokens))
        ]
