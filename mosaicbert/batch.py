"""Batches that the data loader passes to the model: unpadded documents separated by cu_seqlens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100  # label of positions that the loss ignores


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Concatenated documents with masked tokens, padded to static shapes.

    The real documents may be followed by padding documents and empty documents, and the real masked tokens by entries
    with the label -100. Padding changes neither the outputs of real tokens nor the loss.

    Attributes:
        input_ids: (T,) int64 tokens of all documents, after masking.
        cu_seqlens: (B + 1,) int32 start of each document, followed by T.
        max_seqlen: Upper bound of the document length in tokens.
        masked_indices: (M,) int64 positions in input_ids; the real ones are ascending.
        labels: (M,) int64 original token at each masked position, -100 at padding.
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
        """Copy all tensors to a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """Convert the real documents to padded model inputs.

        Returns:
            input_ids, attention_mask and labels, each (num_sequences, length of the longest document) int64; labels
            are -100 at tokens that are not masked.
        """
        seqlens = self.cu_seqlens[: self.num_sequences + 1].diff().long()
        max_seqlen = int(seqlens.max())
        mask = torch.arange(max_seqlen, device=seqlens.device) < seqlens[:, None]  # (B, S)
        flat_labels = torch.full_like(self.input_ids, IGNORED)
        flat_labels[self.masked_indices[: self.num_masked]] = self.labels[: self.num_masked]
        input_ids = torch.full(mask.shape, pad_token_id, device=mask.device, dtype=torch.int64)
        labels = torch.full_like(input_ids, IGNORED)
        input_ids[mask], labels[mask] = self.input_ids[: self.num_tokens], flat_labels[: self.num_tokens]
        return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Micro-batches of one rank in one step, stacked into few tensors for the transfer from a data loader worker.

    The micro-batches of all ranks have the same shape, and all ranks have the same number of micro-batches, K.

    Attributes:
        input_ids: (K, T) int64. Row k of each tensor is the field of micro-batch k, see `MicroBatch`.
        cu_seqlens: (K, B + 1) int32.
        max_seqlen: Upper bound of the document length in tokens.
        masked_indices: (K, M) int64.
        labels: (K, M) int64.
        num_tokens: Number of real tokens of each micro-batch.
        num_sequences: Number of real documents of each micro-batch.
        num_masked: Number of real masked tokens of each micro-batch.
        global_num_tokens: Number of real tokens of all ranks, computed on each rank without communication.
        global_num_samples: Number of real documents of all ranks.
        global_num_masked: Number of masked tokens of all ranks.
        mask_rate: Mask rate of the step.
        batch: Index of the global batch in the sample order of the run; 0 in evaluation.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_indices: Tensor
    labels: Tensor
    num_tokens: tuple[int, ...]
    num_sequences: tuple[int, ...]
    num_masked: tuple[int, ...]
    global_num_tokens: int
    global_num_samples: int
    global_num_masked: int
    mask_rate: float
    batch: int = 0

    def pin_memory(self) -> StepBatch:
        """Copy the tensors to pinned memory for asynchronous copies to a GPU. The DataLoader calls this method."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """Micro-batches as views of the stacked tensors."""
        return [
            MicroBatch(
                input_ids=self.input_ids[index],
                cu_seqlens=self.cu_seqlens[index],
                max_seqlen=self.max_seqlen,
                masked_indices=self.masked_indices[index],
                labels=self.labels[index],
                num_tokens=self.num_tokens[index],
                num_sequences=self.num_sequences[index],
                num_masked=self.num_masked[index],
            )
            for index in range(len(self.num_tokens))
        ]
