"""Triton kernels of LayerNorm(dropout(hidden) + residual), one for the forward and one for the backward pass.

The forward pass saves the normalized rows, before weight and bias are applied, in the output dtype. The backward pass
therefore does not need the mean, and rows with a large mean lose no accuracy. The gradients of weight and bias are
summed by a fixed number of programs, each over its own rows, and then over the programs, so the order of summation is
fixed.
"""

# Triton kernels cannot be type-checked.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mosaicbert.ops.dropout_kernels import dropout_arguments, dropout_keep_mask

MAX_WIDTH = 8192  # columns; a program keeps complete rows in registers
_FORWARD_TILE_ELEMENTS, _BACKWARD_TILE_ELEMENTS = 1024, 2048  # elements per tile; a tile has at least one row
_PROGRAMS_PER_MULTIPROCESSOR = 4  # number that runs concurrently at up to 1024 columns
_NUM_INTERPRETER_PROGRAMS = 4


@triton.jit
def _keep_mask(seed, rows, threshold, COLUMNS: tl.constexpr):
    return dropout_keep_mask(seed, rows[:, None], tl.arange(0, COLUMNS // 4)[None, :], threshold)


@triton.jit(do_not_specialize=["threshold", "scale", "num_rows", "eps"])
def _layer_norm_forward_kernel(
    hidden_ptr,  # (T, C)
    residual_ptr,  # (T, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (T, C)
    normed_ptr,  # (T, C), or None without a backward pass
    rstd_ptr,  # (T,) or None
    seed_ptr,  # (), or None for no dropout
    threshold,
    scale,
    num_rows,
    width,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    in_bounds = (rows < num_rows)[:, None] & (columns < width)
    elements = rows.to(tl.int64)[:, None] * width + columns
    hidden = tl.load(hidden_ptr + elements, mask=in_bounds, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + elements, mask=in_bounds, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    if seed_ptr is not None:
        hidden = tl.where(_keep_mask(tl.load(seed_ptr), rows, threshold, COLUMNS), hidden * scale, 0.0)
    summed = hidden + residual
    mean = tl.sum(summed, 1) / width
    centered = tl.where(in_bounds, summed - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, 1) / width + eps)
    normed = centered * rstd[:, None]
    out = normed * weight + bias
    tl.store(out_ptr + elements, out.to(out_ptr.dtype.element_ty), mask=in_bounds)
    if normed_ptr is not None:
        tl.store(normed_ptr + elements, normed.to(normed_ptr.dtype.element_ty), mask=in_bounds)
        tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)


@triton.jit(do_not_specialize=["threshold", "scale", "num_rows"])
def _layer_norm_backward_kernel(
    grad_ptr,  # (T, C), gradient of the output
    normed_ptr,
    rstd_ptr,
    weight_ptr,
    grad_residual_ptr,  # (T, C)
    grad_hidden_ptr,  # (T, C), or None without dropout, where it equals the gradient of the residual
    partial_sums_ptr,  # (2, programs, C) fp32, gradients of weight and bias per program
    seed_ptr,
    threshold,
    scale,
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([COLUMNS], tl.float32)
    grad_bias = tl.zeros([COLUMNS], tl.float32)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    for first_row in range(program * ROWS, num_rows, tl.num_programs(0) * ROWS):
        rows = first_row + tl.arange(0, ROWS)
        in_bounds = (rows < num_rows)[:, None] & (columns < width)[None, :]
        elements = rows.to(tl.int64)[:, None] * width + columns[None, :]
        grad = tl.load(grad_ptr + elements, mask=in_bounds, other=0.0).to(tl.float32)
        normed = tl.load(normed_ptr + elements, mask=in_bounds, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)
        grad_weight += tl.sum(grad * normed, 0)
        grad_bias += tl.sum(grad, 0)
        weighted = grad * weight[None, :]
        projection = tl.sum(weighted * normed, 1) / width
        mean = tl.sum(weighted, 1) / width
        grad_sum = (weighted - mean[:, None] - normed * projection[:, None]) * rstd[:, None]
        tl.store(grad_residual_ptr + elements, grad_sum.to(grad_residual_ptr.dtype.element_ty), mask=in_bounds)
        if seed_ptr is not None:
            grad_hidden = tl.where(_keep_mask(seed, rows, threshold, COLUMNS), grad_sum * scale, 0.0)
            tl.store(grad_hidden_ptr + elements, grad_hidden.to(grad_hidden_ptr.dtype.element_ty), mask=in_bounds)
    partial_sums_ptr += program.to(tl.int64) * width + columns
    tl.store(partial_sums_ptr, grad_weight, mask=columns < width)
    tl.store(partial_sums_ptr + tl.num_programs(0).to(tl.int64) * width, grad_bias, mask=columns < width)


def _tile(width: int, elements: int) -> dict[str, int]:
    columns = max(4, triton.next_power_of_2(width))
    return {"ROWS": max(1, elements // columns), "COLUMNS": columns, "num_warps": min(16, max(4, columns // 256))}


def _num_programs(hidden: Tensor, tile_rows: int) -> int:
    if hidden.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
        max_programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    else:
        max_programs = _NUM_INTERPRETER_PROGRAMS
    return min(max_programs, triton.cdiv(hidden.shape[0], tile_rows))


@torch.library.custom_op("mosaicbert::dropout_add_layer_norm", mutates_args=())
def dropout_add_layer_norm(
    hidden: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute LayerNorm(dropout(hidden) + residual) with a Triton kernel.

    Args:
        hidden: (T, C) fp32, bf16 or fp16, with C at most MAX_WIDTH.
        residual: (T, C), same dtype as hidden.
        weight: (C,).
        bias: (C,).
        eps: Constant added to the variance.
        dropout_p: Dropout probability in [0, 1).
        seed: () int64 dropout seed on the device of hidden, or None for no dropout.
        differentiable: True to return the tensors that the backward pass needs.

    Returns:
        The output, (T, C) in the dtype of hidden; the normalized rows before weight and bias, (T, C) in the dtype of
        hidden; and 1 / sqrt(variance + eps) of each row, (T,) fp32. The last two are empty if differentiable is False.

    Raises:
        ValueError: If C is greater than MAX_WIDTH.
    """
    hidden, residual = hidden.contiguous(), residual.contiguous()
    num_rows, width = hidden.shape
    assert (residual.shape, residual.dtype) == (hidden.shape, hidden.dtype), "`residual` must match `hidden`"
    if width > MAX_WIDTH:
        raise ValueError(
            f"`hidden_size` must be at most {MAX_WIDTH} for the LayerNorm kernel, got {width}. Use torch.compile."
        )
    out, normed, rstd = _empty_outputs(hidden, differentiable)
    tile = _tile(width, _FORWARD_TILE_ELEMENTS)
    with torch.cuda.device_of(hidden):
        _layer_norm_forward_kernel[(triton.cdiv(num_rows, tile["ROWS"]),)](
            hidden,
            residual,
            weight.contiguous(),
            bias.contiguous(),
            out,
            normed if differentiable else None,
            rstd if differentiable else None,
            seed,
            *dropout_arguments(dropout_p, seed),
            num_rows,
            width,
            eps,
            **tile,
        )
    return out, normed, rstd


def _empty_outputs(hidden: Tensor, differentiable: bool) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, width = hidden.shape
    num_saved_rows = num_rows if differentiable else 0
    out, normed = hidden.new_empty(num_rows, width), hidden.new_empty(num_saved_rows, width)
    return out, normed, hidden.new_empty(num_saved_rows, dtype=torch.float32)


@torch.library.custom_op("mosaicbert::dropout_add_layer_norm_backward", mutates_args=())
def dropout_add_layer_norm_backward(
    grad: Tensor, normed: Tensor, rstd: Tensor, weight: Tensor, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of `dropout_add_layer_norm` with a Triton kernel.

    Args:
        grad: (T, C), gradient of the output.
        normed: (T, C), normalized rows saved by the forward pass.
        rstd: (T,) fp32, 1 / sqrt(variance + eps) saved by the forward pass.
        weight: (C,).
        dropout_p: Dropout probability of the forward pass, in [0, 1).
        seed: () int64 dropout seed of the forward pass, or None for no dropout.

    Returns:
        Gradients of residual (T, C), hidden (T, C), weight (C,) and bias (C,). Without a seed, the gradient of hidden
        equals that of residual and is returned empty, (0, C). The gradient of bias has the dtype of weight.
    """
    grad = grad.contiguous()
    num_rows, width = normed.shape
    tile = _tile(width, _BACKWARD_TILE_ELEMENTS)
    num_programs = _num_programs(normed, tile["ROWS"])
    grad_residual = torch.empty_like(normed)
    grad_hidden = torch.empty_like(normed) if seed is not None else normed.new_empty(0, width)
    partial_sums = normed.new_empty(2, num_programs, width, dtype=torch.float32)
    with torch.cuda.device_of(grad):
        _layer_norm_backward_kernel[(num_programs,)](
            grad,
            normed,
            rstd,
            weight.contiguous(),
            grad_residual,
            grad_hidden if seed is not None else None,
            partial_sums,
            seed,
            *dropout_arguments(dropout_p, seed),
            num_rows,
            width,
            **tile,
        )
    grad_weight, grad_bias = (sums.sum(0).to(weight.dtype) for sums in partial_sums)
    return grad_residual, grad_hidden, grad_weight, grad_bias


@dropout_add_layer_norm.register_fake
def _(
    hidden: Tensor,
    residual: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    dropout_p: float,  # noqa: ARG001
    seed: Tensor | None,  # noqa: ARG001
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(hidden, differentiable)


@dropout_add_layer_norm_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    normed: Tensor,
    rstd: Tensor,  # noqa: ARG001
    weight: Tensor,
    dropout_p: float,  # noqa: ARG001
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rows, width = normed.shape
    grad_hidden = normed.new_empty(0 if seed is None else num_rows, width)
    return normed.new_empty(num_rows, width), grad_hidden, weight.new_empty(width), weight.new_empty(width)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, weight, bias, _, ctx.dropout_p, seed, differentiable = inputs
    assert differentiable, "a backward pass requires differentiable=True"
    ctx.set_materialize_grads(False)  # None instead of zero tensors as gradients of the saved outputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(output[1], output[2], weight, seed)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    normed, rstd, weight, seed = ctx.saved_tensors
    grad_residual, grad_hidden, grad_weight, grad_bias = dropout_add_layer_norm_backward(
        grad, normed, rstd, weight, ctx.dropout_p, seed
    )
    if seed is None:
        grad_hidden = grad_residual
    return grad_hidden, grad_residual, grad_weight, grad_bias.to(ctx.bias_dtype), None, None, None, None


dropout_add_layer_norm.register_autograd(_backward, setup_context=_save_for_backward)
