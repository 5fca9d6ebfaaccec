"""Times versions of one operation against each other, and keeps what was measured.

Each version becomes one line of docs/benchmarks/<name>.jsonl. `ratio` is its median time over the first version's.
"""

import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[2]
_MIN_REPEATS = 5
_MAX_REPEATS = 100


def record(
    name: str,
    what: str,
    versions: Mapping[str, Callable[[], object]],
    *,
    shape: Mapping[str, int],
    dtype: torch.dtype = torch.int64,
    device: str = "cpu",
    seconds: float = 2.0,
    units: Mapping[str, float] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Times every version in turn, over and over, so that whatever else the machine does meets all of them.

    Args:
        name: of the operation and so of the file.
        what: is measured.
        versions: name -> one call of it; the first is what the others are compared with.
        shape: sizes of the input.
        dtype: of the input.
        device: where the versions run, as in torch.device.
        seconds: to spend, more or less.
        units: how many of what a speed counts, tokens or bytes, one call of each version gets done.
        facts: more to keep of each version.
    """
    for call in versions.values():
        call()  # the first call allocates, and chooses kernels
    times: dict[str, list[float]] = {by: [] for by in versions}
    end = time.perf_counter() + seconds
    for repeat in range(_MAX_REPEATS):
        if repeat >= _MIN_REPEATS and time.perf_counter() > end:
            break
        for by, call in versions.items():
            times[by].append(_microseconds(call, device))
    first = statistics.median(next(iter(times.values())))
    for by, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        line = {
            "what": what,
            "by": by,
            "shape": dict(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "median_us": round(median, 1),
            "iqr_us": round(upper - lower, 1),
            "ratio": round(median / first, 3),
            **({} if units is None else {"per_second": round(units[by] / median * 1e6)}),
            **({} if facts is None else facts[by]),
        }
        write_lines(name, [line], device)
        speed = f", {line['per_second']:,} per second" if "per_second" in line else ""
        sizes = " ".join(f"{key}={value}" for key, value in shape.items())
        measured = f"{median / 1000:.2f} ms, {line['ratio']:.2f}{speed}"
        print(f"{what}: {by}: {sizes} {line['dtype']}: {measured}", flush=True)


def write_lines(name: str, lines: Iterable[Mapping[str, Any]], device: str = "cpu") -> None:
    """Adds lines to docs/benchmarks/<name>.jsonl, each with the machine, the versions and the commit."""
    folder = Path(os.environ.get("BENCHMARKS_FOLDER", _ROOT / "docs" / "benchmarks"))
    with (folder / f"{name}.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps({**line, **_environment(device)}) + "\n")


def _microseconds(call: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return 1e6 * (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@functools.cache
def _environment(device: str) -> dict[str, Any]:
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": os.cpu_count() if on_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    # What was measured before does not make this measurement's code another.
    changed = git("status", "--porcelain", "--", ".", ":!docs/benchmarks")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
