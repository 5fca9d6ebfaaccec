"""The one rule by which a fast version of an operation is judged."""

import torch
from torch import Tensor


def assert_as_accurate(name: str, ours: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Fails if `ours` is further from the truth than twice the error of the plain version in the same dtype.

    Args:
        name: what is compared, for the message.
        ours: the result to judge.
        eager: the plain PyTorch version's result, of ours' dtype and shape.
        truth: the definition's result in fp64.
    """
    assert truth.dtype == torch.float64, f"{name}: the truth is {truth.dtype}, not fp64"
    assert ours.dtype == eager.dtype, f"{name}: ours is {ours.dtype}, eager {eager.dtype}"
    assert ours.shape == eager.shape == truth.shape, f"{name}: {ours.shape}, {eager.shape}, {truth.shape}"
    assert ours.isfinite().all(), f"{name}: ours is not finite"
    error = float((ours.double() - truth).abs().max())
    allowed = 2 * float((eager.double() - truth).abs().max())
    rounding_unit = torch.finfo(ours.dtype).eps * float(truth.abs().max())
    assert error <= max(allowed, rounding_unit), f"{name}: error {error:.3g}, allowed {max(allowed, rounding_unit):.3g}"
