"""Which tiles a Triton kernel works in: the fastest of a short list, measured once per machine and then remembered.

Triton's own autotuner measures anew in every process, and the winner of a close race changes. Other tiles add numbers
up in another order, so a resumed run would not have the bits of the uninterrupted one.
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
    """How one launch of a kernel is cut up.

    Attributes:
        rows: of the tile that a program keeps.
        columns: of the tile that it walks over.
        num_warps: per program.
        num_stages: loads in flight, Triton's software pipelining.
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
    """The candidate that is fastest on this GPU, by measurement or from memory.

    Args:
        kernel: a function under `triton.jit`.
        case: what the choice depends on: sizes, dtype.
        candidates: the first serves where nothing can be measured, in Triton's interpreter.
        launch: runs the kernel on the data at hand; may be called many times.

    Raises:
        RuntimeError: no candidate fits this GPU.
    """
    if isinstance(kernel, InterpretedFunction) or len(candidates) == 1:
        return candidates[0]
    name = str(getattr(kernel, "__name__", "kernel")).strip("_")
    key = (torch.cuda.get_device_name() if torch.cuda.is_available() else "gpu", triton.__version__, name)
    key = (*key, *map(str, launch_key))
    if key not in _selected:
        cached = _read_cached(key, candidates)
        if cached is None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]  # a graph that is being captured cannot be waited for
        _selected[key] = cached or _write_cached(key, _measure_fastest(name, candidates, launch), candidates)
    return _selected[key]


def launch_first_fitting(candidates: Sequence[TileConfig], launch: Callable[[TileConfig], object]) -> None:
    """Launches with the first tiling that fits this GPU, which may be smaller than those the list was made for."""
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
            continue  # a smaller GPU
    if not times:
        raise RuntimeError(f"{name}: none of {len(candidates)} tilings fits this GPU.")
    return min(times, key=times.__getitem__)


def _cache_path(key: tuple[str, ...]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mosaicbert" / "tile_configs" / (re.sub(r"[^\w.-]+", "-", "_".join(key)) + ".json")


def _read_cached(key: tuple[str, ...], candidates: Sequence[TileConfig]) -> TileConfig | None:
    try:
        config = TileConfig(**json.loads(_cache_path(key).read_text()))
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: a user without a home
        return None
    return config if config in candidates else None


def _write_cached(key: tuple[str, ...], config: TileConfig, candidates: Sequence[TileConfig]) -> TileConfig:
    """Keeps a choice, unless another process was faster: then it is the other's, so that all of them agree."""
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
                os.replace(staged_path, path)  # it names a tiling of another version, or is damaged
    except (OSError, RuntimeError):
        return config  # nowhere to keep it: this process still goes on with one choice
    return config
