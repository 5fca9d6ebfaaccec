"""Device of a process: precision, peak FLOP/s, CPU threads. This module does not import Composer."""

import time

import torch

from mosaicbert.config import ConfigError
from mosaicbert.estimate import ACCELERATORS
from mosaicbert.processes import count_cpus

_PEAK_SECONDS = 0.5  # duration of the measurement; the fastest product counts, since other processes may run
_AS_CONFIGURED = "set in the recipe"

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_precision(precision: str, key: str = "train.precision") -> tuple[torch.dtype, str]:
    """Choose the dtype of matrix products.

    Args:
        precision: "bf16", "fp32" or "auto".
        key: Recipe key of the value, for the error message.

    Returns:
        The dtype, and the reason in words.

    Raises:
        ConfigError: If bf16 is set and the GPU does not support it.
    """
    if precision == "fp32":
        return torch.float32, _AS_CONFIGURED
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, _AS_CONFIGURED if precision == "bf16" else "the GPU supports bf16"
        if precision == "bf16":
            name = torch.cuda.get_device_name()
            raise ConfigError(
                f"`{key}` must be fp32 on a GPU without bf16 support, got bf16 on {name}. Set `{key}=fp32`."
            )
        return torch.float32, "the GPU does not support bf16"
    if precision == "bf16":
        return torch.bfloat16, _AS_CONFIGURED
    # Without matrix units (AMX), CPUs multiply bf16 no faster than fp32.
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU has AMX"
    return torch.float32, "this CPU does not have AMX, so bf16 would not be faster"


def peak_flops(dtype: torch.dtype) -> tuple[float, str]:
    """Return the peak of one process's device in FLOP/s, and the source of the number.

    GPUs: dense bf16 peak of the data sheet, for any dtype. CPUs: a large matrix product, measured when called.

    Args:
        dtype: dtype of the matrix product to measure.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for accelerator in ACCELERATORS:
            if accelerator.name in name:
                return accelerator.peak_flops, f"data sheet of {accelerator.name}"
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return _measure_matmul(device_type, dtype), "measured with a 1024 x 1024 x 1024 matrix product"


def _measure_matmul(device_type: str, dtype: torch.dtype) -> float:
    size = 1024
    left, right = (torch.randn(size, size, device=device_type, dtype=dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # synchronizes with the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def limit_cpu_threads(local_world_size: int) -> None:
    """Divide the CPUs among the processes of this machine. More threads than CPUs would slow all of them down.

    Args:
        local_world_size: Number of processes on this machine.
    """
    torch.set_num_threads(max(1, count_cpus() // local_world_size))
