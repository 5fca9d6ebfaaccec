"""Jobs over several processes: in the order of what they need, tried again once, and none of them stops the others."""

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
_POLL_SECONDS = 0.5
_JOIN_TIMEOUT_SECONDS = 10.0  # for a process that is to end by itself


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to do.

    Attributes:
        name: that no other job has.
        payload: what the queue's function is given; it is pickled.
        needs: name of the job that must have been done before.
    """

    name: str
    payload: Any
    depends_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """What has happened to a job.

    Attributes:
        kind: tried again: it has failed once; failed: it will not be tried again; left out: what it needs has failed.
        job: that it has happened to.
        result: of the queue's function, when it is done.
        reason: why it failed or was left out, in one line.
        details: the traceback, if there is one.
    """

    kind: Literal["started", "done", "retried", "failed", "skipped"]
    job: Job
    result: Any = None
    reason: str = ""
    details: str = ""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a process says of a job: its result, or why there is none. An error may have left the device unusable."""

    result: Any = None
    reason: str = ""
    details: str = ""
    is_usable: bool = True


@dataclass
class _Worker:
    """A process and what it is at."""

    environment: Mapping[str, str]
    process: Any = None
    connection: Connection | None = None
    job: Job | None = None
    start_time: float = field(default=0.0)
    is_cancelled: bool = False  # its job has been removed from the queue


class JobQueue:
    """Runs jobs, several at a time, each in a process that lives on for the next.

    Use it in a `with`, which ends the processes; jobs that are under way then are lost.

    Args:
        function: called with a job's payload, in another process; its module is imported there.
        environments: of the processes: variables that are set in each.

    Attributes:
        pending: jobs that have not begun.
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
        for worker in self._workers:
            if worker.job is not None:
                worker.process.kill()  # all of them before any is waited for: the user may interrupt the waiting
        for worker in self._workers:
            self._stop_process(worker)

    @property
    def running(self) -> list[tuple[Job, float]]:
        """The jobs under way, and for how many seconds."""
        now = time.monotonic()
        return [(worker.job, now - worker.start_time) for worker in self._workers if worker.job is not None]

    def add(self, jobs: Iterable[Job]) -> None:
        """Puts jobs behind those that wait."""
        self.pending += jobs

    def cancel(self, names: Collection[str]) -> None:
        """Remove jobs, including running, finished and failed ones, so that other jobs may have their names."""
        self.pending = [job for job in self.pending if job.name not in names]
        self._done -= set(names)
        self._failed -= set(names)
        for name in names:
            self._attempts.pop(name, None)
        for worker in self._workers:
            worker.is_cancelled |= worker.job is not None and worker.job.name in names

    def events(self) -> Generator[JobEvent | None]:
        """Yields what happens until nothing is left to do; and None from time to time, when more may be added."""
        while self.pending or self.running:
            yield from self._skip_blocked_jobs()
            yield from self._start_jobs()
            yield from self._collect_results()
            yield None

    def _skip_blocked_jobs(self) -> Generator[JobEvent]:
        while (job := next((job for job in self.pending if job.depends_on in self._failed), None)) is not None:
            self.pending.remove(job)
            self._failed.add(job.name)
            yield JobEvent(kind="skipped", job=job, reason=f"it needs {job.depends_on}, which has failed")

    def _start_jobs(self) -> Generator[JobEvent]:
        for worker in self._workers:
            ready = next((job for job in self.pending if job.depends_on is None or job.depends_on in self._done), None)
            if worker.job is not None or ready is None:
                continue
            self.pending.remove(ready)
            if worker.process is not None and not worker.process.is_alive():
                self._stop_process(worker)  # while it was at nothing
            if worker.process is None:
                self._start_process(worker)
            worker.job, worker.start_time, worker.is_cancelled = ready, time.monotonic(), False
            assert worker.connection is not None
            with contextlib.suppress(OSError):  # it has just died, which is seen when it is asked for the result
                worker.connection.send(ready.payload)
            yield JobEvent(kind="started", job=ready)

    def _collect_results(self) -> Generator[JobEvent]:
        busy_workers = {worker.connection: worker for worker in self._workers if worker.job is not None}
        for connection in wait([one for one in busy_workers if one is not None], timeout=_POLL_SECONDS):
            assert isinstance(connection, Connection)
            worker = busy_workers[connection]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                outcome: _Outcome = connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                outcome = _Outcome(reason=f"its process ended with {worker.process.exitcode}", is_usable=False)
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
                self.pending.insert(0, job)  # others may wait for it
            kind = "failed" if is_last else "retried"
            yield JobEvent(kind=kind, job=job, reason=outcome.reason, details=outcome.details)

    def _start_process(self, worker: _Worker) -> None:
        context = multiprocessing.get_context("spawn")
        worker.connection, child_connection = context.Pipe()
        worker.process = context.Process(target=_run_worker, args=(self.function, child_connection), daemon=False)
        previous_values = {name: os.environ.get(name) for name in worker.environment}
        os.environ.update(worker.environment)  # what a process inherits, it has before its first import
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
            worker.connection.close()  # one that is at nothing ends by itself
            if worker.job is not None:
                worker.process.kill()
            worker.process.join(_JOIN_TIMEOUT_SECONDS)
            worker.process.kill()
            worker.process.join()
            worker.process = worker.connection = worker.job = None


def _run_worker(function: Callable[[Any], Any], connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's interrupt is for the process that keeps the ledger
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
        except Exception as error:  # whatever it is, the queue goes on, and says it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            outcome = _Outcome(reason=reason, details=traceback.format_exc(), is_usable=False)
        connection.send(outcome)
