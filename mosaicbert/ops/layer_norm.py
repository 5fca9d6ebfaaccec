"""LayerNorm that stays in the autocast's dtype, with statistics in fp32 (Ba et al. 2016, arXiv:1607.06450).

Behind a sublayer it is one operation with that sublayer's dropout and the sum with the residual stream.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaicbert.ops.dispatch import draw_seed, uses_kernels

_CHUNK_TOKENS = 512  # tokens; their fp32 copies stay in the processor's cache


class _HalfPrecisionCpuLayerNorm(torch.autograd.Function):
    # PyTorch's CPU kernel saves the statistics in the weight's dtype, and sums the gradients of weight and bias in the
    # input's: in bf16 they come out a sixth wrong after 16,384 tokens. Its GPU kernel does both in fp32.

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # (T, C) -> (T, C)
        normed, mean, rstd = torch.native_layer_norm(hidden, weight.shape, weight.float(), bias.float(), eps)
        ctx.save_for_backward(hidden, mean, rstd, weight, bias)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        native_backward: Any = torch.ops.aten.native_layer_norm_backward
        hidden, mean, rstd, weight, bias = ctx.saved_tensors
        affine = (weight.float(), bias.float())
        grad_hidden, grad_affine = torch.empty_like(hidden), [torch.zeros_like(tensor) for tensor in affine]
        rows = (tensor.split(_CHUNK_TOKENS) for tensor in (grads[0], hidden, mean, rstd, grad_hidden))
        for grad, chunk, chunk_mean, chunk_rstd, out in zip(*rows, strict=True):
            grad_chunk, *grad_affine_chunk = native_backward(
                grad.float(), chunk.float(), weight.shape, chunk_mean, chunk_rstd, *affine, [True, True, True]
            )
            out.copy_(grad_chunk)
            for total, chunk_sum in zip(grad_affine, grad_affine_chunk, strict=True):
                total += chunk_sum
        return grad_hidden, grad_affine[0].to(weight.dtype), grad_affine[1].to(bias.dtype), None


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalises the last dimension: (hidden - mean) / sqrt(variance + eps) * weight + bias.

    Autocast alone would return fp32 here and so double the traffic of every residual stream.

    Args:
        hidden: (..., C).
        weight: (C,).
        bias: (C,).
        eps: added to the variance.

    Returns:
        (..., C), in the autocast's dtype if autocast is on, else in hidden's.
    """
    device = hidden.device.type
    dtype = _output_dtype(device, hidden.dtype)
    with torch.autocast(device, enabled=False):
        hidden = hidden.to(dtype)
        if device == "cpu" and dtype in (torch.bfloat16, torch.float16):
            normed: Any = _HalfPrecisionCpuLayerNorm.apply(hidden.reshape(-1, hidden.shape[-1]), weight, bias, eps)
            return normed.view_as(hidden)
        return F.layer_norm(hidden, weight.shape, weight.to(dtype), bias.to(dtype), eps)


def dropout_add_layer_norm_reference(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """The definition, in plain PyTorch. Arguments as in `dropout_add_layer_norm`."""
    dropped = F.dropout(hidden, dropout_p) if dropout_p else hidden
    return layer_norm(dropped + residual, weight, bias, eps)


def dropout_add_layer_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """What ends a sublayer of a post-norm block: LayerNorm(dropout(hidden) + residual).

    Args:
        hidden: (T, C), the sublayer's output.
        residual: (T, C), its input.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
        dropout_p: how many elements of hidden become zero, on average; the others grow by 1 / (1 - dropout_p).

    Returns:
        (T, C), in the autocast's dtype if autocast is on, else in that of the sum.
    """
    if not uses_kernels(hidden):
        return dropout_add_layer_norm_reference(hidden, residual, weight, bias, eps, dropout_p)
    # By name, because exported folders carry this file and transformers demands every import that it sees in one.
    kernels: Any = importlib.import_module("mosaicbert.ops.layer_norm_kernels")
    dtype = _output_dtype(hidden.device.type, torch.promote_types(hidden.dtype, residual.dtype))
    hidden, residual = hidden.to(dtype), residual.to(dtype)
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (hidden, residual, weight, bias)
    )
    seed = draw_seed(hidden.device) if dropout_p else None
    return kernels.dropout_add_layer_norm(hidden, residual, weight, bias, eps, dropout_p, seed, differentiable)[0]


def _output_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
