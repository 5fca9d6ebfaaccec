"""Atomic writes and folder locks."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from mosaicbert.config import ConfigError

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Name the path at which a file or folder is written before it is renamed to `path`."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield the path at which to write a file or link; rename it to `path` on success, delete it on failure.

    Args:
        path: Final path, whose older file is replaced.
    """
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()  # a full disk needs the room
        raise


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: it has its old content or its new one, also after a power failure.

    Args:
        path: Path of the file.
        content: Bytes of the file.

    Raises:
        ConfigError: If the disk is full, or the file cannot be written for another reason.
    """
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); make room and run the command again: "
            "it continues behind what is finished."
        ) from error


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to its final path, and delete the older folder at that path.

    Args:
        new: Finished folder on the same file system.
        folder: Final path.
    """
    replaced = partial_path(folder.with_name(f"{folder.name}.replaced"))
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    new.rename(folder)
    sync_path(folder.parent)  # before the older folder is deleted, in case the power fails
    shutil.rmtree(replaced, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, message_if_locked: str | None = None) -> Generator[None]:
    """Hold the exclusive lock of a folder, which the system releases however the process ends.

    Args:
        folder: Existing folder.
        message_if_locked: Error message if another process holds the lock; None waits for it.

    Raises:
        ConfigError: If another process holds the lock, or the folder does not exist any more.
    """
    try:
        file = (folder / "lock").open("w")
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: has gone; another process may have finished here, run again.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if message_if_locked else 0))
        except BlockingIOError as error:
            raise ConfigError(str(message_if_locked)) from error
        yield


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds the lock of a folder."""
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
