"""Worker pool, CPU count, and processes that end with their parent."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from mosaicbert.config import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_TASKS_PER_WORKER = 3  # tasks that are ready for a worker, or done by it: bounds the memory


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    initializer: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yields function(item) of each item in turn, computed on all cores; reads only a few items ahead.

    Args:
        function: of a module, so that processes can be told its name.
        items: what it is called with; a single one is done in this process.
        initializer: called once in each process, this one included.
        arguments: of the initializer.

    Raises:
        ConfigError: the system has ended a process.
    """
    if initializer is not None:
        initializer(*arguments)
    items = iter(items)
    first: list[Item] = []
    for item in items:
        first.append(item)
        if len(first) == 2:
            break
    if len(first) < 2:
        yield from map(function, first)
        return
    num_workers = count_cpus()
    # Spawned, since a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(
        max_workers=num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(initializer, arguments),
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for item in first:
            waiting.append(pool.submit(function, item))
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _MAX_TASKS_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a worker process has ended without a word: because memory ran out (run again to continue, with taskset on "
            "fewer cores), or because a script that calls this lacks `if __name__ == '__main__':`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def count_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its affinity, limited by the CPU quota of its cgroups.

    Args:
        root: Folder with proc/self/cgroup and sys/fs/cgroup.

    Returns:
        At least 1; a fraction of a CPU in the quota counts as one.
    """
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([num_cpus, *_cgroup_quotas(root)])))


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in CPUs, of the process's cgroups (v1 or v2) and of their ancestors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup" / controllers  # v2 has no controllers in its line
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see its cgroup at the mount itself, although the line has the path on the host.
        folder = mount / path.lstrip("/")
        for ancestor in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no file or "max": no quota here
                if controllers:
                    quota = int((ancestor / "cpu.cfs_quota_us").read_text())
                    period = int((ancestor / "cpu.cfs_period_us").read_text())
                else:
                    quota, period = map(int, (ancestor / "cpu.max").read_text().split())
                if quota > 0 and period > 0:
                    yield quota / period
            if ancestor == mount:
                break


def _start_worker(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal interrupts all processes; the first ends the others
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the threads
    if initializer is not None:
        initializer(*arguments)


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, and ends it too; for a thread of a worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
