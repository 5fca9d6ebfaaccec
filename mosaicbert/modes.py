"""Modes of execution: autocast, tracing and transforms of functions."""

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

_WITHOUT_AUTOCAST = "meta"  # torch.compile does not trace `torch.amp.is_autocast_available`
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED")  # of the CPU, CUDA and cuBLAS
_Result = TypeVar("_Result")


def is_traced(*tensors: Tensor) -> bool:
    """Return True while a function is traced, exported or transformed, or if a tensor has no values.

    Data-dependent code and custom gradients are then not possible. This covers torch.compile, torch.export,
    torch.jit.trace, the ONNX exporters, functorch transforms such as vmap, FakeTensorMode and the meta device.

    Args:
        *tensors: Inputs of the function.
    """
    jit: Any = torch.jit
    if torch.compiler.is_compiling() or jit.is_tracing():
        return True
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 - not in the type stubs
    if functorch.maybe_current_level() is not None or any(tensor.is_meta for tensor in tensors):
        return True
    return detect_fake_mode(tensors) is not None


def autocast_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the autocast dtype of a device, or the dtype of the inputs if autocast is not enabled.

    Args:
        device_type: Device type as in torch.device, for example "cuda".
        dtype: dtype of the inputs of an operation.
    """
    if device_type != _WITHOUT_AUTOCAST and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return dtype


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context manager that disables autocast on a device.

    Args:
        device_type: Device type as in torch.device, for example "cuda".
    """
    if device_type == _WITHOUT_AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is a lack of memory, which a later call may not have.

    Args:
        error: Error of an operation.
    """
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def run_without_modes(function: Callable[[], _Result]) -> _Result:
    """Call a function outside of the caller's modes, and return its result.

    Autocast, inference mode, FakeTensorMode, `with torch.device(...)`, the default device and functorch transforms are
    states of a thread, so the function runs in a new one. It uses the caller's current GPU.

    Args:
        function: Function to call. Its exception is raised in the caller.
    """
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
