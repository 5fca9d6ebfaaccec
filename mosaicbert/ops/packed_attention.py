"""Self-attention of packed documents by batched half-precision products on a CPU, with an explicit backward pass.

PyTorch's attention functions convert half precision to fp32 on a CPU, and automatic differentiation of a split batch
adds a copy and a tensor of zeros for each document length. Here the products run on the matrix units of the CPU,
documents are padded to multiples of 32 tokens so that several lengths share each product, and gradients are written
where they belong.

With S = Q K^T / sqrt(D) + bias, P = softmax(S) and O = P V, the gradients are dV = P^T dO, dP = dO V^T,
dS = P (dP - rowsum(P dP)), dQ = dS K / sqrt(D) and dK = dS^T Q / sqrt(D). Source: Dao et al. 2022, arXiv:2205.14135,
appendix B.2.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_SEQLEN = 512  # tokens; probabilities of all documents are stored until the backward pass
_PADDING_MULTIPLE = 32  # tokens; measured on a CPU with matrix units


def packed_attention(qkv: Tensor, seqlens: tuple[int, ...], bias: Tensor) -> Tensor:
    """Compute attention within each document of a packed batch by batched matrix products.

    Args:
        qkv: (T, 3, H, D), see `ops.attention.attention`.
        seqlens: Number of tokens of each document, at least 1, T in total.
        bias: (H or 1, L, L) additive bias of the scores, same dtype as qkv, with L at least the longest padded length.
            No row of a document may be -inf throughout.

    Returns:
        (T, H, D), same dtype as qkv, which can be differentiated once. Scores and probabilities are rounded to this
        dtype; the softmax is computed in fp32.
    """
    return _PackedAttention.apply(qkv, seqlens, bias)  # pyright: ignore[reportReturnType]


def padded_length(seqlen: int) -> int:
    """Return the length to which a document is padded, in tokens."""
    return -(-seqlen // _PADDING_MULTIPLE) * _PADDING_MULTIPLE


@dataclass(frozen=True)
class _Group:
    """Consecutive documents of one padded length P.

    Attributes:
        seqlens: Number of tokens of each of the n documents.
        length: Padded length P.
        start: Row of the first token in the packed batch.
        rows: (n P,) int64 row of the packed batch for each padded position. Padding repeats the first token of its
            document. None if no document has padding.
        tokens: (N,) int64 padded positions of the real tokens; None if no document has padding.
        padding: (n P - N,) int64 padded positions of the padding; None if no document has padding.
    """

    seqlens: tuple[int, ...]
    length: int
    start: int
    rows: Tensor | None
    tokens: Tensor | None
    padding: Tensor | None

    @property
    def row_range(self) -> slice:
        return slice(self.start, self.start + sum(self.seqlens))

    def pad(self, packed: Tensor) -> Tensor:  # (T, ...) -> (n, P, ...)
        padded = packed[self.row_range] if self.rows is None else packed.index_select(0, self.rows)
        return padded.unflatten(0, (len(self.seqlens), self.length))

    def unpad(self, padded: Tensor, packed: Tensor) -> None:
        """Copy the real tokens of (n, P, ...) to their rows of (T, ...)."""
        rows = packed[self.row_range]
        if self.tokens is None:
            rows.unflatten(0, (len(self.seqlens), self.length)).copy_(padded)
        else:
            torch.index_select(padded.flatten(0, 1), 0, self.tokens, out=rows)


@functools.lru_cache(maxsize=8)  # all layers of a step need the same groups
@torch.inference_mode(False)  # cached tensors may be used for inference first and for training later
def _groups(seqlens: tuple[int, ...]) -> list[_Group]:
    groups: list[_Group] = []
    start = 0
    for length, run in itertools.groupby(seqlens, padded_length):
        group_seqlens = tuple(run)
        sizes = torch.tensor(group_seqlens)[:, None]  # (n, 1)
        position = torch.arange(length)
        is_token = position < sizes  # (n, P)
        first_rows = start + sizes.cumsum(0) - sizes
        if is_token.all():
            groups.append(_Group(group_seqlens, length, start, None, None, None))
        else:
            rows = (first_rows + position.where(is_token, 0)).flatten()
            tokens, padding = (mask.flatten().nonzero()[:, 0] for mask in (is_token, ~is_token))
            groups.append(_Group(group_seqlens, length, start, rows, tokens, padding))
        start += sum(group_seqlens)
    return groups


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, seqlens: tuple[int, ...], bias: Tensor) -> Tensor:
        context = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)  # (T, H, D)
        num_heads = context.shape[1]
        saved: list[Tensor] = []
        for group in _groups(seqlens):
            num_documents, length = len(group.seqlens), group.length
            padded = group.pad(qkv).permute(2, 0, 3, 1, 4).contiguous()  # (3, n, H, P, D)
            query, key, value = padded.flatten(1, 2)  # each (n H, P, D)
            probabilities = qkv.new_empty(num_documents, num_heads, length, length)
            probabilities.copy_(bias[:, :length, :length])
            for document, seqlen in zip(probabilities, group.seqlens, strict=True):
                document[:, :seqlen, seqlen:] = -math.inf  # the rows of padding stay finite
            probabilities = probabilities.flatten(0, 1)
            probabilities.baddbmm_(query, key.transpose(1, 2), alpha=1 / math.sqrt(qkv.shape[-1]))
            probabilities = torch.softmax(probabilities, dim=-1)
            attended = torch.bmm(probabilities, value).unflatten(0, (num_documents, num_heads))
            group.unpad(attended.transpose(1, 2), context)
            saved += [query, key, value, probabilities]
        ctx.save_for_backward(*saved)
        ctx.seqlens, ctx.shape = seqlens, qkv.shape
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_context: Tensor = grads[0]
        grad_qkv = grad_context.new_empty(ctx.shape)
        scale = 1 / math.sqrt(ctx.shape[-1])
        saved = iter(ctx.saved_tensors)
        aten: Any = torch.ops.aten
        for group in _groups(ctx.seqlens):
            query, key, value, probabilities = itertools.islice(saved, 4)
            padded = group.pad(grad_context)  # (n, P, H, D)
            if group.padding is not None:
                padded.flatten(0, 1).index_fill_(0, group.padding, 0.0)
            grad_attended = padded.transpose(1, 2).flatten(0, 1)  # (n H, P, D)
            grad = grad_context.new_empty(3, *query.shape)  # of query, key and value
            torch.bmm(probabilities.transpose(1, 2), grad_attended, out=grad[2])
            grad_probabilities = torch.bmm(grad_attended, value.transpose(1, 2))
            grad_scores = aten._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
            for index, (left, right) in enumerate(((grad_scores, key), (grad_scores.transpose(1, 2), query))):
                torch.baddbmm(grad[index], left, right, beta=0, alpha=scale, out=grad[index])
            group.unpad(grad.unflatten(1, (len(group.seqlens), -1)).permute(1, 3, 0, 2, 4), grad_qkv)
        return grad_qkv, None, None
