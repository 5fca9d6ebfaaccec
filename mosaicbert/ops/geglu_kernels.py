"""Triton kernels of GEGLU followed by dropout, one for the forward and one for the backward pass.

Only the input is saved for the backward pass, which recomputes the activation and the dropout mask.
"""

# Triton kernels cannot be type-checked.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mosaicbert.ops.dropout_kernels import dropout_arguments, dropout_keep_mask

_MAX_BLOCK = 1024  # columns per program; each of its threads loads 16 bytes of bf16
_NUM_WARPS = 4
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_INVERSE_SQRT_TAU = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def _keep_mask(seed_ptr, row, block, threshold, BLOCK: tl.constexpr):
    return dropout_keep_mask(tl.load(seed_ptr), row, block * (BLOCK // 4) + tl.arange(0, BLOCK // 4), threshold)


@triton.jit(do_not_specialize=["threshold", "scale"])
def _geglu_forward_kernel(
    gate_up_ptr,  # (T, 2F)
    out_ptr,  # (T, F)
    seed_ptr,  # (), or None for no dropout
    threshold,
    scale,
    width,
    BLOCK: tl.constexpr,
):
    num_blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // num_blocks
    block = tl.program_id(0) % num_blocks
    columns = block * BLOCK + tl.arange(0, BLOCK)
    in_bounds = columns < width
    gate_ptr = gate_up_ptr + row.to(tl.int64) * 2 * width + columns
    gate = tl.load(gate_ptr, mask=in_bounds, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=in_bounds, other=0.0).to(tl.float32)
    out = 0.5 * gate * (1.0 + tl.erf(gate * _SQRT_HALF)) * up
    if seed_ptr is not None:
        out = tl.where(_keep_mask(seed_ptr, row, block, threshold, BLOCK), out * scale, 0.0)
    tl.store(out_ptr + row.to(tl.int64) * width + columns, out.to(out_ptr.dtype.element_ty), mask=in_bounds)


@triton.jit(do_not_specialize=["threshold", "scale"])
def _geglu_backward_kernel(
    grad_ptr,  # (T, F), gradient of the output
    gate_up_ptr,
    grad_gate_up_ptr,  # (T, 2F)
    seed_ptr,
    threshold,
    scale,
    width,
    BLOCK: tl.constexpr,
):
    num_blocks = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // num_blocks
    block = tl.program_id(0) % num_blocks
    columns = block * BLOCK + tl.arange(0, BLOCK)
    in_bounds = columns < width
    gate_offsets = row.to(tl.int64) * 2 * width + columns
    gate = tl.load(gate_up_ptr + gate_offsets, mask=in_bounds, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + gate_offsets + width, mask=in_bounds, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row.to(tl.int64) * width + columns, mask=in_bounds, other=0.0).to(tl.float32)
    if seed_ptr is not None:
        grad = tl.where(_keep_mask(seed_ptr, row, block, threshold, BLOCK), grad * scale, 0.0)
    cdf = 0.5 * (1.0 + tl.erf(gate * _SQRT_HALF))
    density = tl.exp(-0.5 * gate * gate) * _INVERSE_SQRT_TAU
    grad_gate = grad * up * (cdf + gate * density)
    grad_up = grad * gate * cdf
    tl.store(grad_gate_up_ptr + gate_offsets, grad_gate.to(grad_gate_up_ptr.dtype.element_ty), mask=in_bounds)
    tl.store(grad_gate_up_ptr + gate_offsets + width, grad_up.to(grad_gate_up_ptr.dtype.element_ty), mask=in_bounds)


def _grid_and_block(gate_up: Tensor) -> tuple[tuple[int], int]:
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    block = max(4, min(_MAX_BLOCK, triton.next_power_of_2(width)))
    return (num_rows * triton.cdiv(width, block),), block


@torch.library.custom_op("mosaicbert::geglu", mutates_args=())
def geglu(gate_up: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Compute dropout(gelu(gate) * up) with a Triton kernel.

    Args:
        gate_up: (T, 2F) fp32, bf16 or fp16, gate features followed by up features.
        dropout_p: Dropout probability in [0, 1).
        seed: () int64 dropout seed on the device of gate_up, or None for no dropout.

    Returns:
        (T, F), same dtype as gate_up.
    """
    gate_up = gate_up.contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    grid, block = _grid_and_block(gate_up)
    with torch.cuda.device_of(gate_up):
        _geglu_forward_kernel[grid](
            gate_up, out, seed, *dropout_arguments(dropout_p, seed), width, BLOCK=block, num_warps=_NUM_WARPS
        )
    return out


@torch.library.custom_op("mosaicbert::geglu_backward", mutates_args=())
def geglu_backward(grad: Tensor, gate_up: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Compute the gradient of gate_up with a Triton kernel that recomputes the dropout mask.

    Args:
        grad: (T, F), gradient of the output.
        gate_up: (T, 2F), input of the forward pass.
        dropout_p: Dropout probability of the forward pass, in [0, 1).
        seed: () int64 dropout seed of the forward pass, or None for no dropout.

    Returns:
        (T, 2F), same dtype as gate_up.
    """
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    grad_gate_up = torch.empty_like(gate_up)
    grid, block = _grid_and_block(gate_up)
    with torch.cuda.device_of(gate_up):
        _geglu_backward_kernel[grid](
            grad,
            gate_up,
            grad_gate_up,
            seed,
            *dropout_arguments(dropout_p, seed),
            gate_up.shape[1] // 2,
            BLOCK=block,
            num_warps=_NUM_WARPS,
        )
    return grad_gate_up


@geglu.register_fake
def _(gate_up: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:  # noqa: ARG001
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@geglu_backward.register_fake
def _(grad: Tensor, gate_up: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:  # noqa: ARG001
    return gate_up.new_empty(gate_up.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate_up, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(gate_up, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    gate_up, seed = ctx.saved_tensors
    return geglu_backward(grad, gate_up, ctx.dropout_p, seed), None, None


geglu.register_autograd(_backward, setup_context=_save_for_backward)
