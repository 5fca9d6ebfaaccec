"""Padding is undone once, at the model's door, and redone once, at its exit."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unpadding:
    """Where the real tokens of a padded batch stand: what `pad` needs to undo `unpad`.

    Attributes:
        indices: (T,) int64, into the flattened (B * S) batch.
        cu_seqlens: (B + 1,) int32, where each sequence begins among the T tokens.
        max_seqlen: tokens of the longest sequence.
        shape: B and S.
    """

    indices: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    shape: tuple[int, int]


def compute_unpadding(attention_mask: Tensor) -> Unpadding:
    """Finds the real tokens of a padded batch.

    Args:
        attention_mask: (B, S), non-zero for real tokens.

    Raises:
        ValueError: attention_mask has not two dimensions, or a row of it holds no token.

    Source: the unpadding of NVIDIA's MLPerf BERT v1.1 submission.
    """
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (B, S).")
    is_token = attention_mask != 0
    seqlens = is_token.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0))
    min_seqlen, max_seqlen = torch.stack([seqlens.min(), seqlens.max()]).tolist()
    if min_seqlen == 0:
        row = int(seqlens.argmin())
        raise ValueError(f"row {row} of attention_mask holds no token; leave empty sequences out of the batch.")
    indices = is_token.flatten().nonzero(as_tuple=True)[0]
    return Unpadding(indices, cu_seqlens, max_seqlen, (attention_mask.shape[0], attention_mask.shape[1]))


def unpad(padded: Tensor, unpadding: Unpadding) -> Tensor:
    """Keeps the real tokens, in order: (B, S, ...) to (T, ...)."""
    return padded.flatten(0, 1)[unpadding.indices]


def repad(tokens: Tensor, unpadding: Unpadding) -> Tensor:
    """Puts tokens back to their places: (T, ...) to (B, S, ...), zeros elsewhere."""
    num_sequences, padded_length = unpadding.shape
    padded = tokens.new_zeros(num_sequences * padded_length, *tokens.shape[1:])
    return padded.index_copy(0, unpadding.indices, tokens).unflatten(0, (num_sequences, padded_length))
