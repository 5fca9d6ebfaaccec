"""MicroBatch and StepBatch, the contract between data and model: unpadded documents that cu_seqlens separates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100  # label of a position without a target


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Concatenated documents with masked tokens, padded to static shapes.

    Padding documents, then empty documents, may follow the real ones. Padding with the label -100 may follow the real
    masked tokens. Padding changes neither the outputs of real tokens nor the loss.

    Attributes:
        input_ids: (T,) int64 tokens of all documents, masks applied.
        cu_seqlens: (B + 1,) int32 start of each document; the first is 0, the last is T.
        max_seqlen: Upper bound of the tokens of a document.
        masked_indices: (M,) int64 positions in input_ids; the real ones are ascending.
        labels: (M,) int64 original token at each of these positions, or -100.
        num_tokens: Number of real tokens.
        num_sequences: Number of real documents.
        num_masked: Number of real masked tokens.
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
        """Static sizes T, B and M: tokens, documents and masked tokens, padding included."""
        return self.input_ids.shape[0], self.cu_seqlens.shape[0] - 1, self.labels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MicroBatch:
        """Copy the micro-batch to a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """Convert the real documents to the inputs of padded models.

        Returns:
            input_ids, attention_mask and labels, each (num_sequences, longest document) int64; labels are -100 at
            tokens that are not masked.
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
    """Micro-batches of one rank in one step, stacked so that a data loader worker sends few tensors.

    All K micro-batches of all ranks have one shape, and all ranks have the same K.

    Attributes:
        input_ids: (K, T) int64; row k of each tensor is that field of micro-batch k, see `MicroBatch`.
        cu_seqlens: (K, B + 1) int32.
        max_seqlen: Upper bound of the tokens of a document.
        masked_indices: (K, M) int64.
        labels: (K, M) int64.
        num_tokens: Number of real tokens of each micro-batch.
        num_sequences: Number of real documents of each micro-batch.
        num_masked: Number of real masked tokens of each micro-batch.
        global_tokens: Number of real tokens of all ranks, which each rank computes without communication.
        global_samples: Number of real documents of all ranks.
        global_masked: Number of masked tokens of all ranks.
        mask_rate: Mask rate of the step.
        batch: Number of the batch in the sample order of the run; 0 in evaluation.
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
        """Copy the step to pinned memory, from which a GPU copies asynchronously; called by the DataLoader."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """The micro-batches, as views of the stacked tensors."""
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
