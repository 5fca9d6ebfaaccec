"""LayerNorm that stays in the autocast's dtype, with statistics in fp32 (Ba et al. 2016, arXiv:1607.06450)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 512  # tokens; their fp32 copies stay in the processor's cache


class _HalfOnCpu(torch.autograd.Function):
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
        rows = (tensor.split(_CHUNK) for tensor in (grads[0], hidden, mean, rstd, grad_hidden))
        for grad, chunk, chunk_mean, chunk_rstd, out in zip(*rows, strict=True):
            of_hidden, *of_affine = native_backward(
                grad.float(), chunk.float(), weight.shape, chunk_mean, chunk_rstd, *affine, [True, True, True]
            )
            out.copy_(of_hidden)
            for total, part in zip(grad_affine, of_affine, strict=True):
                total += part
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
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        hidden = hidden.to(dtype)
        if device == "cpu" and dtype in (torch.bfloat16, torch.float16):
            normed: Any = _HalfOnCpu.apply(hidden.reshape(-1, hidden.shape[-1]), weight, bias, eps)
            return normed.view_as(hidden)
        return F.layer_norm(hidden, weight.shape, weight.to(dtype), bias.to(dtype), eps)
