"""Reading ahead: what comes next is read while what was read before is worked on."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_MAX_PREFETCHED_ITEMS = 2  # of each reader: bounds the memory
_END = object()


def prefetch(readers: Iterable[Callable[[], Iterator[Item]]], num_threads: int) -> Iterator[Item]:
    """Yields what each reader yields, one reader after the other, while the next ones already read in threads.

    Decompressing and waiting for a network leave Python's lock, so that threads do.

    Args:
        readers: each called once, in a thread.
        num_threads: readers that work at the same time.

    Raises:
        Exception: what a reader raises, when its turn has come.
    """
    remaining = iter(readers)
    waiting: deque[queue.Queue[Any]] = deque()
    stop = threading.Event()
    try:
        while True:
            while len(waiting) < num_threads and (reader := next(remaining, None)) is not None:
                waiting.append(queue.Queue(_MAX_PREFETCHED_ITEMS))
                threading.Thread(target=_read, args=(reader, waiting[-1], stop), daemon=True).start()
            if not waiting:
                return
            current = waiting.popleft()
            while (item := current.get()) is not _END:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        stop.set()


def _read(reader: Callable[[], Iterator[Any]], items: "queue.Queue[Any]", stop: threading.Event) -> None:
    try:
        for item in reader():
            _put(items, item, stop)
            if stop.is_set():
                return
        _put(items, _END, stop)
    except Exception as error:  # raised where its items are waited for
        _put(items, error, stop)


def _put(items: "queue.Queue[Any]", item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return items.put(item, timeout=0.1)
        except queue.Full:
            pass
