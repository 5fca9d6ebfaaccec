"""Records of a benchmark: JSON lines with hardware, library versions, commit and date."""

import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[2]


def median_and_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the interquartile range of at least two values."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return median, upper - lower


def append_records(path: Path, records: Iterable[Mapping[str, Any]], device_type: str) -> None:
    """Append records to a file of JSON lines, with hardware, library versions, commit and date.

    Args:
        path: Path of the file.
        records: Fields of each record.
        device_type: Device that was measured, "cpu" or "cuda".
    """
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({**record, **benchmark_environment(device_type)}) + "\n")


@functools.cache
def benchmark_environment(device_type: str) -> dict[str, Any]:
    """Return hardware, library versions, commit and date as fields of a record.

    Args:
        device_type: Device that was measured, "cpu" or "cuda".
    """
    on_gpu = device_type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "num_cores": os.cpu_count() if on_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        **({"triton": metadata.version("triton")} if on_gpu else {}),
        "transformers": metadata.version("transformers"),
        "commit": benchmark_commit(),
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def benchmark_commit() -> str:
    """Return the git commit of the code, with -dirty if files differ from it.

    Without a git repository, the variable SOURCE_COMMIT is used.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    if not (_ROOT / ".git").exists():
        return os.environ.get("SOURCE_COMMIT", "unknown")
    try:
        # New records of earlier measurements are not changes of the code.
        changed = git("status", "--porcelain", "--", ".", ":!docs/benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or rejects a folder of another user
        return os.environ.get("SOURCE_COMMIT", "unknown")
