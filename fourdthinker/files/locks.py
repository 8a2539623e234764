"""The lock that keeps other processes from writing a file or a folder."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourdthinker.errors import OutputError
from fourdthinker.files.paths import PathLike, failed

FOLDER_LOCK = "run.lock"
log = logging.getLogger(__name__)


def open_locked(path: Path, name: str, what: str = "file") -> int:
    """Open or create a file, and keep others from locking it until `close_locked` or the end of the process.

    On a file system that has no locks this is a warning, and the file is open all the same.

    Args:
        path: the file, its links followed.
        name: what is locked by it, as the user named it.
        what: "file" or "folder", for messages.

    Returns:
        Its handle, for reading and appending.

    Raises:
        OutputError: another process has the lock, or the file cannot be opened.
    """
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise failed(name, error) from error
        if lock_present(handle, path, name, what):
            return handle  # else its writer has replaced the file since it was opened: lock the new one


def lock_present(handle: int, path: PathLike, name: str, what: str) -> bool:
    """Lock what was opened if it is still what has the name.

    Args:
        handle: of the file or folder; it is closed unless True is returned.
        path: its name, links followed.
        name: what is locked by it, as the user named it.
        what: "file" or "folder", for messages.

    Returns:
        Whether it is.

    Raises:
        OutputError: another process has the lock.
    """
    try:
        lock(handle, name, what)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return True
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return False


@contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """A folder that no other process writes meanwhile, by the file `FOLDER_LOCK` in it, which stays.

    Args:
        folder: it exists.

    Yields:
        Whether the lock is held; False on a file system that has none.

    Raises:
        OutputError: as `open_locked`.
    """
    handle = open_locked(folder / FOLDER_LOCK, str(folder), "folder")
    try:
        yield _holds(handle)
    finally:
        close_locked(handle)


def lock(handle: int, name: str, what: str = "file") -> None:
    """Lock an open file, as `open_locked` does; a file system without locks is a warning.

    Args:
        handle: file descriptor.
        name: of the file, for messages.
        what: it is, for messages.

    Raises:
        OutputError: another process holds the lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{name}: another process is writing this {what}; wait for it to end, or name another {what}"
        ) from error
    except OSError as error:
        log.warning(
            "%s: this file system has no locks (%s); let no other process write this %s",
            name,
            error.strerror,
            what,
        )


def _holds(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # once more changes nothing
    except OSError:
        return False
    return True


def close_locked(handle: int) -> None:
    """Give the lock back, also where a forked process still has the file open, and close the file."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
