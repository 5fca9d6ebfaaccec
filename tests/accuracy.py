"""Accuracy check for optimized versions of an operation."""

import torch
from torch import Tensor


def assert_as_accurate(name: str, actual: Tensor, reference: Tensor, expected: Tensor) -> None:
    """Assert that the maximum error of a result is at most twice that of the PyTorch reference in the same dtype.

    An error of one rounding unit of the largest expected value is always allowed.

    Args:
        name: Name of the compared tensor, for the message.
        actual: Result to check.
        reference: Result of the PyTorch reference, with the dtype and shape of actual.
        expected: Result of the PyTorch reference in fp64.

    Raises:
        AssertionError: If the error is too large, actual is not finite, or dtypes or shapes do not match.
    """
    assert expected.dtype == torch.float64, f"{name}: expected must be float64, got {expected.dtype}"
    assert actual.dtype == reference.dtype, f"{name}: dtype must be {reference.dtype}, got {actual.dtype}"
    assert actual.shape == reference.shape == expected.shape, (
        f"{name}: {actual.shape}, {reference.shape}, {expected.shape}"
    )
    assert actual.isfinite().all(), f"{name}: result must be finite"
    error = float((actual.double() - expected).abs().max())
    max_error = 2 * float((reference.double() - expected).abs().max())
    rounding_unit = torch.finfo(actual.dtype).eps * float(expected.abs().max())
    assert error <= max(max_error, rounding_unit), (
        f"{name}: error {error:.3g}, allowed {max(max_error, rounding_unit):.3g}"
    )
