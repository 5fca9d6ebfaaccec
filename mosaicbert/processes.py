"""Worker pool, CPU count, and termination of child processes with their parent."""

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

_MAX_TASKS_PER_WORKER = 3  # submitted tasks whose results are not yet consumed, to limit the memory


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    initializer: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield function(item) for each item, in order, computed by one process per CPU.

    Args:
        function: Module-level function, which worker processes import by name.
        items: Arguments of the function. A few of them are prefetched. A single item is processed in this process.
        initializer: Function that is called once in each process, including this one; None for no initialization.
        arguments: Arguments of the initializer.

    Raises:
        ConfigError: If a worker process was killed.
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
    # "spawn", because a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(
        max_workers=num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(initializer, arguments),
    )
    futures: deque[Future[Result]] = deque()
    try:
        for item in first:
            futures.append(pool.submit(function, item))
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) >= _MAX_TASKS_PER_WORKER * num_workers:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "A worker process was killed. If memory was exhausted, run the command again with fewer CPUs (taskset) to "
            "continue. If this is your own script, it must have `if __name__ == '__main__':`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def count_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs available to this process: its affinity, limited by the CPU quota of its cgroups.

    Args:
        root: Root folder of proc/self/cgroup and sys/fs/cgroup.

    Returns:
        Number of CPUs, at least 1. A fractional quota is rounded up.
    """
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([num_cpus, *_cgroup_quotas(root)])))


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of the cgroups (v1 or v2) of this process and of their ancestors, in CPUs."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup" / controllers  # `controllers` is empty in cgroup v2
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the cgroup may be the mount itself, although the line has the path on the host.
        folder = mount / path.lstrip("/")
        for ancestor in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # a missing file or "max" means no quota
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process ends the workers
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per CPU, so threads are not needed
    if initializer is not None:
        initializer(*arguments)


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this process. Call it in a thread of a worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
