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
    name = str(getattr(kernel, "__name__")).strip("_")  # noqa: B009
    key = (torch.cuda.get_device_name() if torch.cuda.is_available() else "gpu", triton.__version__, name)
    key = (*key, *map(str, case))
    if key not in _chosen:
        _chosen[key] = _recall(key, candidates) or _remember(key, _fastest(name, candidates, launch))
    return _chosen[key]


def _fastest(name: str, candidates: Sequence[Tiling], launch: Callable[[Tiling], object]) -> Tiling:
    times: dict[Tiling, Any] = {}
    for tiling in candidates:
        try:
            times[tiling] = do_bench(functools.partial(launch, tiling), warmup=5, rep=20, return_mode="median")
        except (OutOfResources, PTXASError):
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
    except (OSError, ValueError, TypeError):
        return None
    return tiling if tiling in candidates else None


def _remember(key: tuple[str, ...], tiling: Tiling) -> Tiling:
    """Keeps a choice, unless another process was faster: then it is the other's, so that all of them agree."""
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            json.dump(tiling._asdict(), file)
            file.flush()
            os.link(file.name, path)
    except FileExistsError:
        return _recall(key, [tiling]) or tiling
    except OSError:
        return tiling  # nowhere to keep it: this process still goes on with one choice
    return tiling
