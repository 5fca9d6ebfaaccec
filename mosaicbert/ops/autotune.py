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


class Tiling(NamedTuple):
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


_TOO_LARGE = (OutOfResources, PTXASError)
_chosen: dict[tuple[str, ...], Tiling] = {}


def choose_tiling(
    kernel: object, case: Sequence[object], candidates: Sequence[Tiling], launch: Callable[[Tiling], object]
) -> Tiling:
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
    key = (*key, *map(str, case))
    if key not in _chosen:
        recalled = _recall(key, candidates)
        if recalled is None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]  # a graph that is being captured cannot be waited for
        _chosen[key] = recalled or _remember(key, _fastest(name, candidates, launch), candidates)
    return _chosen[key]


def launch_fitting(candidates: Sequence[Tiling], launch: Callable[[Tiling], object]) -> None:
    """Launches with the first tiling that fits this GPU, which may be smaller than those the list was made for."""
    for tiling in candidates[:-1]:
        try:
            launch(tiling)
        except _TOO_LARGE:
            continue
        return
    launch(candidates[-1])


def _fastest(name: str, candidates: Sequence[Tiling], launch: Callable[[Tiling], object]) -> Tiling:
    times: dict[Tiling, Any] = {}
    for tiling in candidates:
        try:
            times[tiling] = do_bench(functools.partial(launch, tiling), warmup=5, rep=20, return_mode="median")
        except _TOO_LARGE:
            continue  # a smaller GPU
    if not times:
        raise RuntimeError(f"{name}: none of {len(candidates)} tilings fits this GPU.")
    return min(times, key=times.__getitem__)


def _file(key: tuple[str, ...]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mosaicbert" / "tilings" / (re.sub(r"[^\w.-]+", "-", "_".join(key)) + ".json")


def _recall(key: tuple[str, ...], candidates: Sequence[Tiling]) -> Tiling | None:
    try:
        tiling = Tiling(**json.loads(_file(key).read_text()))
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: a user without a home
        return None
    return tiling if tiling in candidates else None


def _remember(key: tuple[str, ...], tiling: Tiling, candidates: Sequence[Tiling]) -> Tiling:
    """Keeps a choice, unless another process was faster: then it is the other's, so that all of them agree."""
    try:
        path = _file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            written.write_text(json.dumps(tiling._asdict()))
            try:
                os.link(written, path)
            except FileExistsError:
                other = _recall(key, candidates)
                if other is not None:
                    return other
                os.replace(written, path)  # it names a tiling of another version, or is damaged
    except (OSError, RuntimeError):
        return tiling  # nowhere to keep it: this process still goes on with one choice
    return tiling
