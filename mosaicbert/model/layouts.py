"""Layouts of the inputs of a model, and their conversion to tokens of concatenated documents and back."""

from typing import Protocol

import torch
from torch import Tensor

from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.layers import Documents
from mosaicbert.model.padding import compute_unpadding, repad, unpad
from mosaicbert.ops.attention import AttentionRecorder, PaddedDocuments, alibi_slopes, pack_documents, padded_bias


class Layout(Protocol):
    """Layout of inputs and outputs: (B, S, ...) of a padded batch, or (T, ...) of concatenated documents."""

    @property
    def first_indices(self) -> Tensor:
        """Index of the first real token of each sequence, (B,) int64."""
        ...

    def documents(self, config: MosaicBertConfig, dtype: torch.dtype) -> Documents:
        """Return the documents of the batch, for the attention in this dtype."""
        ...

    def flatten(self, inputs: Tensor) -> Tensor:
        """Convert inputs to the (T, ...) tokens that the encoder computes."""
        ...

    def restore(self, tokens: Tensor, fill: float = 0.0) -> Tensor:
        """Convert (T, ...) tokens to the layout of the inputs, with the value `fill` at padding."""
        ...

    def ignore_padding(self, labels: Tensor) -> Tensor:
        """Convert labels to (T,), -100 at padding."""
        ...


def pack(cu_seqlens: Tensor, max_seqlen: int, config: MosaicBertConfig, dtype: torch.dtype) -> Documents:
    """Choose the attention backend of concatenated documents.

    Args:
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T.
        max_seqlen: Number of tokens of the longest document.
        config: Configuration of the model.
        dtype: dtype of queries, keys and values.
    """
    implementation = config._attn_implementation or "auto"
    head_dim = config.hidden_size // config.num_attention_heads
    return pack_documents(cu_seqlens, max_seqlen, implementation, cu_seqlens.device.type, dtype, head_dim)


class PackedLayout:
    """Layout of concatenated documents without padding, (T, ...), as in pretraining.

    Args:
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T.
        max_seqlen: Number of tokens of the longest document, or None to compute it.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int | None) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
        self.first_indices = cu_seqlens[:-1].long()

    def documents(self, config: MosaicBertConfig, dtype: torch.dtype) -> Documents:
        return pack(self.cu_seqlens, self.max_seqlen, config, dtype)

    def flatten(self, inputs: Tensor) -> Tensor:
        return inputs

    def restore(self, tokens: Tensor, fill: float = 0.0) -> Tensor:
        del fill
        return tokens

    def ignore_padding(self, labels: Tensor) -> Tensor:
        return labels


class UnpaddedLayout(PackedLayout):
    """Layout of a padded batch, (B, S, ...), whose padding is removed for the encoder.

    Args:
        is_token: (B, S) bool, True for real tokens.
        position_ids: (B, S) or (1, S) positions, or None. A position of 0 starts a new document within a row.
    """

    def __init__(self, is_token: Tensor, position_ids: Tensor | None) -> None:
        self.unpadding = compute_unpadding(is_token)
        super().__init__(self.unpadding.cu_seqlens, self.unpadding.max_seqlen)
        if position_ids is not None:
            self.cu_seqlens = _split_documents(self.flatten(position_ids.expand(is_token.shape)), self.cu_seqlens)
            self.max_seqlen = int(self.cu_seqlens.diff().max())

    def flatten(self, inputs: Tensor) -> Tensor:
        return unpad(inputs, self.unpadding)

    def restore(self, tokens: Tensor, fill: float = 0.0) -> Tensor:
        return repad(tokens, self.unpadding, fill)

    def ignore_padding(self, labels: Tensor) -> Tensor:
        return self.flatten(labels)


class PaddedLayout:
    """Layout of a padded batch, (B, S, ...), that the encoder computes with its padding, without data-dependent code.

    Args:
        is_token: (B, S) bool, True for real tokens.
        is_prefix: (B, P) bool, True for the visible tokens before each sequence, which are not part of the inputs.
        position_ids: (B, S) or (1, S) positions, or None. A position of 0 starts a new document within a row.
        recorder: Recorder of the attention weights, or None.
    """

    def __init__(
        self,
        is_token: Tensor,
        is_prefix: Tensor,
        position_ids: Tensor | None = None,
        recorder: AttentionRecorder | None = None,
    ) -> None:
        self.is_token, self.is_prefix, self.recorder = is_token, is_prefix, recorder
        self.is_start = None if position_ids is None else (position_ids.expand(is_token.shape) == 0) & is_token
        num_sequences, length = is_token.shape
        starts = torch.arange(num_sequences, device=is_token.device) * length
        self.first_indices = starts + is_token.int().argmax(dim=1)

    def documents(self, config: MosaicBertConfig, dtype: torch.dtype) -> Documents:
        slopes = alibi_slopes(config.num_attention_heads)
        bias = padded_bias(self.is_token, self.is_prefix, self.is_start, slopes, dtype)
        return PaddedDocuments(bias, self.recorder)

    def flatten(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(0, 1)

    def restore(self, tokens: Tensor, fill: float = 0.0) -> Tensor:
        padded = tokens.reshape(*self.is_token.shape, *tokens.shape[1:])
        is_token = self.is_token.reshape(*self.is_token.shape, *(1 for _ in tokens.shape[1:]))
        return padded.where(is_token, fill)

    def ignore_padding(self, labels: Tensor) -> Tensor:
        return self.flatten(labels.where(self.is_token, -100))


def _split_documents(positions: Tensor, cu_seqlens: Tensor) -> Tensor:  # (T,), (B + 1,) -> (D + 1,)
    is_start = positions == 0
    is_start[cu_seqlens[:-1].long()] = True  # ALiBi depends on distances only, so a row may start at any position
    is_next = torch.nn.functional.pad(positions.diff() == 1, (1, 0))
    if not bool((is_start | is_next).all()):
        raise ValueError(
            "`position_ids` must count the tokens of each document from 0, since ALiBi depends on distances only. "
            "Remove `position_ids`."
        )
    return torch.cat([is_start.nonzero()[:, 0], cu_seqlens[-1:].long()]).int()
