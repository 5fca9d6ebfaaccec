"""The one rule by which a fast version of an operation is judged."""

import torch
from torch import Tensor


def assert_as_accurate(name: str, actual: Tensor, reference: Tensor, expected: Tensor) -> None:
    """Fails if `ours` is further from the truth than twice the error of the plain version in the same dtype.

    Args:
        name: what is compared, for the message.
        ours: the result to judge.
        eager: the plain PyTorch version's result, of ours' dtype and shape.
        truth: the definition's result in fp64.
    """
    assert expected.dtype == torch.float64, f"{name}: the truth is {expected.dtype}, not fp64"
    assert actual.dtype == reference.dtype, f"{name}: ours is {actual.dtype}, eager {reference.dtype}"
    assert actual.shape == reference.shape == expected.shape, (
        f"{name}: {actual.shape}, {reference.shape}, {expected.shape}"
    )
    assert actual.isfinite().all(), f"{name}: ours is not finite"
    error = float((actual.double() - expected).abs().max())
    max_reference_error = 2 * float((reference.double() - expected).abs().max())
    rounding_unit = torch.finfo(actual.dtype).eps * float(expected.abs().max())
    assert error <= max(max_reference_error, rounding_unit), (
        f"{name}: error {error:.3g}, allowed {max(max_reference_error, rounding_unit):.3g}"
    )
