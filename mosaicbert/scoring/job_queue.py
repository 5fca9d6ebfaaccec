"""Job queue over several processes, with dependencies and one retry per job."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from mosaicbert.config import ConfigError
from mosaicbert.processes import end_with_parent

_MAX_ATTEMPTS = 2
_POLL_SECONDS = 0.5  # maximum time between two items of JobQueue.events
_JOIN_TIMEOUT_SECONDS = 10.0  # for an idle process to exit before it is killed


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of the queue's function.

    Attributes:
        name: Unique name of the job.
        payload: Argument of the queue's function, pickled.
        depends_on: Name of the job that must finish first; None for a job without dependency.
    """

    name: str
    payload: Any
    depends_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Change of a job's state.

    Attributes:
        kind: New state. "retried" follows the first failure, "failed" the last one. "skipped" means that a dependency
            has failed.
        job: Job whose state has changed.
        result: Return value of the queue's function for "done".
        reason: One-line reason for "retried", "failed" and "skipped".
        details: Traceback of an exception; empty if there is none.
    """

    kind: Literal["started", "done", "retried", "failed", "skipped"]
    job: Job
    result: Any = None
    reason: str = ""
    details: str = ""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Outcome of a job in its process.

    Attributes:
        result: Return value of the queue's function.
        reason: One-line reason of a failure; empty after success.
        details: Traceback of an exception.
        is_usable: True if the process can run other jobs. An exception may leave the GPU unusable.
    """

    result: Any = None
    reason: str = ""
    details: str = ""
    is_usable: bool = True


@dataclass
class _Worker:
    """Process of the queue and its current job."""

    environment: Mapping[str, str]
    process: Any = None
    connection: Connection | None = None
    job: Job | None = None
    start_time: float = field(default=0.0)
    is_cancelled: bool = False  # the current job has been removed from the queue


class JobQueue:
    """Job queue that runs several jobs at a time, each in a process that is reused for later jobs.

    The queue is a context manager. Leaving the context stops the processes and loses their running jobs.

    Args:
        function: Function that is called with a job's payload in another process, which imports its module.
        environments: Environment variables of each process.

    Attributes:
        pending: Jobs that have not started.
    """

    def __init__(self, function: Callable[[Any], Any], environments: Sequence[Mapping[str, str]]) -> None:
        self.function = function
        self.pending: list[Job] = []
        self._workers = [_Worker(environment) for environment in environments]
        self._attempts: dict[str, int] = {}
        self._done: set[str] = set()
        self._failed: set[str] = set()

    def __enter__(self) -> "JobQueue":
        return self

    def __exit__(self, *_: object) -> None:
        # All processes are killed before any is joined, because the user may interrupt the joining.
        for worker in self._workers:
            if worker.job is not None:
                worker.process.kill()
        for worker in self._workers:
            self._stop_process(worker)

    @property
    def running(self) -> list[tuple[Job, float]]:
        """Running jobs and their elapsed time in seconds."""
        now = time.monotonic()
        return [(worker.job, now - worker.start_time) for worker in self._workers if worker.job is not None]

    def add(self, jobs: Iterable[Job]) -> None:
        """Append jobs to the pending jobs."""
        self.pending += jobs

    def cancel(self, names: Collection[str]) -> None:
        """Remove jobs in any state, so that their names can be used again.

        Args:
            names: Names of the jobs. The result of a running job is discarded.
        """
        self.pending = [job for job in self.pending if job.name not in names]
        self._done -= set(names)
        self._failed -= set(names)
        for name in names:
            self._attempts.pop(name, None)
        for worker in self._workers:
            worker.is_cancelled |= worker.job is not None and worker.job.name in names

    def events(self) -> Generator[JobEvent | None]:
        """Yield events until all jobs are finished.

        Between events, None is yielded every half second, so that the caller can add jobs.
        """
        while self.pending or self.running:
            yield from self._skip_blocked_jobs()
            yield from self._start_jobs()
            yield from self._collect_results()
            yield None

    def _skip_blocked_jobs(self) -> Generator[JobEvent]:
        while (job := next((job for job in self.pending if job.depends_on in self._failed), None)) is not None:
            self.pending.remove(job)
            self._failed.add(job.name)
            yield JobEvent(kind="skipped", job=job, reason=f"it depends on {job.depends_on}, which has failed")

    def _start_jobs(self) -> Generator[JobEvent]:
        for worker in self._workers:
            ready = next((job for job in self.pending if job.depends_on is None or job.depends_on in self._done), None)
            if worker.job is not None or ready is None:
                continue
            self.pending.remove(ready)
            if worker.process is not None and not worker.process.is_alive():
                self._stop_process(worker)  # the process has exited while it was idle
            if worker.process is None:
                self._start_process(worker)
            worker.job, worker.start_time, worker.is_cancelled = ready, time.monotonic(), False
            assert worker.connection is not None
            with contextlib.suppress(OSError):  # the process has just exited, which receiving its result reports
                worker.connection.send(ready.payload)
            yield JobEvent(kind="started", job=ready)

    def _collect_results(self) -> Generator[JobEvent]:
        busy_workers = {worker.connection: worker for worker in self._workers if worker.job is not None}
        connections = [connection for connection in busy_workers if connection is not None]
        for connection in wait(connections, timeout=_POLL_SECONDS):
            assert isinstance(connection, Connection)
            worker = busy_workers[connection]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                outcome: _Outcome = connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                outcome = _Outcome(reason=f"its process exited with code {worker.process.exitcode}", is_usable=False)
            if not outcome.is_usable:
                self._stop_process(worker)
            if worker.is_cancelled:
                continue
            if not outcome.reason:
                self._done.add(job.name)
                yield JobEvent(kind="done", job=job, result=outcome.result)
                continue
            self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
            is_last = self._attempts[job.name] >= _MAX_ATTEMPTS
            if is_last:
                self._failed.add(job.name)
            else:
                self.pending.insert(0, job)  # first, because other jobs may depend on it
            kind = "failed" if is_last else "retried"
            yield JobEvent(kind=kind, job=job, reason=outcome.reason, details=outcome.details)

    def _start_process(self, worker: _Worker) -> None:
        context = multiprocessing.get_context("spawn")
        worker.connection, child_connection = context.Pipe()
        worker.process = context.Process(target=_run_worker, args=(self.function, child_connection), daemon=False)
        # Set before the start: libraries read the variables when they are imported.
        previous_values = {name: os.environ.get(name) for name in worker.environment}
        os.environ.update(worker.environment)
        try:
            worker.process.start()
        finally:
            for name, value in previous_values.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        child_connection.close()

    def _stop_process(self, worker: _Worker) -> None:
        if worker.process is not None:
            assert worker.connection is not None
            worker.connection.close()  # an idle process exits when its connection closes
            if worker.job is not None:
                worker.process.kill()
            worker.process.join(_JOIN_TIMEOUT_SECONDS)
            worker.process.kill()
            worker.process.join()
            worker.process = worker.connection = worker.job = None


def _run_worker(function: Callable[[Any], Any], connection: Connection) -> None:
    # Ctrl-C in a terminal signals all processes, but only the parent handles it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            payload = connection.recv()
        except EOFError:
            return
        try:
            outcome = _Outcome(result=function(payload))
        except ConfigError as error:
            outcome = _Outcome(reason=str(error))
        except Exception as error:  # reported as a failure of this job, so that other jobs continue
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            outcome = _Outcome(reason=reason, details=traceback.format_exc(), is_usable=False)
        connection.send(outcome)
