"""Autotuning of Triton tile configurations, cached on disk.

The fastest configuration of a short list is measured once per GPU model, Triton version and problem. Triton's own
autotuner measures again in every process and may select a different configuration when two are about equally fast.
Different tile sizes sum in a different order, so a resumed run would not be bit-identical to an uninterrupted one.
"""

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction
from triton.testing import do_bench


class TileConfig(NamedTuple):
    """Tile sizes and launch options of one kernel launch.

    Attributes:
        rows: Rows of a score tile, the positions that a program keeps in registers.
        columns: Columns of a score tile, the positions that a program loads per step.
        num_warps: Warps per program.
        num_stages: Stages of Triton's software pipelining, the number of loads in flight.
        max_registers: Maximum number of registers per thread, or None for the choice of the assembler.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


# Bytes per thread that the compiler may store in local memory, for example instead of registers. Every access to them
# costs more than an arithmetic instruction.
MAX_STACK_BYTES = 128
_HOPPER = 90  # architecture of the only GPUs with warp-group matrix instructions (wgmma)
_selected: dict[tuple[str, ...], TileConfig] = {}  # fastest configurations
_working: dict[tuple[str, ...], TileConfig] = {}  # first working configurations of small launches


def choose_tile_config(
    kernel: object,
    launch_key: Sequence[object],
    candidates: Sequence[TileConfig],
    launch: Callable[[TileConfig], object],
) -> TileConfig:
    """Return the fastest tile configuration for this GPU, from the cache or by measuring all candidates.

    A candidate that does not compile or run on this GPU is skipped. A candidate with a `find_defect` is measured only
    if all others have one too. The first candidate is returned without a measurement in Triton's interpreter, during
    the capture of a CUDA graph, or if it is the only one.

    Args:
        kernel: Function decorated with `triton.jit`.
        launch_key: Properties that the choice depends on, such as sizes and dtype.
        candidates: Tile configurations to compare, preferred one first.
        launch: Function that runs the kernel on the current data with a given configuration and returns the compiled
            kernel. It is called many times.

    Returns:
        One of the candidates.

    Raises:
        RuntimeError: If no candidate compiles and runs on this GPU.
    """
    if isinstance(kernel, InterpretedFunction) or len(candidates) == 1:
        return candidates[0]
    key = _cache_key(kernel, launch_key)
    if key not in _selected:
        cached = _read_cached(key, candidates)
        if cached is None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]  # synchronizing is not allowed during graph capture
        _selected[key] = cached or _write_cached(key, _measure_fastest(key, candidates, launch), candidates)
    return _selected[key]


def launch_first_working(
    kernel: object,
    launch_key: Sequence[object],
    candidates: Sequence[TileConfig],
    launch: Callable[[TileConfig], Any],
) -> None:
    """Launch a kernel with the first tile configuration that compiles and runs on this GPU.

    Args:
        kernel: Function decorated with `triton.jit`.
        launch_key: Properties that the compilation depends on, such as sizes and dtype.
        candidates: Tile configurations, preferred one first.
        launch: Function that runs the kernel with a given configuration.

    Raises:
        RuntimeError: If no candidate compiles and runs on this GPU.
    """
    if isinstance(kernel, InterpretedFunction):
        launch(candidates[0])
        return
    key = _cache_key(kernel, launch_key)
    if key in _working:  # a failed compilation takes seconds and is not repeated
        launch(_working[key])
        return
    failures: list[str] = []
    for config in candidates:
        try:
            launch(config)
        except Exception as error:  # compilers, assemblers and drivers raise many types
            failures.append(_describe_failure(config, error))
        else:
            _working[key] = config
            return
    raise _no_working_config(key, failures)


def find_defect(stack_bytes: int, ptx: str, architecture: int) -> str | None:
    """Return the reason why a compiled kernel cannot be fast, or None if there is none.

    Args:
        stack_bytes: Local memory per thread, mostly spilled registers.
        ptx: PTX code, or an empty string on GPUs of other manufacturers.
        architecture: Compute capability times 10.
    """
    if stack_bytes > MAX_STACK_BYTES:
        return f"uses {stack_bytes} bytes of local memory per thread"
    if architecture == _HOPPER and "mma.sync" in ptx and "wgmma" not in ptx:
        return "does not use the warp-group matrix instructions of Hopper"
    return None


def _find_defect(compiled: Any) -> str | None:
    num_words: int = compiled.n_spills  # known once the kernel is loaded
    return find_defect(4 * num_words, compiled.asm.get("ptx", ""), compiled.metadata.target.arch)


def _cache_key(kernel: object, launch_key: Sequence[object]) -> tuple[str, ...]:
    name = str(getattr(kernel, "__name__", "kernel")).strip("_")
    device_index = torch.cuda.current_device() if torch.cuda.is_available() else None
    return (_gpu_name(device_index), triton.__version__, name, *map(str, launch_key))


@functools.cache  # a query of the driver at every launch takes microseconds
def _gpu_name(device_index: int | None) -> str:
    return "gpu" if device_index is None else torch.cuda.get_device_name(device_index)


def _measure_fastest(
    key: tuple[str, ...], candidates: Sequence[TileConfig], launch: Callable[[TileConfig], Any]
) -> TileConfig:
    defects: dict[TileConfig, str | None] = {}
    times: dict[TileConfig, Any] = {}
    failures: list[str] = []
    for config in candidates:
        try:
            defects[config] = _find_defect(launch(config))
        except Exception as error:  # compilers, assemblers and drivers raise many types
            failures.append(_describe_failure(config, error))
    for config in [config for config, defect in defects.items() if defect is None] or defects:
        try:
            times[config] = do_bench(functools.partial(launch, config), warmup=5, rep=20, return_mode="median")
        except Exception as error:
            failures.append(_describe_failure(config, error))
    if not times:
        raise _no_working_config(key, failures)
    return min(times, key=times.__getitem__)


def _describe_failure(config: TileConfig, error: Exception) -> str:
    return f"{tuple(config)}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"


def _no_working_config(key: Sequence[str], failures: Sequence[str]) -> RuntimeError:
    return RuntimeError(
        f"At least one tile configuration of `{key[2]}` must work on this GPU, got {len(failures)} that fail "
        f"({'; '.join(failures)}). Use `attn_implementation='sdpa'`."
    )


def _cache_path(key: tuple[str, ...]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mosaicbert" / "tile_configs" / (re.sub(r"[^\w.-]+", "-", "_".join(key)) + ".json")


def _read_cached(key: tuple[str, ...], candidates: Sequence[TileConfig]) -> TileConfig | None:
    try:
        config = TileConfig(**json.loads(_cache_path(key).read_text()))
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: the user has no home directory
        return None
    return config if config in candidates else None


def _write_cached(key: tuple[str, ...], config: TileConfig, candidates: Sequence[TileConfig]) -> TileConfig:
    """Write a choice to the cache and return it, or return the choice that another process has written first."""
    try:
        path = _cache_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            staged_path = Path(folder, path.name)
            staged_path.write_text(json.dumps(config._asdict()))
            try:
                os.link(staged_path, path)
            except FileExistsError:
                cached = _read_cached(key, candidates)
                if cached is not None:
                    return cached
                os.replace(staged_path, path)  # the file is corrupted or names a configuration of a different version
    except (OSError, RuntimeError):
        return config  # without a writable cache, only this process uses the choice
    return config
