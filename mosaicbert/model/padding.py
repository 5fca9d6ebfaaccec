"""Removal and restoration of padding around the encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unpadding:
    """Positions of the real tokens of a padded batch.

    Attributes:
        indices: (T,) int64, indices of the real tokens in the flattened (B * S) batch, or None if all tokens are real.
        cu_seqlens: (B + 1,) int32, start index of each sequence among the T tokens, followed by T.
        max_seqlen: Number of tokens of the longest sequence.
        shape: Sizes B and S of the padded batch.
    """

    indices: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    shape: tuple[int, int]


def real_tokens(attention_mask: Tensor) -> Tensor:
    """Return which tokens of a padded batch are real.

    In a row without a real token, the first one counts as real. So its outputs are finite, as those of Hugging Face's
    BERT.

    Args:
        attention_mask: (B, S) of any dtype, nonzero for real tokens.

    Returns:
        (B, S) bool.

    Raises:
        ValueError: If attention_mask is not two-dimensional.
    """
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be (B, S), got {tuple(attention_mask.shape)}. Pass a mask of zeros and ones."
        )
    is_token = attention_mask != 0
    is_first = torch.arange(is_token.shape[1], device=is_token.device) == 0
    return is_token | (~is_token.any(dim=1, keepdim=True) & is_first)


def compute_unpadding(is_token: Tensor) -> Unpadding:
    """Compute the positions of the real tokens of a padded batch. It synchronizes with the device once.

    Args:
        is_token: (B, S) bool, True for real tokens, at least one in each row, see `real_tokens`.

    Returns:
        The positions, for use by `unpad` and `repad`.

    Source: the unpadding of NVIDIA's MLPerf BERT v1.1 submission.
    """
    seqlens = is_token.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0))
    max_seqlen, num_tokens = torch.stack([seqlens.max(), cu_seqlens[-1]]).tolist()
    is_full = num_tokens == is_token.numel()
    indices = None if is_full else is_token.flatten().nonzero(as_tuple=True)[0]
    return Unpadding(indices, cu_seqlens, max_seqlen, (is_token.shape[0], is_token.shape[1]))


def unpad(padded: Tensor, unpadding: Unpadding) -> Tensor:
    """Remove padding, keeping the T real tokens of a batch in order.

    Args:
        padded: (B, S, ...).
        unpadding: Positions of the real tokens.

    Returns:
        (T, ...), same dtype as padded.

    Source: the unpadding of NVIDIA's MLPerf BERT v1.1 submission.
    """
    tokens = padded.flatten(0, 1)
    return tokens if unpadding.indices is None else tokens[unpadding.indices]


def repad(tokens: Tensor, unpadding: Unpadding, fill: float = 0.0) -> Tensor:
    """Restore padding, the inverse of `unpad`.

    Args:
        tokens: (T, ...).
        unpadding: Positions of the real tokens.
        fill: Value at padding.

    Returns:
        (B, S, ...), same dtype as tokens.
    """
    num_sequences, padded_length = unpadding.shape
    padded = tokens
    if unpadding.indices is not None:
        padded = tokens.new_full((num_sequences * padded_length, *tokens.shape[1:]), fill)
        padded = padded.index_copy_(0, unpadding.indices, tokens)
    return padded.unflatten(0, (num_sequences, padded_length))
