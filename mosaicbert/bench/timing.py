"""Interleaved timing of several versions, with a time limit for each."""

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

NUM_WARMUP_ROUNDS = 2  # the first call builds and compiles, the second compiles for changed shapes
_MIN_ROUNDS = 3  # timed rounds even if the time is up
_MAX_VERSION_FRACTION = 1 / 2  # of the total time, for the warmup of one version
_MAX_ALTERNATIVE_RATIO = 2.0  # warmup time relative to the fastest alternative above which a version is not timed
_CLEARLY_SLOW_RATIO = 4.0  # the same for any warmup call, which is stopped then
_MAX_ERROR_LENGTH = 300  # characters


class TimeLimitExceeded(BaseException):  # not an Exception, because compilers catch those and continue
    """Error of a version that exceeds its time limit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Generator[None]:
    """Raise TimeLimitExceeded in the main thread if the body takes more than a number of seconds."""

    def stop(*_: object) -> None:
        raise TimeLimitExceeded(f"time limit of {seconds:.3g} s exceeded")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def describe_error(error: BaseException) -> str:
    """Format an error as one line of at most 300 characters."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:_MAX_ERROR_LENGTH].rstrip(": ")


class PhaseClock:
    """Clock of the consecutive phases of one call. A phase may occur several times; its times are added.

    Args:
        device_type: "cuda" for the time of the device, measured by events, or "cpu".
    """

    def __init__(self, device_type: str) -> None:
        self._on_gpu = device_type == "cuda"
        self.restart()

    def wait(self) -> None:
        """Wait for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()

    def restart(self) -> None:
        """Wait for the device, remove all phases and start the first one."""
        self.wait()
        self._phases: list[str] = []
        self._marks = [self._mark()]

    def lap(self, phase: str) -> None:
        """End a phase, and start the next one."""
        self._phases.append(phase)
        self._marks.append(self._mark())

    def seconds(self) -> dict[str, float]:
        """Wait for the device, and return the time of each phase in seconds."""
        self.wait()
        totals: dict[str, float] = {}
        for phase, start, end in zip(self._phases, self._marks, self._marks[1:], strict=False):
            totals[phase] = totals.get(phase, 0.0) + self._seconds_between(start, end)
        return totals

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds_between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._on_gpu else end - start


@dataclass
class Measurement:
    """Times of one version.

    Attributes:
        warmup_seconds: Time of each warmup call in seconds.
        rounds: Time of each phase in seconds, by timed round.
        error: Reason why the version did not run to the end, or None.
        is_slow: Whether the reason is that an alternative is much faster.
    """

    warmup_seconds: list[float] = field(default_factory=list[float])
    rounds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    error: str | None = None
    is_slow: bool = False

    @property
    def seconds(self) -> list[float]:
        """Total time of each timed round in seconds."""
        return [sum(phases.values()) for phases in self.rounds]


def measure_in_turn(
    calls: Mapping[str, Callable[[int, PhaseClock], None]],
    *,
    num_rounds: int,
    seconds: float,
    device_type: str,
    alternatives: Mapping[str, str],
    compiled: Mapping[str, str | None] | None = None,
) -> dict[str, Measurement]:
    """Time all versions in turn in repeated rounds, so that other load on the machine affects them equally.

    Each version is first warmed up with the rounds 0 and 1, and a compiled version with all rounds, so that no timed
    round compiles for a new shape. A version that fails or exceeds its time limit is not called again, and the other
    versions continue. Of alternatives only the fastest is timed, and those whose last warmup call takes at most twice
    as long; a call that takes four times as long is stopped. Compiled versions are warmed up last, and not if the
    uncompiled version is too slow.

    Args:
        calls: Function of one call by name of the version, in the order of importance. Its arguments are the index of
            the round, which is at most NUM_WARMUP_ROUNDS + num_rounds - 1, and the clock of the call.
        num_rounds: Maximum number of timed rounds. At least 3 of them are run even if the time is up.
        seconds: Approximate total time in seconds.
        device_type: Device of the versions, "cpu" or "cuda".
        alternatives: Name of the group of alternatives of each version.
        compiled: Names of the compiled versions, with the name of the uncompiled version of each, or None.

    Returns:
        Measurement of each version.
    """
    end = time.perf_counter() + seconds
    measurements = {name: Measurement() for name in calls}
    compiled = compiled or {}
    for name in sorted(calls, key=lambda name: name in compiled):
        uncompiled = compiled.get(name)
        if uncompiled is not None and measurements[uncompiled].is_slow:
            measurements[name].error = f"not run: {uncompiled} is slower than its alternative"
        version_end = min(end, time.perf_counter() + seconds * _MAX_VERSION_FRACTION)
        for index in range(NUM_WARMUP_ROUNDS + (num_rounds if name in compiled else 0)):
            slow_limit = _slow_limit(name, index, measurements, alternatives)
            limit = min(version_end - time.perf_counter(), slow_limit)
            _run(calls[name], index, measurements[name], limit, device_type, is_warmup=True)
            measurements[name].is_slow = measurements[name].error is not None and limit == slow_limit
        _drop_slower_alternatives(measurements, alternatives)
    for index in range(num_rounds):
        if index >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            limit = seconds * _MAX_VERSION_FRACTION
            _run(call, NUM_WARMUP_ROUNDS + index, measurements[name], limit, device_type, is_warmup=False)
    return measurements


def _run(
    call: Callable[[int, PhaseClock], None],
    index: int,
    measurement: Measurement,
    limit: float,
    device_type: str,
    *,
    is_warmup: bool,
) -> None:
    if measurement.error is not None:
        return
    if limit <= 0:
        measurement.error = "not run: no time was left"
        return
    try:
        with time_limit(limit):
            start = time.perf_counter()
            clock = PhaseClock(device_type)
            call(index, clock)
            phases = clock.seconds()
    except (Exception, TimeLimitExceeded) as error:  # any failure of a version is its result
        measurement.error = describe_error(error)
        return
    if is_warmup:
        measurement.warmup_seconds.append(time.perf_counter() - start)
    else:
        measurement.rounds.append(phases)


def _slow_limit(
    name: str, index: int, measurements: Mapping[str, Measurement], alternatives: Mapping[str, str]
) -> float:
    """Return the time in seconds of a warmup call that is certainly too long, given those of the alternatives."""
    others = [
        measurement.warmup_seconds[index]
        for other, measurement in measurements.items()
        if other != name and alternatives[other] == alternatives[name] and len(measurement.warmup_seconds) > index
    ]
    return _CLEARLY_SLOW_RATIO * min(others, default=float("inf"))


def _drop_slower_alternatives(measurements: Mapping[str, Measurement], alternatives: Mapping[str, str]) -> None:
    best: dict[str, float] = {}
    running = {
        name: measurement
        for name, measurement in measurements.items()
        if measurement.error is None and measurement.warmup_seconds
    }
    for name, measurement in running.items():
        group = alternatives[name]
        best[group] = min(best.get(group, float("inf")), measurement.warmup_seconds[-1])
    for name, measurement in running.items():
        warmup, fastest = measurement.warmup_seconds[-1], best[alternatives[name]]
        if warmup > _MAX_ALTERNATIVE_RATIO * fastest:
            measurement.error = f"slower than the alternative: {warmup:.3g} s in the warmup, against {fastest:.3g} s"
            measurement.is_slow = True
