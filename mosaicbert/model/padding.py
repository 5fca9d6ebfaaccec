"""Removal and restoration of padding around the encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unpadding:
    """Positions of the real tokens of a padded batch.

    Attributes:
        indices: (T,) int64, indices of the real tokens in the flattened (B * S) batch.
        cu_seqlens: (B + 1,) int32, start index of each sequence among the T tokens, followed by T.
        max_seqlen: Number of tokens of the longest sequence.
        shape: Sizes B and S of the padded batch.
    """

    indices: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    shape: tuple[int, int]


def compute_unpadding(attention_mask: Tensor) -> Unpadding:
    """Compute the positions of the real tokens of a padded batch.

    Args:
        attention_mask: (B, S) of any dtype, nonzero for real tokens.

    Returns:
        The positions, for use by `unpad` and `repad`.

    Raises:
        ValueError: If attention_mask is not two-dimensional, or a row of it has no real token.

    Source: the unpadding of NVIDIA's MLPerf BERT v1.1 submission.
    """
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be (B, S), got {tuple(attention_mask.shape)}. Pass a mask of zeros and ones."
        )
    is_token = attention_mask != 0
    seqlens = is_token.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0))
    min_seqlen, max_seqlen = torch.stack([seqlens.min(), seqlens.max()]).tolist()
    if min_seqlen == 0:
        row = int(seqlens.argmin())
        raise ValueError(
            f"`attention_mask` must have a token in every row, got none in row {row}. "
            "Remove empty sequences from the batch."
        )
    indices = is_token.flatten().nonzero(as_tuple=True)[0]
    return Unpadding(indices, cu_seqlens, max_seqlen, (attention_mask.shape[0], attention_mask.shape[1]))


def unpad(padded: Tensor, unpadding: Unpadding) -> Tensor:
    """Remove padding, keeping the T real tokens of a batch in order.

    Args:
        padded: (B, S, ...).
        unpadding: Positions of the real tokens.

    Returns:
        (T, ...), same dtype as padded.

    Source: the unpadding of NVIDIA's MLPerf BERT v1.1 submission.
    """
    return padded.flatten(0, 1)[unpadding.indices]


def repad(tokens: Tensor, unpadding: Unpadding) -> Tensor:
    """Restore padding, the inverse of `unpad`.

    Args:
        tokens: (T, ...).
        unpadding: Positions of the real tokens.

    Returns:
        (B, S, ...), same dtype as tokens, with zeros at padding.
    """
    num_sequences, padded_length = unpadding.shape
    padded = tokens.new_zeros(num_sequences * padded_length, *tokens.shape[1:])
    return padded.index_copy(0, unpadding.indices, tokens).unflatten(0, (num_sequences, padded_length))
