"""Benchmark harness: interleaved timing of several versions of one operation.

Each version adds one line to docs/benchmarks/<name>.jsonl. `ratio` is its median time divided by that of the first
version that ran. A version that fails adds a line with its error message, and the other versions continue.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mosaicbert.bench.records import append_records, median_and_iqr
from mosaicbert.bench.timing import describe_error

_ROOT = Path(__file__).parents[2]
_MIN_REPEATS = 5
_MAX_REPEATS = 100
_FLUSH_BYTES = 512 * 2**20  # more than the L2 cache of any GPU
_NUM_FLUSHES = 4


@dataclass(frozen=True)
class Timing:
    """Timing of one call in microseconds.

    Attributes:
        median: Median in microseconds.
        iqr: Interquartile range in microseconds.
    """

    median: float
    iqr: float


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
    extra_fields: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Time versions with `measure`, and print and record one line per version.

    Args:
        name: Name of the operation, and of the file in docs/benchmarks.
        what: Description of the measurement.
        versions: Function of one call by name of the version. The first version is the baseline.
        shape: Sizes of the input by name.
        dtype: dtype of the input.
        device: Device of the versions, "cpu" or "cuda".
        seconds: Approximate total time in seconds.
        units: Number of tokens or bytes that one call of each version processes, or None for no rate.
        extra_fields: Additional fields of the record by version, or None.
    """
    timings, errors = measure(versions, device, seconds)
    first = timings[next(iter(timings))].median if timings else 0.0
    for by in versions:
        line: dict[str, Any] = {"what": what, "by": by, "shape": dict(shape), "dtype": dtype_name(dtype)}
        if by in timings:
            timing = timings[by]
            line |= {"median_us": round(timing.median, 1), "iqr_us": round(timing.iqr, 1)}
            line["ratio"] = round(timing.median / first, 3)
            line |= {} if units is None else {"per_second": round(units[by] / timing.median * 1e6)}
        else:
            line["error"] = errors[by]
        write_lines(name, [line | ({} if extra_fields is None else dict(extra_fields[by]))], device)
        print_record(line)


def measure(
    versions: Mapping[str, Callable[[], object]], device: str = "cpu", seconds: float = 2.0
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time all versions in turn in repeated rounds, so that other load on the machine affects them equally.

    Args:
        versions: Function of one call by name of the version.
        device: Device of the versions, "cpu" or "cuda".
        seconds: Approximate total time in seconds. At least 5 and at most 100 rounds are run.

    Returns:
        Timing of each version that ran, and error message of each version that failed.
    """
    errors: dict[str, str] = {}
    for by, call in versions.items():
        try:
            call()  # the first call allocates memory and selects kernels
            _wait(device)
        except Exception as error:  # any failure of a version is its result
            errors[by] = describe_error(error)
    times: dict[str, list[float]] = {by: [] for by in versions if by not in errors}
    end = time.perf_counter() + seconds
    for repeat in range(_MAX_REPEATS):
        if repeat >= _MIN_REPEATS and time.perf_counter() > end:
            break
        for by in times:
            times[by].append(_microseconds(versions[by], device))
    timings: dict[str, Timing] = {}
    for by, values in times.items():
        timings[by] = Timing(*median_and_iqr(values))
    return timings, errors


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def print_record(line: Mapping[str, Any]) -> None:
    """Print a record in readable form."""
    sizes = " ".join(f"{key}={value}" for key, value in line["shape"].items())
    print(f"{line['what']}: {line['by']}: {sizes} {line['dtype']}: {_result(line)}", flush=True)


def _result(line: Mapping[str, Any]) -> str:
    if "error" in line:
        return line["error"]
    formats = {"ratio": ".2f", "per_second": ",", "tflops": ".1f", "tokens_per_second": ",", "mfu": ".1%"}
    formatted = [
        f"{line[key]:{format_spec}} {key}" for key, format_spec in formats.items() if line.get(key) is not None
    ]
    return ", ".join([f"{line['median_us'] / 1000:.2f} ms", *formatted])


def write_lines(name: str, lines: Iterable[Mapping[str, Any]], device: str = "cpu") -> None:
    """Append records to docs/benchmarks/<name>.jsonl, with hardware, library versions, commit and date.

    The variable BENCHMARKS_FOLDER selects another folder.
    """
    folder = Path(os.environ.get("BENCHMARKS_FOLDER", _ROOT / "docs" / "benchmarks"))
    append_records(folder / f"{name}.jsonl", lines, device)


def _microseconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        return _gpu_microseconds(call)
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)


def _gpu_microseconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(
        _NUM_FLUSHES
    ):  # flushes the L2 cache, and keeps the GPU busy while the kernels of the call are launched
        _flush_buffer().zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


@functools.cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
