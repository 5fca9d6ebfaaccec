"""Profile of one call: share of matrix products, and memory."""

import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mosaicbert.bench.documents import Workload
from mosaicbert.bench.timing import PhaseClock
from mosaicbert.bench.versions import Subject

# Operators that do not call each other. Fused attention counts as matrix products, which are most of its work.
_MATRIX_OPERATORS = re.compile(
    r"aten::(_addmm_activation|addmm|baddbmm|bmm|mm|mkldnn_linear|"
    r"_scaled_dot_product_flash_attention_for_cpu(_backward)?)|mkldnn::_linear_pointwise"
)
_MATRIX_KERNELS = re.compile(r"^_attention_|flash|fmha|gemm|nvjet|cutlass|cublas|xmma|matmul", re.IGNORECASE)

_MIN_FRACTION = 0.01  # of the call, for an operation that is reported
_MAX_NAME_LENGTH = 60  # characters of a kernel's name


@dataclass(frozen=True)
class Profile:
    """Profile of one call.

    Attributes:
        matrix_fraction: Time of matrix products and fused attention relative to the time of the call.
        peak_bytes: Peak size of the tensors in bytes: weights, gradients, optimizer state and temporary tensors. Memory
            that libraries allocate themselves is not included.
        allocated_bytes: Sum of the sizes of all tensors allocated in the call, in bytes. Only for the CPU, 0 on a GPU,
            whose allocator reuses memory.
        padded_tokens: Number of tokens of the call, padding included.
        operations: Time of each operator of a CPU or kernel of a GPU relative to the time of the call, in descending
            order, without the operators that it calls. Operations of less than 1% are omitted.
    """

    matrix_fraction: float
    peak_bytes: int
    allocated_bytes: int
    padded_tokens: int
    operations: dict[str, float]


def profile_call(subject: Subject, workload: Workload) -> Profile:
    """Run one round in the profiler of PyTorch.

    Args:
        subject: Model that has been warmed up.
        workload: Documents of the round.
    """
    on_gpu = subject.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    batches = subject.load(workload)
    if not on_gpu:  # otherwise the profiler misses the release of the gradients of earlier rounds
        subject.model.zero_grad(set_to_none=True)
    resident = sum(tensor.nbytes for tensor in subject.resident_tensors())
    clock = PhaseClock(subject.device.type)
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=activities, profile_memory=not on_gpu) as profiled:
        start = time.perf_counter()
        subject.run(batches, clock)
        clock.wait()
        seconds = time.perf_counter() - start
    events = _kineto_events(profiled)
    if on_gpu:
        allocated, peak = 0, torch.cuda.max_memory_allocated() - before
        names = _MATRIX_KERNELS.search
        kernels = [event for event in events if event.device_type() == DeviceType.CUDA]
        matrix_ns = sum(event.duration_ns() for event in kernels if names(event.name()))
        durations = Counter[str]()
        for event in kernels:
            durations[event.name()[:_MAX_NAME_LENGTH]] += event.duration_ns()
    else:
        allocated, peak = _cpu_allocations(events)
        matrix_ns = sum(event.duration_ns() for event in events if _MATRIX_OPERATORS.fullmatch(event.name()))
        durations = _self_durations(events)
    return Profile(
        matrix_fraction=matrix_ns / 1e9 / seconds,
        peak_bytes=resident + peak,
        allocated_bytes=allocated,
        padded_tokens=subject.num_padded_tokens(batches),
        operations={
            name: duration / 1e9 / seconds
            for name, duration in durations.most_common()
            if duration / 1e9 > _MIN_FRACTION * seconds
        },
    )


def _kineto_events(profiled: Any) -> list[Any]:
    # The public methods build a tree of all operators, which takes seconds.
    return profiled.profiler.kineto_results.events()


def _self_durations(events: list[Any]) -> Counter[str]:
    """Return the duration of each operator without the operators that it calls, in nanoseconds."""
    durations = Counter[str]()
    by_thread: defaultdict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for event in events:
        if event.name() != "[memory]":
            by_thread[event.start_thread_id()].append((event.start_ns(), -event.duration_ns(), event.name()))
    for calls in by_thread.values():
        callers: list[tuple[int, str]] = []  # end and name of the operators that are running
        for start, negative_duration, name in sorted(calls):
            while callers and callers[-1][0] <= start:
                callers.pop()
            if callers:
                durations[callers[-1][1]] += negative_duration
            durations[name] -= negative_duration
            callers.append((start - negative_duration, name))
    return Counter({name.removeprefix("aten::"): duration for name, duration in durations.items()})


def _cpu_allocations(events: list[Any]) -> tuple[int, int]:
    """Return the sum of all allocations, and the highest sum of allocations minus releases, both in bytes."""
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = allocated = 0
    for _, num_bytes in changes:
        live += num_bytes
        peak = max(peak, live)
        allocated += max(0, num_bytes)
    return allocated, peak
