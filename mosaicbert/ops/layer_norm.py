"""LayerNorm with fp32 statistics and an output in the autocast dtype.

`dropout_add_layer_norm` combines it with the dropout and the residual addition that precede it in a post-norm block.

Source: Ba et al. 2016, arXiv:1607.06450.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaicbert.modes import autocast_dtype, is_traced, without_autocast
from mosaicbert.ops.dispatch import draw_seed, uses_kernels

_CHUNK_TOKENS = 512  # the fp32 copies of a chunk fit the CPU cache


class _HalfPrecisionCpuLayerNorm(torch.autograd.Function):
    # PyTorch's CPU kernel saves the statistics in the dtype of the weight, and sums the gradients of weight and bias in
    # the dtype of the input. In bf16 these gradients have a relative error of about 1/6 after 16,384 tokens. The GPU
    # kernel of PyTorch uses fp32 for both.

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
    """Normalize the last dimension: (hidden - mean) / sqrt(variance + eps) * weight + bias.

    PyTorch's autocast returns fp32 from LayerNorm, which doubles the memory traffic of the residual stream. This
    function returns the autocast dtype.

    Args:
        hidden: (..., C).
        weight: (C,).
        bias: (C,).
        eps: Constant added to the variance.

    Returns:
        (..., C), in the autocast dtype if autocast is enabled, otherwise in the dtype of hidden.
    """
    device = hidden.device.type
    dtype = autocast_dtype(device, hidden.dtype)
    with without_autocast(device):
        hidden = hidden.to(dtype)
        if device == "cpu" and dtype in (torch.bfloat16, torch.float16) and not is_traced(hidden):
            normed: Any = _HalfPrecisionCpuLayerNorm.apply(hidden.reshape(-1, hidden.shape[-1]), weight, bias, eps)
            return normed.view_as(hidden)
        return F.layer_norm(hidden, weight.shape, weight.to(dtype), bias.to(dtype), eps)


def dropout_add_layer_norm_reference(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """Compute LayerNorm(dropout(hidden) + residual) in plain PyTorch.

    Args:
        hidden: (T, C), output of a sublayer.
        residual: (T, C), input of the sublayer.
        weight: (C,).
        bias: (C,).
        eps: Constant added to the variance.
        dropout_p: Dropout probability in [0, 1).

    Returns:
        (T, C), in the autocast dtype if autocast is enabled, otherwise in the dtype of the sum.
    """
    dropped = F.dropout(hidden, dropout_p) if dropout_p else hidden
    return layer_norm(dropped + residual, weight, bias, eps)


def dropout_add_layer_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout_p: float = 0.0
) -> Tensor:
    """Compute LayerNorm(dropout(hidden) + residual), the end of a sublayer in a post-norm block.

    Args:
        hidden: (T, C), output of the sublayer.
        residual: (T, C), input of the sublayer.
        weight: (C,).
        bias: (C,).
        eps: Constant added to the variance.
        dropout_p: Dropout probability in [0, 1). Kept elements of hidden are scaled by 1 / (1 - dropout_p).

    Returns:
        (T, C), in the autocast dtype if autocast is enabled, otherwise in the dtype of the sum.

    Raises:
        ValueError: If the Triton kernel is used and C is greater than `layer_norm_kernels.MAX_WIDTH`.
    """
    if not uses_kernels(hidden):
        return dropout_add_layer_norm_reference(hidden, residual, weight, bias, eps, dropout_p)
    # Imported by name: transformers requires every module in an import statement of an exported file.
    kernels: Any = importlib.import_module("mosaicbert.ops.layer_norm_kernels")
    dtype = autocast_dtype(hidden.device.type, torch.promote_types(hidden.dtype, residual.dtype))
    hidden, residual = hidden.to(dtype), residual.to(dtype)
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (hidden, residual, weight, bias)
    )
    seed = draw_seed(hidden.device) if dropout_p else None
    return kernels.dropout_add_layer_norm(hidden, residual, weight, bias, eps, dropout_p, seed, differentiable)[0]
