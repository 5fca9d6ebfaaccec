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

_ATTEMPTS = 2
_TICK_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0  # for a process that is to end by itself


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
    needs: str | None = None


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

    kind: Literal["started", "done", "tried again", "failed", "left out"]
    job: Job
    result: Any = None
    reason: str = ""
    details: str = ""


@dataclass(frozen=True, kw_only=True)
class _Answer:
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
    since: float = field(default=0.0)
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
            self._end(worker)

    @property
    def running(self) -> list[tuple[Job, float]]:
        """The jobs under way, and for how many seconds."""
        now = time.monotonic()
        return [(worker.job, now - worker.since) for worker in self._workers if worker.job is not None]

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
            yield from self._leave_out()
            yield from self._start()
            yield from self._collect()
            yield None

    def _leave_out(self) -> Generator[JobEvent]:
        while (job := next((job for job in self.pending if job.needs in self._failed), None)) is not None:
            self.pending.remove(job)
            self._failed.add(job.name)
            yield JobEvent(kind="left out", job=job, reason=f"it needs {job.needs}, which has failed")

    def _start(self) -> Generator[JobEvent]:
        for worker in self._workers:
            ready = next((job for job in self.pending if job.needs is None or job.needs in self._done), None)
            if worker.job is not None or ready is None:
                continue
            self.pending.remove(ready)
            if worker.process is not None and not worker.process.is_alive():
                self._end(worker)  # while it was at nothing
            if worker.process is None:
                self._begin(worker)
            worker.job, worker.since, worker.is_cancelled = ready, time.monotonic(), False
            assert worker.connection is not None
            with contextlib.suppress(OSError):  # it has just died, which is seen when it is asked for the result
                worker.connection.send(ready.payload)
            yield JobEvent(kind="started", job=ready)

    def _collect(self) -> Generator[JobEvent]:
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        for connection in wait([one for one in busy if one is not None], timeout=_TICK_SECONDS):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                answer: _Answer = connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                answer = _Answer(reason=f"its process ended with {worker.process.exitcode}", is_usable=False)
            if not answer.is_usable:
                self._end(worker)
            if worker.is_cancelled:
                continue
            if not answer.reason:
                self._done.add(job.name)
                yield JobEvent(kind="done", job=job, result=answer.result)
                continue
            self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
            is_last = self._attempts[job.name] >= _ATTEMPTS
            if is_last:
                self._failed.add(job.name)
            else:
                self.pending.insert(0, job)  # others may wait for it
            kind = "failed" if is_last else "tried again"
            yield JobEvent(kind=kind, job=job, reason=answer.reason, details=answer.details)

    def _begin(self, worker: _Worker) -> None:
        context = multiprocessing.get_context("spawn")
        worker.connection, theirs = context.Pipe()
        worker.process = context.Process(target=_work, args=(self.function, theirs), daemon=False)
        before = {name: os.environ.get(name) for name in worker.environment}
        os.environ.update(worker.environment)  # what a process inherits, it has before its first import
        try:
            worker.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()

    def _end(self, worker: _Worker) -> None:
        if worker.process is not None:
            assert worker.connection is not None
            worker.connection.close()  # one that is at nothing ends by itself
            if worker.job is not None:
                worker.process.kill()
            worker.process.join(_PATIENCE_SECONDS)
            worker.process.kill()
            worker.process.join()
            worker.process = worker.connection = worker.job = None


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's interrupt is for the process that keeps the ledger
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            payload = connection.recv()
        except EOFError:
            return
        try:
            answer = _Answer(result=function(payload))
        except ConfigError as error:
            answer = _Answer(reason=str(error))
        except Exception as error:  # whatever it is, the queue goes on, and says it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            answer = _Answer(reason=reason, details=traceback.format_exc(), is_usable=False)
        connection.send(answer)
