"""Prefetching: threads read the next items while the caller processes the current ones."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_MAX_PREFETCHED_ITEMS = 2  # per reader, to limit the memory
_END = object()


def prefetch(readers: Iterable[Callable[[], Iterator[Item]]], num_threads: int) -> Iterator[Item]:
    """Yield the items of all readers in order, while threads run the next readers.

    Decompression and network requests release the global interpreter lock, so threads are sufficient.

    Args:
        readers: Functions that return an iterator of items; each is called once, in a thread.
        num_threads: Maximum number of readers that run at the same time.

    Raises:
        Exception: If a reader raises it; raised after the items of the previous readers.
    """
    remaining = iter(readers)
    queues: deque[queue.Queue[Any]] = deque()
    stop = threading.Event()
    try:
        while True:
            while len(queues) < num_threads and (reader := next(remaining, None)) is not None:
                queues.append(queue.Queue(_MAX_PREFETCHED_ITEMS))
                threading.Thread(target=_read, args=(reader, queues[-1], stop), daemon=True).start()
            if not queues:
                return
            current = queues.popleft()
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
    except Exception as error:  # raised again in the consuming thread
        _put(items, error, stop)


def _put(items: "queue.Queue[Any]", item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return items.put(item, timeout=0.1)
        except queue.Full:
            pass
