"""Patch for the arithmetic of Triton's interpreter.

The interpreter of Triton 3.3 to 3.9 stores bf16 as bits in uint16. It truncates fp32 values where a GPU rounds to
nearest even, and its matrix product multiplies the bits as integers. It computes fp32 products of the precision tf32x3
in fp32, where a GPU sums three products of TF32 numbers.
"""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast: Any = InterpreterBuilder.cast_impl
_dot: Any = InterpreterBuilder.create_dot


def patch_arithmetic() -> None:
    """Replace the cast and the matrix product of the interpreter with those of a GPU, in this process."""
    builder: Any = InterpreterBuilder
    builder.cast_impl, builder.create_dot = _rounding_cast, _gpu_dot


def cache_builtins() -> None:
    """Cache the builtins that the interpreter finds in each module and class, in this process."""
    patched: Any = interpreter
    patched._patch_builtin = _patch_builtin


@cache
def _find_builtins(package: Any) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, *scope: Any) -> None:
    patched: Any = interpreter
    for name, member in _find_builtins(package):
        patched._patch_attr(package, name, member, builder, *scope)


def _rounding_cast(builder: Any, source: Any, target: Any) -> Any:
    types = (source.dtype.scalar, target.scalar)
    if types == (tl.bfloat16, tl.float32):
        return _to_fp32(source)
    if types == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.atleast_1d(source.data)).to(torch.bfloat16).view(torch.int16).numpy()
        return TensorHandle(rounded.view(np.uint16).reshape(source.data.shape), tl.bfloat16)
    return _cast(builder, source, target)


def _gpu_dot(builder: Any, left: Any, right: Any, total: Any, precision: Any, *arguments: Any) -> Any:
    if left.dtype.scalar != tl.float32 or precision != INPUT_PRECISION.TF32x3:
        return _dot(builder, _to_fp32(left), _to_fp32(right), total, precision, *arguments)
    (left_upper, left_lower), (right_upper, right_lower) = _split_tf32(left), _split_tf32(right)
    for factors in ((left_lower, right_upper), (left_upper, right_lower), (left_upper, right_upper)):
        total = _dot(builder, *factors, total, precision, *arguments)
    return total


def _split_tf32(handle: Any) -> tuple[Any, Any]:
    upper = _round_to_tf32(handle.data)
    return TensorHandle(upper, tl.float32), TensorHandle(_round_to_tf32(handle.data - upper), tl.float32)


def _round_to_tf32(values: Any) -> Any:
    """Round fp32 to the 10 explicit mantissa bits of TF32, to nearest with ties away from zero, as cvt.rna does."""
    return ((values.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def _to_fp32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
