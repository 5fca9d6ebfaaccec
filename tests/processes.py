"""Functions that run in child processes, which may be killed."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

_FILE_EVENTS = ("os.", "shutil.", "open")  # audit events that precede changes of files and folders


def in_child(work: Callable[[], object]) -> int:
    """Call a function in a forked process and return the exit status, the negative signal number after a kill."""
    return wait_for(start_child(work))


def start_child(work: Callable[[], object]) -> int:
    """Start a function in a forked process and return the process id."""
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
    """Wait for a process started by `start_child` and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_each_file_event(work: Callable[[], object]):
    """Call a function repeatedly, killed before its first, second, ... file operation, until it completes.

    Yields the number of the file operation after each call. The caller restores the files between two calls.
    """
    number = 0
    while True:
        number += 1

        def work_and_die(number: int = number) -> None:
            num_remaining = number

            def count(event: str, _arguments: object) -> None:
                nonlocal num_remaining
                num_remaining -= event.startswith(_FILE_EVENTS)
                if num_remaining == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            work()

        status = in_child(work_and_die)
        assert status in (0, -signal.SIGKILL)
        yield number
        if status == 0:
            return
