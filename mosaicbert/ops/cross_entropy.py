"""Cross-entropy fused with the decoder product: loss = sum(logsumexp(hidden W^T + b) - logit of the label).

The logits of M tokens over V vocabulary entries are the largest tensor of a masked-language-model step. This module
computes one chunk of rows at a time. The logits of a chunk give its loss. They are then overwritten by their gradient,
softmax(logits) - onehot(label), which gives the contributions to the gradients of hidden, weight and bias.

All gradients are computed in the forward pass, and the backward pass scales them by the gradient of the loss. Source:
Liger-Kernel, Hsu et al. 2024, arXiv:2410.10989.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaicbert.modes import autocast_dtype, without_autocast
from mosaicbert.ops.dispatch import choose_kernels

# Exported folders contain this file, and their copies register the operator in the same process. A namespace per module
# avoids a conflict.
_NAMESPACE = re.sub(r"\W", "_", __name__)

_IGNORE_INDEX = -100  # label of rows that are excluded from the loss
# Maximum size of a chunk of logits in bytes, large enough for efficient matrix products. Measured on a CPU.
_CPU_CHUNK_BYTES = 32 * 2**20
_GPU_CHUNK_BYTES = 256 * 2**20
_CPU_SOFTMAX_BYTES = 2**20  # of a block of fp32 logits that stays in the cache from the softmax to the gradient
_CPU_BLOCK_ROWS = 4096  # rows per half-precision product added to an fp32 sum; the converted block fits the cache


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the loss and the number of correct predictions in plain PyTorch.

    Args:
        hidden: (M, C).
        weight: (V, C).
        bias: (V,).
        labels: (M,) int64, -100 for rows excluded from the loss.

    Returns:
        The sum of the cross-entropies, () fp32 or wider, and the number of labels that are the first argmax of their
        row, () int64.
    """
    logits = F.linear(hidden, weight, bias)  # (M, V)
    logits = logits.to(_statistics_dtype(logits.dtype))
    loss = F.cross_entropy(logits, labels, ignore_index=_IGNORE_INDEX, reduction="sum")
    return loss, (logits.argmax(1) == labels).sum()


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the summed cross-entropy of the logits hidden @ weight^T + bias, and the number of correct predictions.

    The product is computed in the autocast dtype if autocast is enabled, otherwise in the dtype of hidden. Softmax and
    loss are computed in fp32, or in fp64 for fp64 inputs.

    Args:
        hidden: (M, C).
        weight: (V, C).
        bias: (V,).
        labels: (M,) int64, -100 for rows excluded from the loss.

    Returns:
        The sum of the cross-entropies, () fp32 or fp64, which can be differentiated once, and the number of labels that
        are the first argmax of their row, () int64.

    Raises:
        ValueError: If the shapes do not match.

    Source: fused linear cross-entropy of Liger-Kernel, Hsu et al. 2024, arXiv:2410.10989.
    """
    num_rows, width = hidden.shape if hidden.ndim == 2 else (-1, -1)
    vocab_size = weight.shape[0] if weight.ndim == 2 else -1
    if (weight.shape, bias.shape, labels.shape) != ((vocab_size, width), (vocab_size,), (num_rows,)):
        raise ValueError(
            f"`linear_cross_entropy` inputs must be hidden (M, C), weight (V, C), bias (V,) and labels (M,), got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)} and {tuple(labels.shape)}. "
            f"Select the rows of the masked tokens first."
        )
    needs_grad = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight, bias)]
    hidden = hidden.to(autocast_dtype(hidden.device.type, hidden.dtype))
    loss, num_correct, *_ = _linear_cross_entropy(hidden, weight, bias, labels, needs_grad)
    return loss, num_correct


@torch.library.custom_op(f"{_NAMESPACE}::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # needs_grad has one entry each for hidden, weight and bias. A gradient that is not needed is returned empty.
    num_rows, vocab_size, softmax_cross_entropy_ = len(hidden), len(weight), _choose_softmax_cross_entropy(hidden)
    chunk = _rows_per_chunk(vocab_size, hidden.dtype, hidden.device.type)
    loss, _, grad_hidden, grad_weight, grad_bias = _empty(hidden, weight, bias, needs_grad)
    grad_bias.zero_()
    if not num_rows:
        grad_weight.zero_()
    with without_autocast(hidden.device.type):
        weight, bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        losses = loss.new_empty(num_rows)
        is_correct = labels.new_empty(num_rows, dtype=torch.int32)
        buffer = hidden.new_empty(min(num_rows, chunk), vocab_size)
        for start in range(0, num_rows, chunk):
            rows = slice(start, min(start + chunk, num_rows))
            logits = torch.addmm(bias, hidden[rows], weight.t(), out=buffer[: rows.stop - start])
            softmax_cross_entropy_(logits, labels[rows], losses[rows], is_correct[rows], _IGNORE_INDEX, any(needs_grad))
            if needs_grad[0]:
                torch.mm(logits, weight, out=grad_hidden[rows])
            if needs_grad[1]:
                _add_product(grad_weight, logits.t(), hidden[rows], is_first=start == 0)
            if needs_grad[2]:
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        return losses.sum(), is_correct.sum(), grad_hidden, grad_weight, grad_bias


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del labels
    return _empty(hidden, weight, bias, needs_grad)


def _empty(
    hidden: Tensor, weight: Tensor, bias: Tensor, needs_grad: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = [
        tensor.shape if needed else (0,) for tensor, needed in zip((hidden, weight, bias), needs_grad, strict=True)
    ]
    statistics_dtype = _statistics_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=statistics_dtype),
        hidden.new_empty((), dtype=torch.int64),
        hidden.new_empty(shapes[0]),
        hidden.new_empty(shapes[1], dtype=statistics_dtype),
        hidden.new_empty(shapes[2], dtype=statistics_dtype),
    )


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, bias, _, ctx.needs_grad = inputs
    _, num_correct, grad_hidden, grad_weight, grad_bias = output
    ctx.mark_non_differentiable(num_correct, grad_hidden, grad_weight, grad_bias)
    ctx.set_materialize_grads(False)  # no zeros in the size of grad_weight for outputs without a gradient
    ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
    ctx.dtypes = grad_hidden.dtype, weight.dtype, bias.dtype


def _scale_gradients(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_grad, strict=True)
    gradients = [_scale(gradient, grad_loss).to(dtype) if needed else None for gradient, dtype, needed in saved]
    return *gradients, None, None


def _scale(gradient: Tensor, factor: Tensor) -> Tensor:
    # In place, since the gradient of the weight is large. PyTorch then reports a second backward pass as an error.
    # Compilers, which trace with subclasses of Tensor, do not accept a change of a saved tensor.
    return gradient.mul_(factor) if type(gradient) is Tensor else gradient * factor


_linear_cross_entropy.register_autograd(_scale_gradients, setup_context=_save_gradients)


def _softmax_cross_entropy_(
    logits: Tensor, labels: Tensor, losses: Tensor, is_correct: Tensor, ignore_index: int, with_gradient: bool
) -> None:
    """Compute the loss and correctness of each row, and optionally overwrite the logits with their gradient."""
    num_rows, vocab_size = logits.shape
    block = num_rows
    if logits.device.type == "cpu":
        block = max(1, _CPU_SOFTMAX_BYTES // (losses.dtype.itemsize * vocab_size))
    probabilities = logits.new_empty(min(block, num_rows), vocab_size, dtype=losses.dtype)
    for start in range(0, num_rows, block):
        rows = slice(start, min(start + block, num_rows))
        out = probabilities[: rows.stop - start]
        _softmax_block_(logits[rows], labels[rows], losses[rows], is_correct[rows], out, ignore_index, with_gradient)


def _softmax_block_(
    logits: Tensor,
    labels: Tensor,
    losses: Tensor,
    is_correct: Tensor,
    probabilities: Tensor,
    ignore_index: int,
    with_gradient: bool,
) -> None:
    is_labeled = labels != ignore_index
    labels = labels.where(is_labeled, 0)
    maximum, argmax = logits.max(1)  # max also gives the first argmax, and is faster than argmax on a CPU
    torch.eq(argmax, labels, out=is_correct).mul_(is_labeled)
    label_logits = logits.gather(1, labels[:, None])[:, 0]
    torch.softmax(logits, 1, dtype=losses.dtype, out=probabilities)
    # logsumexp = maximum - log(p), with p the largest probability. p is at least 1 / V, while that of the label may
    # underflow.
    log_largest = probabilities.gather(1, argmax[:, None])[:, 0].log()
    row_losses = (maximum.to(losses.dtype) - label_logits) - log_largest
    losses.copy_(row_losses.where(is_labeled, 0.0))
    if with_gradient:
        probabilities.scatter_add_(1, labels[:, None], probabilities.new_full((len(labels), 1), -1.0))
        torch.mul(probabilities, is_labeled[:, None], out=logits)


def _choose_softmax_cross_entropy(hidden: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, int, bool], None]:
    # The kernels compute in fp32, which is not sufficient for fp64 inputs.
    if hidden.dtype != torch.float64 and choose_kernels(hidden.device.type).name == "triton":
        # Imported by name, because exported folders contain this file and must work without Triton.
        kernels: Any = importlib.import_module("mosaicbert.ops.cross_entropy_kernels")
        return kernels.softmax_cross_entropy_
    return _softmax_cross_entropy_


def _rows_per_chunk(vocab_size: int, dtype: torch.dtype, device_type: str) -> int:
    # A power of two, for efficient matrix products. It does not depend on the number of rows, so that the rounding of
    # sums does not either.
    rows = (_CPU_CHUNK_BYTES if device_type == "cpu" else _GPU_CHUNK_BYTES) // (dtype.itemsize * vocab_size)
    return 1 << max(rows.bit_length() - 1, 0)


def _add_product(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)  # beta = 0 ignores uninitialized memory
        return
    block = _CPU_BLOCK_ROWS if total.device.type == "cpu" else len(total)
    for total_block, rows in zip(total.split(block), left.split(block), strict=True):
        total_block.copy_(rows @ right) if is_first else total_block.add_(rows @ right)


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
