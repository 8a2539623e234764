"""A folder that one command writes from nothing, and no other process meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.files.locks import close_locked, lock_present
from fourdthinker.files.paths import PathLike, check_folder, failed, make_folder


def check_new_folder(path: PathLike) -> None:
    """Whether a folder is absent or empty, and can be written, asked before long work.

    Raises:
        OutputError: as `make_folder`.
        ConfigError: something is in it.
    """
    check_folder(path)
    if os.path.isdir(path) and os.listdir(path):
        raise ConfigError(f"{path} is not empty; name a new folder")


@contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """A new or empty folder that no other process writes meanwhile. The folder itself is locked.

    A folder that is made here and stays empty because the block fails is taken away.

    Args:
        path: the folder, as the user named it.

    Yields:
        The same path.

    Raises:
        OutputError: as `make_folder`, or another process has the folder.
        ConfigError: something is in it.
    """
    check_new_folder(path)
    is_new = not os.path.exists(path)
    handle = _locked(path)
    try:
        check_new_folder(path)  # another process may have written and left it since
        yield Path(path)
    except BaseException:
        if is_new:
            with suppress(OSError):  # it is not empty
                os.rmdir(path)
        raise
    finally:
        close_locked(handle)


def _locked(path: PathLike) -> int:
    while True:
        make_folder(path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process has made it, failed, and taken it away
        except OSError as error:
            raise failed(os.fspath(path), error) from error
        if lock_present(handle, path, os.fspath(path), "folder"):
            return handle  # else likewise, since it was opened
