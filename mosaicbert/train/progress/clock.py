"""Training clock: wall-clock time of a run, and the wall-clock and CPU time of its steps."""

import time


class TrainingClock:
    """Clock that measures the seconds of a run over all its sessions, and of its steps without evaluations."""

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._step_started_at = self._paused_at = 0.0
        self._step_cpu_started_at = self._cpu_paused_at = 0.0

    def start(self, seconds: float) -> None:
        """Start a session of a run that has lasted `seconds` so far. Within a session, restart only the step time."""
        self._step_started_at, self._step_cpu_started_at = time.monotonic(), time.process_time()
        if self._started_at is None:
            self._started_at = self._step_started_at - seconds

    @property
    def seconds(self) -> float:
        """Return the wall-clock time since the run began in seconds, without pauses between sessions."""
        assert self._started_at is not None
        return time.monotonic() - self._started_at

    def pause(self) -> None:
        """Stop counting step time, for an evaluation."""
        self._paused_at, self._cpu_paused_at = time.monotonic(), time.process_time()

    def resume(self) -> None:
        """Continue counting step time."""
        self._step_started_at += time.monotonic() - self._paused_at
        self._step_cpu_started_at += time.process_time() - self._cpu_paused_at

    def step_seconds(self) -> float:
        """Return the training time in seconds since the last call, or since the session began."""
        now = time.monotonic()
        seconds, self._step_started_at = now - self._step_started_at, now
        return seconds

    def step_cpu_seconds(self) -> float:
        """Return the CPU time of all threads of this process in seconds since the last call, without evaluations."""
        now = time.process_time()
        seconds, self._step_cpu_started_at = now - self._step_cpu_started_at, now
        return seconds
