"""Work done in a process of its own, which may die in the middle."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

_FILE_EVENTS = ("os.", "shutil.", "open")  # what Python says, before it does it, of all that changes a folder


def in_child(work: Callable[[], object]) -> int:
    """Does `work` in a copy of this process; returns its exit status, negative for the signal that ended it."""
    return wait_for(start_child(work))


def start_child(work: Callable[[], object]) -> int:
    """Begins `work` in a copy of this process; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait_for(child: int) -> int:
    """The exit status of a process that `start_child` began."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_each_file_event(work: Callable[[], object]):
    """Does `work` again and again, killed before its first, second, ... file operation; yields after each.

    Whoever iterates puts things back between two. The last time, `work` comes to its end.
    """
    number = 0
    while True:
        number += 1

        def work_and_die(number: int = number) -> None:
            left = number

            def count(event: str, _arguments: object) -> None:
                nonlocal left
                left -= event.startswith(_FILE_EVENTS)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            work()

        status = in_child(work_and_die)
        assert status in (0, -signal.SIGKILL)
        yield number
        if status == 0:
            return
