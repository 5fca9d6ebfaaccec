"""FlashAttention over packed documents with symmetric ALiBi, in Triton: the `triton` rung of `ops.attention`.

The algorithm is FlashAttention-2 (Dao 2023, arXiv:2307.08691): softmax over tiles of keys as they come, and a backward
pass that computes the weights again from the saved log-sum-exp. Different from it:

- the bias -slope * |i - j| is computed from positions, and nothing of size L x L is ever in memory;
- a program finds its document by itself, so the grid is as large as the tokens, whatever their documents' lengths;
- the backward pass uses no atomics: a sum has one order, so the same input gives the same bits;
- a document that fits one tile has a backward pass of its own: one program computes all of its gradients, from each
  weight once and without the forward pass' output.

Scores are kept before scaling, s = q k^T - (slope / scale) * |i - j|, and exponents are to the base 2, so that scaling
and subtracting the maximum are one instruction.
"""

# The language of kernels has no types that pyright knows.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.version
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from mosaicbert.ops.autotune import TileConfig, choose_tile_config, launch_first_fitting

HEAD_DIMS = (32, 64, 128)
_MIN_COMPUTE_CAPABILITY = (8, 0)
_MIN_ROWS_TO_AUTOTUNE = 2**16  # tokens times heads: shorter launches tell nothing of long ones, and are not worth it
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _find_document(cu_seqlens_ptr, tile, num_documents, ROWS: tl.constexpr):
    """The document that a tile belongs to, its first token, its length, and the tile's first position in it.

    Document d owns the tiles from cu_seqlens[d] // ROWS + d on: at least as many as it needs, and their number follows
    from the number of tokens and documents alone. A tile too many begins behind its document's end.
    """
    low = 0
    high = num_documents
    while high - low > 1:
        middle = (low + high) // 2
        is_upper_half = tl.load(cu_seqlens_ptr + middle) // ROWS + middle <= tile
        low = tl.where(is_upper_half, middle, low)
        high = tl.where(is_upper_half, high, middle)
    start = tl.load(cu_seqlens_ptr + low)
    length = tl.load(cu_seqlens_ptr + low + 1) - start
    return start.to(tl.int64), length, (tile - start // ROWS - low) * ROWS


@triton.jit
def _partner_range(tile_start, length, TILE: tl.constexpr, STEP: tl.constexpr, WINDOW: tl.constexpr):
    """Where the first and the last step of STEP positions begin that a tile of KEPT positions has partners in."""
    if WINDOW is None:
        low = 0
        high = length
    else:
        low = tl.maximum(tile_start - WINDOW, 0) // STEP * STEP
        high = tl.minimum(tile_start + TILE + WINDOW, length)
    return low, (high - 1) // STEP * STEP


@triton.jit
def _load(ptr, positions, length, stride, DIM: tl.constexpr, CHECK_END: tl.constexpr = True):
    """Rows of a document, zeros behind its end: (positions, DIM)."""
    dims = tl.arange(0, DIM)
    ptrs = ptr + (positions.to(tl.int64) * stride)[:, None] + dims[None, :]
    if CHECK_END:
        values = tl.load(ptrs, mask=(positions < length)[:, None], other=0.0)
    else:
        values = tl.load(ptrs)
    return values


@triton.jit
def _store(ptr, positions, length, stride, values, DIM: tl.constexpr):
    dims = tl.arange(0, DIM)
    rows = positions.to(tl.int64) * stride
    values = values.to(ptr.dtype.element_ty)
    tl.store(ptr + rows[:, None] + dims[None, :], values, mask=(positions < length)[:, None])


@triton.jit
def _slope(slopes_ptr, head, scale):
    """A head's slope for scores before scaling."""
    if slopes_ptr is None:
        slope = 0.0
    else:
        slope = tl.load(slopes_ptr + head) / scale
    return slope


@triton.jit
def _bias(products, rows, columns, slope, HAS_SLOPES: tl.constexpr, WINDOW: tl.constexpr):
    """Products with ALiBi, -inf outside the window. Positions are fp32; a row at inf is no key, and gets -inf.

    Columns count from where the tile begins, and rows too: what a loop adds is added to the few rows of a thread.
    """
    distance = tl.abs(rows[:, None] - columns[None, :])
    if HAS_SLOPES:
        products -= slope * distance
    if WINDOW is not None:
        products = tl.where(distance <= WINDOW, products, -float("inf"))
    elif not HAS_SLOPES:
        products = tl.where(rows[:, None] < float("inf"), products, -float("inf"))
    return products


@triton.jit
def _forward_step(
    query,
    query_ptr,
    rows,
    column,
    length,
    width,
    slope,
    exponent_scale,
    maximum,
    total,
    out,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    CHECK_END: tl.constexpr,
):
    """Maximum, total and weighted sum of values so far, with COLUMNS more keys."""
    columns = tl.arange(0, COLUMNS)
    key = _load(query_ptr + width, column + columns, length, 3 * width, DIM, CHECK_END)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    if CHECK_END:
        scores = tl.where((column + columns < length)[None, :], scores, -float("inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    if WINDOW is None:
        shift = new_maximum * exponent_scale
    else:  # a row that has met no key within its window yet
        shift = tl.where(new_maximum == -float("inf"), 0.0, new_maximum * exponent_scale)
    weights = tl.exp2(scores * exponent_scale - shift[:, None])
    rescale = tl.exp2(maximum * exponent_scale - shift)
    value = _load(query_ptr + 2 * width, column + columns, length, 3 * width, DIM, CHECK_END)
    out = tl.dot(weights.to(value.dtype), value, out * rescale[:, None], input_precision="ieee")
    return new_maximum, total * rescale + tl.sum(weights, 1), out


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _attention_forward_kernel(
    qkv_ptr,  # (T, 3, H, D)
    cu_seqlens_ptr,  # (B + 1,)
    slopes_ptr,  # (H,) or None
    out_ptr,  # (T, H, D)
    lse_ptr,  # (H, T), base 2
    num_tokens,
    num_documents,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(0) % num_heads
    start, length, tile_start = _find_document(cu_seqlens_ptr, tl.program_id(0) // num_heads, num_documents, ROWS)
    if tile_start >= length:
        return
    width = num_heads * DIM
    query_ptr = qkv_ptr + start * 3 * width + head * DIM
    rows = tile_start + tl.arange(0, ROWS)
    query = _load(query_ptr, rows, length, 3 * width, DIM)
    slope = _slope(slopes_ptr, head, scale)
    exponent_scale = scale * _LOG2_E
    maximum = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    # The keys at the document's end come first: only they need to be told from what lies behind it.
    low, last_column = _partner_range(tile_start, length, ROWS, COLUMNS, WINDOW)
    maximum, total, out = _forward_step(
        query, query_ptr, rows, last_column, length, width, slope, exponent_scale, maximum, total, out,
        DIM, WINDOW, COLUMNS, slopes_ptr is not None, True,
    )  # fmt: skip
    for column in range(low, last_column, COLUMNS):
        maximum, total, out = _forward_step(
            query, query_ptr, rows, column, length, width, slope, exponent_scale, maximum, total, out,
            DIM, WINDOW, COLUMNS, slopes_ptr is not None, False,
        )  # fmt: skip
    total = tl.where(rows < length, total, 1.0)
    _store(out_ptr + start * width + head * DIM, rows, length, width, out / total[:, None], DIM)
    lse = maximum * exponent_scale + tl.log2(total)
    tl.store(lse_ptr + head * num_tokens.to(tl.int64) + start + rows, lse, mask=rows < length)


# Backward, with P the weights and a row's delta = sum(P * dP) = sum(out * grad_out):
#     dV = P^T grad_out,  dP = grad_out V^T,  dS = P * (dP - delta),  dQ = scale * dS K,  dK = scale * dS^T Q.


@triton.jit(do_not_specialize=["num_tokens"])
def _attention_backward_whole_kernel(
    grad_ptr,  # (T, H, D), of the output
    qkv_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    slopes_ptr,
    grad_qkv_ptr,  # (T, 3, H, D)
    num_tokens,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All gradients of a document of at most ROWS tokens: keys stay, queries pass. Scores are (keys, queries)."""
    head = tl.program_id(0) % num_heads
    document = tl.program_id(0) // num_heads
    start = tl.load(cu_seqlens_ptr + document).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + document + 1) - start).to(tl.int32)
    if (length == 0) | (length > ROWS):
        return
    width = num_heads * DIM
    rows = tl.arange(0, ROWS)
    query_ptr = qkv_ptr + start * 3 * width + head * DIM
    grad_query_ptr = grad_qkv_ptr + start * 3 * width + head * DIM
    key = _load(query_ptr + width, rows, length, 3 * width, DIM)
    value = _load(query_ptr + 2 * width, rows, length, 3 * width, DIM)
    key_positions = tl.where(rows < length, rows.to(tl.float32), float("inf"))
    column_offsets = tl.arange(0, COLUMNS)
    slope = _slope(slopes_ptr, head, scale)
    exponent_scale = scale * _LOG2_E
    grad_key = tl.zeros([ROWS, DIM], tl.float32)
    grad_value = tl.zeros([ROWS, DIM], tl.float32)
    for column in range(0, length, COLUMNS):
        columns = column + column_offsets
        query = _load(query_ptr, columns, length, 3 * width, DIM)
        statistics = head * num_tokens.to(tl.int64) + start + columns
        lse = tl.load(lse_ptr + statistics, mask=columns < length, other=float("inf"))  # no weight behind the end
        scores = tl.dot(key, tl.trans(query), input_precision="ieee")
        scores = _bias(
            scores, key_positions - column, column_offsets.to(tl.float32), slope, slopes_ptr is not None, WINDOW
        )
        weights = tl.exp2(scores * exponent_scale - lse[None, :])
        grad = _load(grad_ptr + start * width + head * DIM, columns, length, width, DIM)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision="ieee")
        grad_weights = tl.dot(value, tl.trans(grad), input_precision="ieee")
        delta = tl.sum(weights * grad_weights, 0)
        grad_scores = (weights * (grad_weights - delta[None, :])).to(key.dtype)
        grad_key = tl.dot(grad_scores, query, grad_key, input_precision="ieee")
        grad_query = tl.dot(tl.trans(grad_scores), key, input_precision="ieee") * scale
        _store(grad_query_ptr, columns, length, 3 * width, grad_query, DIM)
    _store(grad_query_ptr + width, rows, length, 3 * width, grad_key * scale, DIM)
    _store(grad_query_ptr + 2 * width, rows, length, 3 * width, grad_value, DIM)


@triton.jit
def _backward_query_step(
    query,
    grad,
    query_ptr,
    rows,
    column,
    length,
    width,
    slope,
    exponent_scale,
    lse,
    delta,
    grad_query,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    CHECK_END: tl.constexpr,
):
    """The gradient of a tile of queries so far, with COLUMNS more keys."""
    columns = tl.arange(0, COLUMNS)
    key = _load(query_ptr + width, column + columns, length, 3 * width, DIM, CHECK_END)
    value = _load(query_ptr + 2 * width, column + columns, length, 3 * width, DIM, CHECK_END)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    if CHECK_END:
        scores = tl.where((column + columns < length)[None, :], scores, -float("inf"))
    weights = tl.exp2(scores * exponent_scale - lse[:, None])
    grad_weights = tl.dot(grad, tl.trans(value), input_precision="ieee")
    grad_scores = weights * (grad_weights - delta[:, None])
    return tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision="ieee")


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _attention_backward_query_kernel(
    grad_ptr,
    qkv_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    slopes_ptr,
    grad_qkv_ptr,
    delta_ptr,  # (H, T), written here and read by the next kernel
    num_tokens,
    num_documents,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    WHOLE: tl.constexpr,  # documents up to this length are another kernel's
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of a tile of queries, over all keys."""
    head = tl.program_id(0) % num_heads
    start, length, tile_start = _find_document(cu_seqlens_ptr, tl.program_id(0) // num_heads, num_documents, ROWS)
    if (tile_start >= length) | (length <= WHOLE):
        return
    width = num_heads * DIM
    rows = tile_start + tl.arange(0, ROWS)
    query_ptr = qkv_ptr + start * 3 * width + head * DIM
    query = _load(query_ptr, rows, length, 3 * width, DIM)
    grad = _load(grad_ptr + start * width + head * DIM, rows, length, width, DIM)
    out = _load(out_ptr + start * width + head * DIM, rows, length, width, DIM)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    statistics = head * num_tokens.to(tl.int64) + start + rows
    tl.store(delta_ptr + statistics, delta, mask=rows < length)
    lse = tl.load(lse_ptr + statistics, mask=rows < length, other=float("inf"))  # no weight behind the end
    slope = _slope(slopes_ptr, head, scale)
    exponent_scale = scale * _LOG2_E
    grad_query = tl.zeros([ROWS, DIM], tl.float32)
    low, last_column = _partner_range(tile_start, length, ROWS, COLUMNS, WINDOW)
    grad_query = _backward_query_step(
        query, grad, query_ptr, rows, last_column, length, width, slope, exponent_scale, lse, delta, grad_query,
        DIM, WINDOW, COLUMNS, slopes_ptr is not None, True,
    )  # fmt: skip
    for column in range(low, last_column, COLUMNS):
        grad_query = _backward_query_step(
            query, grad, query_ptr, rows, column, length, width, slope, exponent_scale, lse, delta, grad_query,
            DIM, WINDOW, COLUMNS, slopes_ptr is not None, False,
        )  # fmt: skip
    _store(grad_qkv_ptr + start * 3 * width + head * DIM, rows, length, 3 * width, grad_query * scale, DIM)


@triton.jit
def _backward_key_step(
    key,
    value,
    query_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    rows,
    column,
    length,
    width,
    slope,
    exponent_scale,
    grad_key,
    grad_value,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    CHECK_END: tl.constexpr,
):
    """The gradients of a tile of keys and values so far, with COLUMNS more queries. Scores are (keys, queries)."""
    columns = tl.arange(0, COLUMNS)
    query = _load(query_ptr, column + columns, length, 3 * width, DIM, CHECK_END)
    grad = _load(grad_ptr, column + columns, length, width, DIM, CHECK_END)
    if CHECK_END:
        in_bounds = column + columns < length
        lse = tl.load(lse_ptr + column + columns, mask=in_bounds, other=float("inf"))  # no weight behind the end
        delta = tl.load(delta_ptr + column + columns, mask=in_bounds, other=0.0)
    else:
        lse = tl.load(lse_ptr + column + columns)
        delta = tl.load(delta_ptr + column + columns)
    scores = tl.dot(key, tl.trans(query), input_precision="ieee")
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    weights = tl.exp2(scores * exponent_scale - lse[None, :])
    grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision="ieee")
    grad_weights = tl.dot(value, tl.trans(grad), input_precision="ieee")
    grad_scores = weights * (grad_weights - delta[None, :])
    return tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision="ieee"), grad_value


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _attention_backward_key_kernel(
    grad_ptr,
    qkv_ptr,
    lse_ptr,
    delta_ptr,
    cu_seqlens_ptr,
    slopes_ptr,
    grad_qkv_ptr,
    num_tokens,
    num_documents,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of a tile of keys and values, over all queries."""
    head = tl.program_id(0) % num_heads
    start, length, tile_start = _find_document(cu_seqlens_ptr, tl.program_id(0) // num_heads, num_documents, ROWS)
    if (tile_start >= length) | (length <= WHOLE):
        return
    width = num_heads * DIM
    rows = tile_start + tl.arange(0, ROWS)
    query_ptr = qkv_ptr + start * 3 * width + head * DIM
    key = _load(query_ptr + width, rows, length, 3 * width, DIM)
    value = _load(query_ptr + 2 * width, rows, length, 3 * width, DIM)
    slope = _slope(slopes_ptr, head, scale)
    exponent_scale = scale * _LOG2_E
    grad_key = tl.zeros([ROWS, DIM], tl.float32)
    grad_value = tl.zeros([ROWS, DIM], tl.float32)
    grad_ptr += start * width + head * DIM
    statistics = head * num_tokens.to(tl.int64) + start
    low, last_column = _partner_range(tile_start, length, ROWS, COLUMNS, WINDOW)
    grad_key, grad_value = _backward_key_step(
        key, value, query_ptr, grad_ptr, lse_ptr + statistics, delta_ptr + statistics, rows, last_column, length, width,
        slope, exponent_scale, grad_key, grad_value, DIM, WINDOW, COLUMNS, slopes_ptr is not None, True,
    )  # fmt: skip
    for column in range(low, last_column, COLUMNS):
        grad_key, grad_value = _backward_key_step(
            key, value, query_ptr, grad_ptr, lse_ptr + statistics, delta_ptr + statistics, rows, column, length, width,
            slope, exponent_scale, grad_key, grad_value, DIM, WINDOW, COLUMNS, slopes_ptr is not None, False,
        )  # fmt: skip
    grad_key_ptr = grad_qkv_ptr + start * 3 * width + width + head * DIM
    _store(grad_key_ptr, rows, length, 3 * width, grad_key * scale, DIM)
    _store(grad_key_ptr + width, rows, length, 3 * width, grad_value, DIM)


# What `choose_tile_config` chooses from, by kernel: for heads of up to 64 numbers of 16 bits, of 128, and for fp32,
# whose products no matrix unit computes exactly. docs/benchmarks/kernels.jsonl has the registers and spills of each.
_TILE_CONFIGS = {
    "forward": (
        [TileConfig(128, 64, 8, 3), TileConfig(128, 64, 4, 3), TileConfig(64, 64, 4, 3), TileConfig(128, 128, 8, 2)],
        [TileConfig(128, 64, 8, 2), TileConfig(128, 32, 8, 2)],
        [TileConfig(32, 32, 4, 1)],
    ),
    "backward_whole": (
        [TileConfig(128, 64, 8, 1), TileConfig(128, 32, 8, 2), TileConfig(128, 32, 4, 1), TileConfig(128, 128, 8, 1)],
        [TileConfig(64, 32, 8, 1), TileConfig(64, 64, 8, 1)],
        [TileConfig(32, 32, 4, 1)],
    ),
    "backward_query": (
        [TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(128, 32, 4, 2)],
        [TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)],
        [TileConfig(32, 32, 4, 1)],
    ),
    "backward_key": (
        [TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)],
        [TileConfig(128, 32, 8, 1), TileConfig(64, 32, 4, 2)],
        [TileConfig(32, 32, 4, 1)],
    ),
}


def tile_configs(kernel: str, dim: int, dtype: torch.dtype) -> list[TileConfig]:
    """The tilings that a kernel, a key of _TILINGS, is tried with."""
    small_head_configs, large_head_configs, fp32_configs = _TILE_CONFIGS[kernel]
    return fp32_configs if dtype == torch.float32 else large_head_configs if dim > 64 else small_head_configs


@torch.library.custom_op("mosaicbert::attention", mutates_args=())
def attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Sequence[float] | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Arguments as in `ops.attention.attention`.

    Returns:
        (T, H, D), same dtype; and the log-sum-exp of each row's scores, (H, T) fp32, to the base 2.

    Raises:
        ValueError: there is no kernel for the head size or the dtype; there is neither a fit GPU nor the interpreter.
    """
    num_tokens, _, num_heads, dim = qkv.shape
    if dim not in HEAD_DIMS:
        raise ValueError(f"head_dim={dim} is not among {HEAD_DIMS}, which the kernels are written for.")
    if qkv.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{qkv.dtype} is not among the kernels' bfloat16, float16 and float32.")
    if qkv.device.type == "cpu" and not isinstance(_attention_forward_kernel, InterpretedFunction):
        raise ValueError("it needs a GPU, or Triton's interpreter: TRITON_INTERPRET=1.")
    if (
        torch.version.hip is None
        and qkv.is_cuda
        and torch.cuda.get_device_capability(qkv.device) < _MIN_COMPUTE_CAPABILITY
    ):
        raise ValueError("it needs a GPU of compute capability 8.0: Triton uses no matrix units of older ones.")
    qkv, cu_seqlens = qkv.contiguous(), cu_seqlens.contiguous()
    out = qkv.new_empty(num_tokens, num_heads, dim)
    lse = qkv.new_empty(num_heads, num_tokens, dtype=torch.float32)
    launcher = _KernelLauncher(qkv, cu_seqlens, max_seqlen, slopes, window)
    launcher.launch_per_tile(_attention_forward_kernel, "forward", qkv, cu_seqlens, launcher.slopes, out, lse)
    return out, lse


@attention.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,  # noqa: ARG001
    max_seqlen: int,  # noqa: ARG001
    slopes: Sequence[float] | None,  # noqa: ARG001
    window: int | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    num_tokens, _, num_heads, dim = qkv.shape
    return qkv.new_empty(num_tokens, num_heads, dim), qkv.new_empty(num_heads, num_tokens, dtype=torch.float32)


@torch.library.custom_op("mosaicbert::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Sequence[float] | None,
    window: int | None,
) -> Tensor:
    """The gradient of qkv, from that of `attention`'s output and what its forward pass saved."""
    qkv, grad, cu_seqlens = qkv.contiguous(), grad.contiguous(), cu_seqlens.contiguous()
    grad_qkv = torch.empty_like(qkv)
    launcher = _KernelLauncher(qkv, cu_seqlens, max_seqlen, slopes, window)
    launcher.launch_per_document(
        _attention_backward_whole_kernel, grad, qkv, lse, cu_seqlens, launcher.slopes, grad_qkv
    )
    if max_seqlen > launcher.max_whole_seqlen:
        delta = torch.empty_like(lse)
        tensors = (cu_seqlens, launcher.slopes, grad_qkv)
        max_whole_seqlen = {"WHOLE": launcher.max_whole_seqlen}
        launcher.launch_per_tile(
            _attention_backward_query_kernel, "backward_query", grad, qkv, out, lse, *tensors, delta, **max_whole_seqlen
        )
        launcher.launch_per_tile(
            _attention_backward_key_kernel, "backward_key", grad, qkv, lse, delta, *tensors, **max_whole_seqlen
        )
    return grad_qkv


@attention_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    qkv: Tensor,
    out: Tensor,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    cu_seqlens: Tensor,  # noqa: ARG001
    max_seqlen: int,  # noqa: ARG001
    slopes: Sequence[float] | None,  # noqa: ARG001
    window: int | None,  # noqa: ARG001
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, *ctx.arguments = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, *output, cu_seqlens)


def _backward(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor, None, None, None, None]:
    grad_qkv = torch.ops.mosaicbert.attention_backward(grad, *ctx.saved_tensors, *ctx.arguments)
    return grad_qkv, None, None, None, None


attention.register_autograd(_backward, setup_context=_save_for_backward)


class _KernelLauncher:
    """What the launches of one call have in common."""

    def __init__(
        self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Sequence[float] | None, window: int | None
    ) -> None:
        self.num_tokens, _, self.num_heads, self.dim = qkv.shape
        self.qkv, self.dtype = qkv, qkv.dtype
        self.num_documents = len(cu_seqlens) - 1
        self.max_seqlen, self.window = max_seqlen, window
        self.slopes = None if slopes is None else _slopes_tensor(qkv.device, tuple(slopes))
        (self.max_whole_seqlen,) = {config.rows for config in tile_configs("backward_whole", self.dim, self.dtype)}
        self.scalar_arguments = (self.num_heads, 1 / math.sqrt(self.dim))  # the last arguments before the constants

    def launch_per_tile(self, kernel: Any, name: str, *tensors: Tensor | None, **constants: int) -> None:
        """One program for each tile and head."""

        def launch(config: TileConfig) -> None:
            num_tiles = self.num_tokens // config.rows + self.num_documents
            arguments = (*tensors, self.num_tokens, self.num_documents, *self.scalar_arguments)
            self._launch(kernel, config, num_tiles, arguments, constants)

        self._launch_autotuned(kernel, tile_configs(name, self.dim, self.dtype), launch)

    def launch_per_document(self, kernel: Any, *tensors: Tensor | None) -> None:
        """One program for each document and head; a tile need not be larger than the longest document."""
        max_rows = max(16, 1 << (self.max_seqlen - 1).bit_length())
        configs = [
            config._replace(rows=min(config.rows, max_rows), columns=min(config.columns, max_rows))
            for config in tile_configs("backward_whole", self.dim, self.dtype)
        ]

        def launch(config: TileConfig) -> None:
            self._launch(kernel, config, self.num_documents, (*tensors, self.num_tokens, *self.scalar_arguments), {})

        self._launch_autotuned(kernel, list(dict.fromkeys(configs)), launch)

    def _launch(
        self, kernel: Any, config: TileConfig, num_tiles: int, arguments: tuple[Any, ...], constants: dict[str, int]
    ) -> None:
        with torch.cuda.device_of(self.qkv):  # Triton launches on the current device
            kernel[(num_tiles * self.num_heads,)](
                *arguments,
                DIM=self.dim,
                WINDOW=self.window,
                ROWS=config.rows,
                COLUMNS=config.columns,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                enable_fp_fusion=True,  # what scales a score and subtracts the maximum is one instruction
                **constants,
            )

    def _launch_autotuned(
        self, kernel: Any, candidates: list[TileConfig], launch: Callable[[TileConfig], None]
    ) -> None:
        if self.num_tokens * self.num_heads < _MIN_ROWS_TO_AUTOTUNE:
            launch_first_fitting(candidates, launch)
            return
        length_class = 1 << (min(self.max_seqlen, 8192) - 1).bit_length()
        launch_key = (
            self.dim,
            str(self.dtype).removeprefix("torch."),
            length_class,
            self.window,
            self.slopes is not None,
        )
        with torch.cuda.device_of(self.qkv):
            config = choose_tile_config(kernel, launch_key, candidates, launch)
        launch(config)


@functools.cache  # for ever: a captured CUDA graph remembers where it is
@torch.inference_mode(False)  # a cached tensor may serve inference first and training later
def _slopes_tensor(device: torch.device, slopes: tuple[float, ...]) -> Tensor:
    return torch.tensor(slopes, dtype=torch.float32, device=device)
