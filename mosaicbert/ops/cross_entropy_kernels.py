"""Triton kernel of softmax cross-entropy and its gradient, used by `ops.cross_entropy` on a GPU.

The kernel uses the online softmax of Milakov and Gimelshein 2018 (arXiv:1805.02867). A first pass over the blocks of a
row computes the maximum and the sum, and a second pass overwrites the logits with their gradient. One program computes
a complete row, so the result does not depend on the order of programs.
"""

# Triton kernels cannot be type-checked.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_BLOCK = 2048  # maximum number of columns per block
_NUM_WARPS = 8


@triton.jit
def _cross_entropy_row_kernel(
    logits_ptr,  # (rows, width), overwritten by the gradient
    labels_ptr,  # (rows,)
    losses_ptr,  # (rows,) fp32
    is_correct_ptr,  # (rows,)
    width,
    IGNORED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # int64, because row * width can exceed 2^31
    row_ptr = logits_ptr + row * width
    columns = tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    if label == IGNORED:
        tl.store(losses_ptr + row, 0.0)
        tl.store(is_correct_ptr + row, 0)
        if WITH_GRADIENT:
            zeros = tl.zeros([BLOCK], logits_ptr.dtype.element_ty)
            for start in range(0, width, BLOCK):
                tl.store(row_ptr + start + columns, zeros, mask=start + columns < width)
        return
    # A label outside the vocabulary gives a NaN loss instead of an access outside the row.
    is_valid_label = (label >= 0) & (label < width)
    label = label.to(tl.int32)
    label_logit = tl.load(row_ptr + label, mask=is_valid_label, other=float("nan")).to(tl.float32)
    maximum = -float("inf")
    totals = tl.zeros([BLOCK], tl.float32)
    is_wrong = label_logit != label_logit  # True if another logit is larger, or equal and earlier
    for start in range(0, width, BLOCK):
        block_columns = start + columns
        logits = tl.load(row_ptr + block_columns, mask=block_columns < width, other=-float("inf")).to(tl.float32)
        block_maximum = tl.max(logits, 0)
        maximum_before = tl.where(start < label, block_maximum, -float("inf"))
        if (start <= label) & (label < start + BLOCK):
            maximum_before = tl.max(tl.where(block_columns < label, logits, -float("inf")), 0)
        is_wrong = is_wrong | (block_maximum > label_logit) | (maximum_before == label_logit)
        new_maximum = tl.maximum(maximum, block_maximum)
        shift = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        totals = totals * tl.exp(maximum - shift) + tl.exp(logits - shift)
        maximum = new_maximum
    total = tl.sum(totals, 0)
    tl.store(losses_ptr + row, (maximum - label_logit) + tl.log(total))
    tl.store(is_correct_ptr + row, tl.where(is_wrong, 0, 1))
    if WITH_GRADIENT:
        scale = 1.0 / total
        for start in range(0, width, BLOCK):
            block_columns = start + columns
            logits = tl.load(row_ptr + block_columns, mask=block_columns < width, other=-float("inf")).to(tl.float32)
            grads = tl.exp(logits - maximum) * scale - tl.where(block_columns == label, 1.0, 0.0)
            tl.store(row_ptr + block_columns, grads.to(logits_ptr.dtype.element_ty), mask=block_columns < width)


def softmax_cross_entropy_(
    logits: Tensor, labels: Tensor, losses: Tensor, is_correct: Tensor, ignore_index: int, with_gradient: bool
) -> None:
    """Compute the loss and correctness of each row, and optionally overwrite the logits with their gradient.

    Args:
        logits: (M, V) contiguous, fp32, bf16 or fp16. With with_gradient, overwritten by the gradient of the summed
            loss.
        labels: (M,) int64. A label outside [0, V) other than ignore_index gives a NaN loss.
        losses: (M,) fp32, output: cross-entropy of each row.
        is_correct: (M,) int32, output: 1 if the label is the first argmax of its row, otherwise 0.
        ignore_index: Label of rows whose loss, correctness and gradient are zero.
        with_gradient: True to compute the gradient.
    """
    num_rows, width = logits.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _cross_entropy_row_kernel[(num_rows,)](
            logits,
            labels.contiguous(),
            losses,
            is_correct,
            width,
            IGNORED=ignore_index,
            WITH_GRADIENT=with_gradient,
            BLOCK=min(_MAX_BLOCK, triton.next_power_of_2(width)),
            num_warps=_NUM_WARPS,
        )
