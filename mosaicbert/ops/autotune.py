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
from triton.runtime.errors import OutOfResources, PTXASError
from triton.runtime.interpreter import InterpretedFunction
from triton.testing import do_bench


class TileConfig(NamedTuple):
    """Tile sizes and launch options of one kernel launch.

    Attributes:
        rows: Rows of a score tile, the positions that a program keeps in registers.
        columns: Columns of a score tile, the positions that a program loads per step.
        num_warps: Warps per program.
        num_stages: Stages of Triton's software pipelining, the number of loads in flight.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int


_RESOURCE_ERRORS = (OutOfResources, PTXASError)
_selected: dict[tuple[str, ...], TileConfig] = {}


def choose_tile_config(
    kernel: object,
    launch_key: Sequence[object],
    candidates: Sequence[TileConfig],
    launch: Callable[[TileConfig], object],
) -> TileConfig:
    """Return the fastest tile configuration for this GPU, from the cache or by measuring all candidates.

    The first candidate is returned without a measurement in Triton's interpreter, during the capture of a CUDA graph,
    or if it is the only one.

    Args:
        kernel: Function decorated with `triton.jit`.
        launch_key: Properties that the choice depends on, such as sizes and dtype.
        candidates: Tile configurations to compare, preferred one first.
        launch: Function that runs the kernel on the current data with a given configuration. It is called many times.

    Returns:
        One of the candidates.

    Raises:
        RuntimeError: If every candidate exceeds the resources of this GPU.
    """
    if isinstance(kernel, InterpretedFunction) or len(candidates) == 1:
        return candidates[0]
    name = str(getattr(kernel, "__name__", "kernel")).strip("_")
    key = (torch.cuda.get_device_name() if torch.cuda.is_available() else "gpu", triton.__version__, name)
    key = (*key, *map(str, launch_key))
    if key not in _selected:
        cached = _read_cached(key, candidates)
        if cached is None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]  # synchronizing is not allowed during graph capture
        _selected[key] = cached or _write_cached(key, _measure_fastest(name, candidates, launch), candidates)
    return _selected[key]


def launch_first_fitting(candidates: Sequence[TileConfig], launch: Callable[[TileConfig], object]) -> None:
    """Launch a kernel with the first tile configuration that fits the resources of this GPU.

    Args:
        candidates: Tile configurations, preferred one first. An error of the last one is raised.
        launch: Function that runs the kernel with a given configuration.

    Raises:
        triton.runtime.errors.OutOfResources: If the last candidate exceeds the shared memory or registers of this GPU.
        triton.runtime.errors.PTXASError: If the assembler rejects the last candidate.
    """
    for config in candidates[:-1]:
        try:
            launch(config)
        except _RESOURCE_ERRORS:
            continue
        return
    launch(candidates[-1])


def _measure_fastest(name: str, candidates: Sequence[TileConfig], launch: Callable[[TileConfig], object]) -> TileConfig:
    times: dict[TileConfig, Any] = {}
    for config in candidates:
        try:
            times[config] = do_bench(functools.partial(launch, config), warmup=5, rep=20, return_mode="median")
        except _RESOURCE_ERRORS:
            continue  # this GPU has fewer resources than the configuration requires
    if not times:
        raise RuntimeError(
            f"`{name}` tile configurations must fit this GPU, got {len(candidates)} that exceed its resources. "
            "Use `attn_implementation='sdpa'`."
        )
    return min(times, key=times.__getitem__)


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
