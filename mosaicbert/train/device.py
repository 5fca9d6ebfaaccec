"""The device that a process trains on: its precision, its peak, its threads and its memory."""

import gc
import os
import time
from collections.abc import Callable

import torch
from torch.distributed.checkpoint import state_dict

from mosaicbert.config import ConfigError
from mosaicbert.estimate import ACCELERATORS
from mosaicbert.train.composer import release_engine

_PEAK_SECONDS = 0.5  # the best product in this time, so that what else the machine does counts little


def choose_precision(asked: str, key: str = "train.precision") -> tuple[torch.dtype, str]:
    """The dtype of matrix products, and why.

    Args:
        asked: "bf16", "fp32" or "auto".
        key: of the recipe that asks.

    Raises:
        ConfigError: bf16 is asked for on a GPU that cannot do it.
    """
    if asked == "fp32":
        return torch.float32, "as the recipe says"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "as the recipe says" if asked == "bf16" else "the GPU has bf16"
        if asked == "bf16":
            name = torch.cuda.get_device_name()
            raise ConfigError(f"{key}=bf16, but {name} has no bf16; set {key}=fp32.")
        return torch.float32, "the GPU has no bf16"
    if asked == "bf16":
        return torch.bfloat16, "as the recipe says"
    # Without matrix units (AMX), processors multiply bf16 no faster than fp32.
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this processor has AMX"
    return torch.float32, "this processor has no AMX, so bf16 would not be faster"


def peak_flops(dtype: torch.dtype) -> tuple[float, str]:
    """What one process' device can reach at most, in FLOP/s, and where the number comes from.

    GPUs: the dense bf16 peak of the data sheet, whatever the dtype. CPUs: a large matrix product, measured now.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for accelerator in ACCELERATORS:
            if accelerator.name in name:
                return accelerator.peak_flops, f"data sheet of {accelerator.name}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _measure_matmul(device, dtype), "measured, a 1024 x 1024 x 1024 matrix product"


def _measure_matmul(device: str, dtype: torch.dtype) -> float:
    size = 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def limit_cpu_threads(local_world_size: int) -> None:
    """Gives each process its share of the cores; threads of several processes on one core only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local_world_size))


def release_memory() -> None:
    """Lets go of a trainer that is over: Composer and PyTorch keep hold of its model until the process ends."""
    release_engine()
    clear_names: Callable[[], None] | None = getattr(state_dict._get_fqns, "cache_clear", None)
    if clear_names is not None:
        clear_names()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
