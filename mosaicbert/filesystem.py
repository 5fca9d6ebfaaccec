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
    """Return the temporary path of a file or folder, which is renamed to `path` when it is complete."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path for a file or link. Rename it to `path` on success, or delete it after an error.

    Args:
        path: Final path. An existing file is replaced.
    """
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()  # frees space on a full disk
        raise


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically. After a power failure it has either the old or the new content.

    Args:
        path: Path of the file.
        content: New content of the file.

    Raises:
        ConfigError: If the disk is full, or the file cannot be written for a different reason.
    """
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}). Free disk space or correct the permissions, then run the "
            "command again to continue."
        ) from error


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to its final path, and delete the previous folder at that path.

    Args:
        new: Finished folder on the same file system.
        folder: Final path.
    """
    replaced = partial_path(folder.with_name(f"{folder.name}.replaced"))
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    new.rename(folder)
    sync_path(folder.parent)  # before the previous folder is deleted, in case of a power failure
    shutil.rmtree(replaced, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Write a file, or the entries of a folder, from the system cache to the disk.

    Args:
        path: Path of the file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, message_if_locked: str | None = None) -> Generator[None]:
    """Lock a folder exclusively. The operating system releases the lock when the process ends.

    Args:
        folder: Existing folder.
        message_if_locked: Error message for a folder that is already locked; None waits for the lock.

    Raises:
        ConfigError: If the folder is already locked and a message is set, or the folder does not exist.
    """
    try:
        file = (folder / "lock").open("w")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} does not exist any more: another process may have finished it. Run the command again."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if message_if_locked else 0))
        except BlockingIOError as error:
            raise ConfigError(str(message_if_locked)) from error
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked a folder."""
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
