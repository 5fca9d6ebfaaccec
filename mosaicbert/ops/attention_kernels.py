"""Triton kernels of FlashAttention for packed documents with symmetric ALiBi.

They implement the `triton` backend of `ops.attention`. The algorithm is FlashAttention-2 (Dao 2023, arXiv:2307.08691):
an online softmax over tiles of keys, and a backward pass that recomputes the weights from the saved log-sum-exp.
Differences from FlashAttention-2:

- The bias -slope * |i - j| is computed from positions. No tensor of size L x L is stored in global memory.
- The grid size depends only on the numbers of tokens and documents. If all documents fit one tile, each program of the
  forward pass has one document. Otherwise it finds its document in `cu_seqlens`.
- The backward pass uses no atomics. The order of every sum is fixed, so equal inputs give bit-identical results.
- Documents that fit one tile or two tiles have separate backward kernels. One program computes all gradients of a
  document and evaluates each weight once, with 5 products instead of 7.

Scores are stored before scaling, s = q k^T - (slope / scale) * |i - j|, and exponentials use base 2. Scaling and
subtracting the maximum are then one fused multiply-add.
"""

# Triton kernels cannot be type-checked.
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

from mosaicbert.ops.autotune import TileConfig, choose_tile_config, launch_first_working

HEAD_DIMS = (32, 64, 128)
_MIN_COMPUTE_CAPABILITY = (8, 0)
_MIN_ROWS_TO_AUTOTUNE = 2**16  # tokens * heads; timings of smaller launches are not valid for larger ones
_MAX_LENGTH_CLASS = 8192  # tokens; longer documents have the same tile configurations
# On NVIDIA GPUs, the matrix units compute an fp32 product as three TF32 products of the upper and lower bits of its
# factors, with about the error of fp32. 16-bit products do not use this setting.
_PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")
_MAX_FP32_HEAD_DIM = 64  # larger heads spill in every tile configuration
_DOCUMENTS_PER_LOAD = tl.constexpr(1024)
_MAX_INT32 = tl.constexpr(2**31 - 1)
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _find_document(cu_seqlens_ptr, tile, num_documents, ROWS: tl.constexpr):
    """Find the document of a tile by counting the documents whose tiles start at or before it.

    The tiles of document d start at index cu_seqlens[d] // ROWS + d. This gives every document enough tiles, and the
    total depends only on the numbers of tokens and documents. A surplus tile starts after the end of its document.

    Returns:
        Index of the document's first token, length of the document, and position of the tile's first row in it.
    """
    offsets = tl.arange(0, _DOCUMENTS_PER_LOAD)
    num_started = 0
    for first in range(0, num_documents, _DOCUMENTS_PER_LOAD):
        documents = first + offsets
        starts = tl.load(cu_seqlens_ptr + documents, mask=documents < num_documents, other=_MAX_INT32)
        num_started += tl.sum((starts // ROWS + documents <= tile).to(tl.int32), 0)
    document = num_started - 1
    start = tl.load(cu_seqlens_ptr + document)
    length = tl.load(cu_seqlens_ptr + document + 1) - start
    return start.to(tl.int64), length, (tile - start // ROWS - document) * ROWS


@triton.jit
def _partner_range(tile_start, length, TILE: tl.constexpr, STEP: tl.constexpr, WINDOW: tl.constexpr):
    """Return the starts of the first and last steps of STEP positions that a tile of TILE positions attends to."""
    if WINDOW is None:
        low = 0
        high = length
    else:
        low = tl.maximum(tile_start - WINDOW, 0) // STEP * STEP
        high = tl.minimum(tile_start + TILE + WINDOW, length)
    return low, (high - 1) // STEP * STEP


@triton.jit
def _load(ptr, positions, length, stride, DIM: tl.constexpr, CHECK_END: tl.constexpr = True):
    """Load rows of a document, (positions, DIM), with zeros after its end."""
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
    """Load the slope of a head, divided by the scale of the scores."""
    if slopes_ptr is None:
        slope = 0.0
    else:
        slope = tl.load(slopes_ptr + head) / scale
    return slope


@triton.jit
def _bias(products, rows, columns, slope, HAS_SLOPES: tl.constexpr, WINDOW: tl.constexpr):
    """Add the ALiBi bias to scores, and set scores outside the window to -inf.

    Positions are fp32. A row at position inf is not a key, and its scores become -inf. Positions of rows and columns
    are relative to the start of the column tile, so a loop updates only the few rows of a thread.
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
    """Update the running maximum, sum of weights and weighted sum of values with COLUMNS more keys."""
    columns = tl.arange(0, COLUMNS)
    key = _load(query_ptr + width, column + columns, length, 3 * width, DIM, CHECK_END)
    scores = tl.dot(query, tl.trans(key), input_precision=_PRECISION)
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    if CHECK_END:
        scores = tl.where((column + columns < length)[None, :], scores, -float("inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    if WINDOW is None:
        shift = new_maximum * exponent_scale
    else:  # the maximum is -inf until a row has a key within its window
        shift = tl.where(new_maximum == -float("inf"), 0.0, new_maximum * exponent_scale)
    weights = tl.exp2(scores * exponent_scale - shift[:, None])
    rescale = tl.exp2(maximum * exponent_scale - shift)
    value = _load(query_ptr + 2 * width, column + columns, length, 3 * width, DIM, CHECK_END)
    out = tl.dot(weights.to(value.dtype), value, out * rescale[:, None], input_precision=_PRECISION)
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
    ONE_TILE: tl.constexpr,  # every document has at most ROWS tokens, and one program per head
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(0) % num_heads
    tile = tl.program_id(0) // num_heads
    if ONE_TILE:
        start = tl.load(cu_seqlens_ptr + tile).to(tl.int64)
        length = (tl.load(cu_seqlens_ptr + tile + 1) - start).to(tl.int32)
        tile_start = 0
    else:
        start, length, tile_start = _find_document(cu_seqlens_ptr, tile, num_documents, ROWS)
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
    # The last tile of keys is processed first. It is the only one that needs a mask for the end of the document.
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


# Gradients, with P the weights and delta = sum(P * dP) = sum(out * grad_out) for each row:
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
    """Compute all gradients of a document of at most ROWS tokens, iterating over its queries.

    Scores have the layout (keys, queries).
    """
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
        # exp2(-inf) = 0: rows after the end of the document have weight 0
        lse = tl.load(lse_ptr + statistics, mask=columns < length, other=float("inf"))
        scores = tl.dot(key, tl.trans(query), input_precision=_PRECISION)
        scores = _bias(
            scores, key_positions - column, column_offsets.to(tl.float32), slope, slopes_ptr is not None, WINDOW
        )
        weights = tl.exp2(scores * exponent_scale - lse[None, :])
        grad = _load(grad_ptr + start * width + head * DIM, columns, length, width, DIM)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=_PRECISION)
        grad_weights = tl.dot(value, tl.trans(grad), input_precision=_PRECISION)
        delta = tl.sum(weights * grad_weights, 0)
        grad_scores = (weights * (grad_weights - delta[None, :])).to(key.dtype)
        grad_key = tl.dot(grad_scores, query, grad_key, input_precision=_PRECISION)
        grad_query = tl.dot(tl.trans(grad_scores), key, input_precision=_PRECISION) * scale
        _store(grad_query_ptr, columns, length, 3 * width, grad_query, DIM)
    _store(grad_query_ptr + width, rows, length, 3 * width, grad_key * scale, DIM)
    _store(grad_query_ptr + 2 * width, rows, length, 3 * width, grad_value, DIM)


@triton.jit
def _backward_two_tiles_step(
    key,
    value,
    key_positions,
    query_ptr,
    grad_ptr,
    out_ptr,
    lse_ptr,
    delta_ptr,
    partial_ptr,
    grad_query_ptr,
    column,
    length,
    width,
    slope,
    scale,
    grad_key,
    grad_value,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """Add COLUMNS queries to the gradients of one of two tiles of keys, and the keys to the gradients of the queries.

    Scores have the layout (keys, queries).
    """
    offsets = tl.arange(0, COLUMNS)
    columns = column + offsets
    query = _load(query_ptr, columns, length, 3 * width, DIM)
    grad = _load(grad_ptr, columns, length, width, DIM)
    # exp2(-inf) = 0: rows after the end of the document have weight 0
    lse = tl.load(lse_ptr + columns, mask=columns < length, other=float("inf"))
    if IS_FIRST:
        out = _load(out_ptr, columns, length, width, DIM)
        delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        tl.store(delta_ptr + columns, delta, mask=columns < length)
    else:
        delta = tl.load(delta_ptr + columns, mask=columns < length, other=0.0)
    scores = tl.dot(key, tl.trans(query), input_precision=_PRECISION)
    scores = _bias(scores, key_positions - column, offsets.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    weights = tl.exp2(scores * (scale * _LOG2_E) - lse[None, :])
    grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=_PRECISION)
    grad_weights = tl.dot(value, tl.trans(grad), input_precision=_PRECISION)
    grad_scores = (weights * (grad_weights - delta[None, :])).to(key.dtype)
    grad_key = tl.dot(grad_scores, query, grad_key, input_precision=_PRECISION)
    grad_query = tl.dot(tl.trans(grad_scores), key, input_precision=_PRECISION) * scale
    if IS_FIRST:
        _store(partial_ptr, columns, length, width, grad_query, DIM)
    else:
        grad_query += _load(partial_ptr, columns, length, width, DIM)
        _store(grad_query_ptr, columns, length, 3 * width, grad_query, DIM)
    return grad_key, grad_value


@triton.jit(do_not_specialize=["num_tokens"])
def _attention_backward_two_tiles_kernel(
    grad_ptr,
    qkv_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    slopes_ptr,
    grad_qkv_ptr,
    delta_ptr,  # (H, T), scratch
    partial_ptr,  # (T, H, D) fp32, scratch: contribution of the first tile of keys to the gradients of the queries
    num_tokens,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute all gradients of a document of ROWS + 1 to 2 ROWS tokens, one tile of keys after the other.

    The gradients of the queries are summed in a fixed order by one program, through memory and without atomics.
    """
    head = tl.program_id(0) % num_heads
    document = tl.program_id(0) // num_heads
    start = tl.load(cu_seqlens_ptr + document).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + document + 1) - start).to(tl.int32)
    if (length <= ROWS) | (length > 2 * ROWS):
        return
    width = num_heads * DIM
    query_ptr = qkv_ptr + start * 3 * width + head * DIM
    grad_query_ptr = grad_qkv_ptr + start * 3 * width + head * DIM
    grad_ptr += start * width + head * DIM
    out_ptr += start * width + head * DIM
    partial_ptr += start * width + head * DIM
    lse_ptr += head * num_tokens.to(tl.int64) + start
    delta_ptr += head * num_tokens.to(tl.int64) + start
    slope = _slope(slopes_ptr, head, scale)
    for tile in tl.static_range(2):
        rows = tile * ROWS + tl.arange(0, ROWS)
        key = _load(query_ptr + width, rows, length, 3 * width, DIM, tile == 1)
        value = _load(query_ptr + 2 * width, rows, length, 3 * width, DIM, tile == 1)
        key_positions = tl.where(rows < length, rows.to(tl.float32), float("inf"))
        grad_key = tl.zeros([ROWS, DIM], tl.float32)
        grad_value = tl.zeros([ROWS, DIM], tl.float32)
        for column in range(0, length, COLUMNS):
            grad_key, grad_value = _backward_two_tiles_step(
                key, value, key_positions, query_ptr, grad_ptr, out_ptr, lse_ptr, delta_ptr, partial_ptr,
                grad_query_ptr, column, length, width, slope, scale, grad_key, grad_value,
                DIM, WINDOW, COLUMNS, slopes_ptr is not None, tile == 0,
            )  # fmt: skip
        _store(grad_query_ptr + width, rows, length, 3 * width, grad_key * scale, DIM)
        _store(grad_query_ptr + 2 * width, rows, length, 3 * width, grad_value, DIM)
        tl.debug_barrier()  # the second tile reads what other threads have stored for the first one


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
    """Update the gradient of a tile of queries with COLUMNS more keys."""
    columns = tl.arange(0, COLUMNS)
    key = _load(query_ptr + width, column + columns, length, 3 * width, DIM, CHECK_END)
    value = _load(query_ptr + 2 * width, column + columns, length, 3 * width, DIM, CHECK_END)
    scores = tl.dot(query, tl.trans(key), input_precision=_PRECISION)
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    if CHECK_END:
        scores = tl.where((column + columns < length)[None, :], scores, -float("inf"))
    weights = tl.exp2(scores * exponent_scale - lse[:, None])
    grad_weights = tl.dot(grad, tl.trans(value), input_precision=_PRECISION)
    grad_scores = weights * (grad_weights - delta[:, None])
    return tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision=_PRECISION)


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _attention_backward_query_kernel(
    grad_ptr,
    qkv_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    slopes_ptr,
    grad_qkv_ptr,
    delta_ptr,  # (H, T), written here, read by _attention_backward_key_kernel
    num_tokens,
    num_documents,
    num_heads,
    scale,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    ONE_PASS: tl.constexpr,  # documents of at most this length belong to the kernels for one tile and two tiles
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the gradients of a tile of queries, iterating over all keys."""
    head = tl.program_id(0) % num_heads
    start, length, tile_start = _find_document(cu_seqlens_ptr, tl.program_id(0) // num_heads, num_documents, ROWS)
    if (tile_start >= length) | (length <= ONE_PASS):
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
    # exp2(-inf) = 0: rows after the end of the document have weight 0
    lse = tl.load(lse_ptr + statistics, mask=rows < length, other=float("inf"))
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
    """Update the gradients of a tile of keys and values with COLUMNS more queries.

    Scores have the layout (keys, queries).
    """
    columns = tl.arange(0, COLUMNS)
    query = _load(query_ptr, column + columns, length, 3 * width, DIM, CHECK_END)
    grad = _load(grad_ptr, column + columns, length, width, DIM, CHECK_END)
    if CHECK_END:
        in_bounds = column + columns < length
        # exp2(-inf) = 0: rows after the end of the document have weight 0
        lse = tl.load(lse_ptr + column + columns, mask=in_bounds, other=float("inf"))
        delta = tl.load(delta_ptr + column + columns, mask=in_bounds, other=0.0)
    else:
        lse = tl.load(lse_ptr + column + columns)
        delta = tl.load(delta_ptr + column + columns)
    scores = tl.dot(key, tl.trans(query), input_precision=_PRECISION)
    scores = _bias(scores, (rows - column).to(tl.float32), columns.to(tl.float32), slope, HAS_SLOPES, WINDOW)
    weights = tl.exp2(scores * exponent_scale - lse[None, :])
    grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=_PRECISION)
    grad_weights = tl.dot(value, tl.trans(grad), input_precision=_PRECISION)
    grad_scores = weights * (grad_weights - delta[None, :])
    return tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision=_PRECISION), grad_value


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
    ONE_PASS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the gradients of a tile of keys and values, iterating over all queries."""
    head = tl.program_id(0) % num_heads
    start, length, tile_start = _find_document(cu_seqlens_ptr, tl.program_id(0) // num_heads, num_documents, ROWS)
    if (tile_start >= length) | (length <= ONE_PASS):
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


# Candidates of `choose_tile_config` by kernel: for 16-bit heads of size up to 64, for 16-bit heads of size 128, and for
# fp32. docs/benchmarks/kernels.jsonl lists registers and spills; the first 16-bit configurations of small heads do not
# spill on sm_90. Two programs with 8 warps run on a multiprocessor at once if they have at most 128 registers.
_TILE_CONFIGS: dict[str, tuple[list[TileConfig], list[TileConfig], list[TileConfig]]] = {
    "forward": (
        [
            TileConfig(128, 64, 8, 3),
            TileConfig(128, 64, 8, 3, max_registers=128),
            TileConfig(128, 64, 4, 3),
            TileConfig(64, 64, 4, 3),
            TileConfig(128, 128, 8, 2),
        ],
        [TileConfig(128, 64, 8, 2), TileConfig(128, 32, 8, 2)],
        [TileConfig(64, 16, 4, 1)],
    ),
    "backward_whole": (
        [
            TileConfig(128, 32, 8, 1),
            TileConfig(128, 64, 8, 1),
            TileConfig(128, 32, 8, 2),
            TileConfig(128, 32, 4, 1),
            TileConfig(128, 128, 8, 1),
        ],
        [TileConfig(64, 32, 8, 1), TileConfig(64, 64, 8, 1)],
        [TileConfig(32, 32, 8, 1)],
    ),
    "backward_two_tiles": ([TileConfig(128, 32, 8, 1), TileConfig(128, 64, 8, 1)], [], []),
    "backward_query": (
        [TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(128, 32, 4, 2)],
        [TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)],
        [TileConfig(64, 16, 4, 1), TileConfig(16, 32, 4, 1)],
    ),
    "backward_key": (
        [TileConfig(128, 32, 8, 2), TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(64, 32, 4, 2)],
        [TileConfig(128, 32, 8, 1), TileConfig(64, 32, 4, 2)],
        [TileConfig(16, 32, 4, 1)],
    ),
}


def tile_configs(kernel: str, dim: int, dtype: torch.dtype) -> list[TileConfig]:
    """Return the tile configurations that autotuning compares for a kernel.

    Args:
        kernel: Name of the kernel, one of "forward", "backward_whole", "backward_two_tiles", "backward_query" and
            "backward_key".
        dim: Head size D.
        dtype: dtype of queries, keys and values.

    Returns:
        Tile configurations, preferred one first. None if the kernel is not used for this dtype and head size.
    """
    small_head_configs, large_head_configs, fp32_configs = _TILE_CONFIGS[kernel]
    return fp32_configs if dtype == torch.float32 else large_head_configs if dim > 64 else small_head_configs


@torch.library.custom_op("mosaicbert::attention", mutates_args=())
def attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Sequence[float] | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Compute self-attention within each document with the Triton kernels.

    Args:
        qkv: (T, 3, H, D), queries, keys and values of the concatenated documents; bf16, fp16 or fp32.
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T. The first entry is 0.
        max_seqlen: Number of tokens of the longest document, or more.
        slopes: H positive numbers, or None for attention without a bias.
        window: Maximum distance in tokens between two tokens that attend to each other, or None for no limit.

    Returns:
        The output, (T, H, D) in the dtype of qkv, and the base-2 log-sum-exp of each row of scores, (H, T) fp32.

    Raises:
        ValueError: If there is no kernel for the head size or the dtype, the GPU has a compute capability below 8.0, or
            qkv is on the CPU and Triton's interpreter is not enabled.
    """
    num_tokens, _, num_heads, dim = qkv.shape
    if dim not in HEAD_DIMS:
        raise ValueError(
            f"`head_dim` must be one of {', '.join(map(str, HEAD_DIMS))}, got {dim}. Use a different attention backend."
        )
    if qkv.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            f"`qkv` dtype must be bfloat16, float16 or float32, got {qkv.dtype}. Use a different attention backend."
        )
    if qkv.dtype == torch.float32 and dim > _MAX_FP32_HEAD_DIM:
        raise ValueError(
            f"`head_dim` must be at most {_MAX_FP32_HEAD_DIM} in fp32, got {dim}. Use a different attention backend or "
            "dtype."
        )
    if qkv.device.type == "cpu" and not isinstance(_attention_forward_kernel, InterpretedFunction):
        raise ValueError(
            "`qkv` must be on a GPU, got a CPU tensor. Use a different attention backend, or TRITON_INTERPRET=1 for "
            "tests."
        )
    if (
        torch.version.hip is None
        and qkv.is_cuda
        and torch.cuda.get_device_capability(qkv.device) < _MIN_COMPUTE_CAPABILITY
    ):
        # Triton does not use the matrix units of older GPUs.
        capability = ".".join(map(str, torch.cuda.get_device_capability(qkv.device)))
        raise ValueError(
            f"Compute capability of the GPU must be at least 8.0, got {capability}. Use a different attention backend."
        )
    qkv, cu_seqlens = qkv.contiguous(), cu_seqlens.contiguous()
    out = qkv.new_empty(num_tokens, num_heads, dim)
    lse = qkv.new_empty(num_heads, num_tokens, dtype=torch.float32)
    launcher = _KernelLauncher(qkv, cu_seqlens, max_seqlen, slopes, window)
    launcher.launch_forward(qkv, cu_seqlens, launcher.slopes, out, lse)
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
    """Compute the gradient of qkv.

    Args:
        grad: (T, H, D), gradient of the output of `attention`.
        qkv: (T, 3, H, D), input of `attention`.
        out: (T, H, D), output of `attention`.
        lse: (H, T) fp32, base-2 log-sum-exp of each row of scores.
        cu_seqlens: (B + 1,) int32, start index of each document, followed by T.
        max_seqlen: Number of tokens of the longest document, or more.
        slopes: H positive numbers, or None for attention without a bias.
        window: Maximum distance in tokens between two tokens that attend to each other, or None for no limit.

    Returns:
        (T, 3, H, D), same dtype as qkv.
    """
    qkv, grad, cu_seqlens = qkv.contiguous(), grad.contiguous(), cu_seqlens.contiguous()
    grad_qkv = torch.empty_like(qkv)
    launcher = _KernelLauncher(qkv, cu_seqlens, max_seqlen, slopes, window)
    tensors = (cu_seqlens, launcher.slopes, grad_qkv)
    launcher.launch_per_document(_attention_backward_whole_kernel, "backward_whole", grad, qkv, lse, *tensors)
    if max_seqlen <= launcher.max_one_tile_seqlen:
        return grad_qkv
    delta = torch.empty_like(lse)
    if launcher.max_one_pass_seqlen > launcher.max_one_tile_seqlen:
        partial = torch.empty_like(out, dtype=torch.float32)
        launcher.launch_per_document(
            _attention_backward_two_tiles_kernel,
            "backward_two_tiles",
            *(grad, qkv, out, lse, *tensors, delta, partial),
        )
    if max_seqlen > launcher.max_one_pass_seqlen:
        constants = {"ONE_PASS": launcher.max_one_pass_seqlen}
        launcher.launch_per_tile(
            _attention_backward_query_kernel, "backward_query", grad, qkv, out, lse, *tensors, delta, **constants
        )
        launcher.launch_per_tile(
            _attention_backward_key_kernel, "backward_key", grad, qkv, lse, delta, *tensors, **constants
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


def length_classes(num_tokens: int, num_documents: int, max_seqlen: int) -> tuple[int, int]:
    """Return the mean and the maximum length of documents, rounded up to powers of two, for the autotuning key.

    The maximum alone is not sufficient, since in training it is the limit of the recipe. The lengths themselves are on
    the device. The mean is known on the host and equal in a resumed run.

    Args:
        num_tokens: Number of tokens T.
        num_documents: Number of documents B, including empty ones, which are at most a third in training.
        max_seqlen: Number of tokens of the longest document, or more.
    """
    max_seqlen = min(max_seqlen, _MAX_LENGTH_CLASS)
    mean = min(-(-num_tokens // max(num_documents, 1)), max_seqlen)
    return triton.next_power_of_2(mean), triton.next_power_of_2(max_seqlen)


class _KernelLauncher:
    """Launches the kernels of one forward or backward call with shared arguments."""

    def __init__(
        self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Sequence[float] | None, window: int | None
    ) -> None:
        self.num_tokens, _, self.num_heads, self.dim = qkv.shape
        self.qkv, self.dtype = qkv, qkv.dtype
        self.num_documents = len(cu_seqlens) - 1
        self.max_seqlen, self.window = max_seqlen, window
        self.slopes = None if slopes is None else _slopes_tensor(qkv.device, tuple(slopes))
        (self.max_one_tile_seqlen,) = {config.rows for config in tile_configs("backward_whole", self.dim, self.dtype)}
        num_one_pass_tiles = 2 if tile_configs("backward_two_tiles", self.dim, self.dtype) else 1
        self.max_one_pass_seqlen = num_one_pass_tiles * self.max_one_tile_seqlen
        self.scalar_arguments = (self.num_heads, 1 / math.sqrt(self.dim))  # num_heads and scale of a kernel

    def launch_forward(self, *tensors: Tensor | None) -> None:
        """Launch one program per document and head if all documents fit one tile, otherwise one per tile and head."""

        def launch(config: TileConfig) -> Any:
            is_one_tile = self.max_seqlen <= config.rows
            num_tiles = self.num_documents if is_one_tile else self._max_num_tiles(config)
            arguments = (*tensors, self.num_tokens, self.num_documents, *self.scalar_arguments)
            return self._launch(_attention_forward_kernel, config, num_tiles, arguments, {"ONE_TILE": is_one_tile})

        self._launch_autotuned(_attention_forward_kernel, tile_configs("forward", self.dim, self.dtype), launch)

    def launch_per_tile(self, kernel: Any, name: str, *tensors: Tensor | None, **constants: int) -> None:
        """Launch one program per tile and head."""

        def launch(config: TileConfig) -> Any:
            arguments = (*tensors, self.num_tokens, self.num_documents, *self.scalar_arguments)
            return self._launch(kernel, config, self._max_num_tiles(config), arguments, constants)

        self._launch_autotuned(kernel, tile_configs(name, self.dim, self.dtype), launch)

    def launch_per_document(self, kernel: Any, name: str, *tensors: Tensor | None) -> None:
        """Launch one program per document and head, with tiles no larger than the longest document requires."""
        max_rows = max(16, 1 << (self.max_seqlen - 1).bit_length())
        configs = [
            config._replace(rows=min(config.rows, max_rows), columns=min(config.columns, max_rows))
            for config in tile_configs(name, self.dim, self.dtype)
        ]

        def launch(config: TileConfig) -> Any:
            return self._launch(
                kernel, config, self.num_documents, (*tensors, self.num_tokens, *self.scalar_arguments), {}
            )

        self._launch_autotuned(kernel, list(dict.fromkeys(configs)), launch)

    def _max_num_tiles(self, config: TileConfig) -> int:
        return self.num_tokens // config.rows + self.num_documents

    def _launch(
        self, kernel: Any, config: TileConfig, num_tiles: int, arguments: tuple[Any, ...], constants: dict[str, int]
    ) -> Any:  # the compiled kernel
        with torch.cuda.device_of(self.qkv):  # Triton launches on the current device
            return kernel[(num_tiles * self.num_heads,)](
                *arguments,
                DIM=self.dim,
                WINDOW=self.window,
                ROWS=config.rows,
                COLUMNS=config.columns,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                enable_fp_fusion=True,  # scaling a score and subtracting the maximum become one instruction
                **({"maxnreg": config.max_registers} if config.max_registers else {}),  # unknown to AMD's compiler
                **constants,
            )

    def _launch_autotuned(self, kernel: Any, candidates: list[TileConfig], launch: Callable[[TileConfig], Any]) -> None:
        launch_key = (
            self.dim,
            str(self.dtype).removeprefix("torch."),
            *length_classes(self.num_tokens, self.num_documents, self.max_seqlen),
            self.window,
            self.slopes is not None,
        )
        with torch.cuda.device_of(self.qkv):
            if self.num_tokens * self.num_heads < _MIN_ROWS_TO_AUTOTUNE:
                launch_first_working(kernel, launch_key, candidates, launch)
            else:
                launch(choose_tile_config(kernel, launch_key, candidates, launch))


@functools.cache  # without a size limit, because a captured CUDA graph stores the address of the tensor
@torch.inference_mode(False)  # a cached tensor may be used for inference first and for training later
def _slopes_tensor(device: torch.device, slopes: tuple[float, ...]) -> Tensor:
    return torch.tensor(slopes, dtype=torch.float32, device=device)
