import functools
import threading
import time

import pytest

from mosaicbert.data.prepare.prefetch import prefetch


def _count(first, end, seen=None, error_at=None):
    for number in range(first, end):
        if number == error_at:
            raise OSError(f"at {number}")
        if seen is not None:
            seen.append(number)
        yield number


def _readers(*bounds, **keys):
    return [functools.partial(_count, first, end, **keys) for first, end in bounds]


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_items_come_in_the_order_of_the_readers(num_threads):
    readers = _readers((0, 50), (50, 50), (50, 51), (51, 200))
    assert list(prefetch(readers, num_threads)) == list(range(200))


def test_no_readers_give_nothing():
    assert list(prefetch([], 3)) == []


def test_an_error_comes_when_the_turn_of_its_reader_has_come():
    collected = []
    with pytest.raises(OSError, match="at 12"):
        for number in prefetch(_readers((0, 10), (10, 20), error_at=12), 2):
            collected.append(number)
    assert collected == list(range(12))


def test_only_a_few_items_are_read_ahead():
    seen = []
    items = prefetch(_readers((0, 1000), seen=seen), 1)
    next(items)
    time.sleep(0.3)
    assert len(seen) < 10
    items.close()


def test_the_next_readers_work_before_their_turn():
    began = threading.Event()

    def second():
        began.set()
        yield 2

    items = prefetch([functools.partial(_count, 0, 1000), second], 2)
    next(items)
    assert began.wait(10)
    items.close()


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    items = prefetch(_readers((0, 1000), (1000, 2000), (2000, 3000)), 3)
    next(items)
    items.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
