"""A lock on a folder, which the system lifts when the process that holds it ends, however it does."""

import contextlib
import fcntl
from collections.abc import Generator
from pathlib import Path

from mosaicbert.config import ConfigError


@contextlib.contextmanager
def lock(folder: Path, refusal: str | None = None) -> Generator[None]:
    """Keeps other processes out.

    Args:
        folder: to guard; it must exist.
        refusal: what to say if another process is in; None: wait for it.

    Raises:
        ConfigError: another process is in, or the folder has gone.
    """
    try:
        file = (folder / "lock").open("w")
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: has gone; another process may have finished here, run again.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ConfigError(str(refusal)) from error
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process is in."""
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
