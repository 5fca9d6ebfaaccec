"""Batch: the contract between data and model. Everything is unpadded; documents are told apart by cu_seqlens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch: B documents of T tokens in all, M of which are masked and to be predicted.

    Attributes:
        input_ids: (T,) int64, the documents one behind the other, masks already applied.
        cu_seqlens: (B + 1,) int32, where each document begins; the first is 0, the last is T.
        max_seqlen: tokens of the longest document.
        masked_indices: (M,) int64, positions in input_ids, ascending.
        labels: (M,) int64, the token that stood at each of them.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_indices: Tensor
    labels: Tensor

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_masked(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """The batch as padded models take it.

        Returns:
            input_ids, attention_mask and labels, each (B, max_seqlen) int64; labels are -100 where nothing is masked.
        """
        seqlens = self.cu_seqlens.diff().long()
        mask = torch.arange(self.max_seqlen, device=seqlens.device) < seqlens[:, None]  # (B, S)
        flat_labels = torch.full_like(self.input_ids, -100)
        flat_labels[self.masked_indices] = self.labels
        input_ids = torch.full(mask.shape, pad_token_id, device=mask.device, dtype=torch.int64)
        labels = torch.full_like(input_ids, -100)
        input_ids[mask], labels[mask] = self.input_ids, flat_labels
        return {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}
