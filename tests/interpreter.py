"""Makes Triton's interpreter compute with bf16 as a GPU does.

The interpreter (3.3 to 3.9) holds bf16 as bits in uint16. It cuts fp32 off where a GPU rounds to the nearest even, and
its matrix product multiplies the bits as if they were integers.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast: Any = InterpreterBuilder.cast_impl
_dot: Any = InterpreterBuilder.create_dot


def patch_bf16_arithmetic() -> None:
    """Replaces the interpreter's cast and product, for this process."""
    builder: Any = InterpreterBuilder
    builder.cast_impl, builder.create_dot = _rounding_cast, _bf16_dot


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
