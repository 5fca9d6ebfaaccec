import functools
import threading
import time

import pytest

from mosaicbert.data.prepare.prefetch import prefetch


def _count(first, end, yielded=None, error_at=None):
    for number in range(first, end):
        if number == error_at:
            raise OSError(f"at {number}")
        if yielded is not None:
            yielded.append(number)
        yield number


def _readers(*bounds, **keys):
    return [functools.partial(_count, first, end, **keys) for first, end in bounds]


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_items_are_in_the_order_of_the_readers(num_threads):
    readers = _readers((0, 50), (50, 50), (50, 51), (51, 200))
    assert list(prefetch(readers, num_threads)) == list(range(200))


def test_without_readers_there_are_no_items():
    assert list(prefetch([], 3)) == []


def test_an_exception_is_raised_after_the_items_of_the_previous_readers():
    collected = []
    with pytest.raises(OSError, match="at 12"):
        for number in prefetch(_readers((0, 10), (10, 20), error_at=12), 2):
            collected.append(number)
    assert collected == list(range(12))


def test_only_a_few_items_are_prefetched():
    yielded = []
    items = prefetch(_readers((0, 1000), yielded=yielded), 1)
    next(items)
    time.sleep(0.3)
    assert len(yielded) < 10
    items.close()


def test_the_next_reader_starts_before_the_current_one_ends():
    started = threading.Event()

    def second():
        started.set()
        yield 2

    items = prefetch([functools.partial(_count, 0, 1000), second], 2)
    next(items)
    assert started.wait(10)
    items.close()


def test_closing_the_iterator_ends_all_threads():
    before = threading.active_count()
    items = prefetch(_readers((0, 1000), (1000, 2000), (2000, 3000)), 3)
    next(items)
    items.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
