"""Dropout inside other Triton kernels. What is kept follows from a seed and a place, so that no mask is in memory."""

# The language of kernels has no types that pyright knows.
# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dropout_keep_mask(seed, rows, groups, threshold):
    """Whether dropout keeps each element.

    Philox (Salmon et al. 2011) makes four numbers of 32 bits from a counter of 128. Here the counter is (group, row),
    and a group is four columns that stand side by side: no product of sizes can overflow, four elements cost one
    computation, and the tiles that a kernel works in do not matter.

    Args:
        seed: int64.
        rows: int32.
        groups: (..., G) int32, columns // 4, that broadcast with rows.
        threshold: of 2^32 numbers, how many drop the element.

    Returns:
        (..., 4G) bool.
    """
    zeros = (rows + groups) * 0
    first, second, third, fourth = tl.philox(seed, groups + zeros, rows + zeros, zeros, zeros)
    random_bits = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    return random_bits >= threshold.to(tl.uint32)


def dropout_arguments(dropout_p: float, seed: Tensor | None) -> tuple[int, float]:
    """A kernel's threshold, and what the kept elements are multiplied with; without a seed nothing is dropped."""
    assert 0 <= dropout_p < 1, f"dropout_p={dropout_p} is not in [0, 1)"
    if seed is None:
        return 0, 1.0
    return min(round(dropout_p * 2**32), 2**32 - 1), 1 / (1 - dropout_p)
