"""Patch for the bf16 arithmetic of Triton's interpreter.

The interpreter of Triton 3.3 to 3.9 stores bf16 as bits in uint16. It truncates fp32 values where a GPU rounds to
nearest even, and its matrix product multiplies the bits as integers.
"""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast: Any = InterpreterBuilder.cast_impl
_dot: Any = InterpreterBuilder.create_dot


def patch_bf16_arithmetic() -> None:
    """Replace the cast and the matrix product of the interpreter with those of a GPU, in this process."""
    builder: Any = InterpreterBuilder
    builder.cast_impl, builder.create_dot = _rounding_cast, _bf16_dot


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


def _bf16_dot(builder: Any, left: Any, right: Any, *arguments: Any) -> Any:
    return _dot(builder, _to_fp32(left), _to_fp32(right), *arguments)


def _to_fp32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
