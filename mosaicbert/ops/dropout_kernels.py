"""Dropout for use inside other Triton kernels, computed from a seed and positions without a mask in memory."""

# Triton kernels cannot be type-checked.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dropout_keep_mask(seed, rows, groups, threshold):
    """Compute the mask of elements that dropout keeps.

    Philox generates four 32-bit numbers from a 128-bit counter. The counter is (group, row), where a group is four
    adjacent columns. No product of sizes can overflow, one evaluation serves four elements, and the mask does not
    depend on the tile size of the kernel.

    Args:
        seed: int64, dropout seed.
        rows: int32, row indices.
        groups: (..., G) int32, column indices divided by 4. They broadcast with rows.
        threshold: int, number of the 2^32 random values that drop an element.

    Returns:
        (..., 4G) bool, True for kept elements.

    Source: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    zeros = (rows + groups) * 0
    first, second, third, fourth = tl.philox(seed, groups + zeros, rows + zeros, zeros, zeros)
    random_bits = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    return random_bits >= threshold.to(tl.uint32)


def dropout_arguments(dropout_p: float, seed: Tensor | None) -> tuple[int, float]:
    """Compute the dropout arguments of a kernel.

    Args:
        dropout_p: Dropout probability in [0, 1).
        seed: () int64 dropout seed, or None for no dropout.

    Returns:
        The threshold for `dropout_keep_mask`, and the factor 1 / (1 - dropout_p) for kept elements.
    """
    assert 0 <= dropout_p < 1, f"`dropout_p` must be in [0, 1), got {dropout_p}"
    if seed is None:
        return 0, 1.0
    return min(round(dropout_p * 2**32), 2**32 - 1), 1 / (1 - dropout_p)
