"""Where files and folders may be written and read, and what is said of those where they may not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fourdthinker.errors import ConfigError, OutputError

PathLike = str | os.PathLike[str]


def named_path(path: PathLike) -> Path:
    """A path that something is written to; an empty one would be the current folder.

    Args:
        path: what the user gave.

    Returns:
        The same path.

    Raises:
        OutputError: it is empty, or holds NUL.
    """
    text = os.fspath(path)
    if not text:
        raise OutputError("the path is empty; name what to write, or . for the current folder")
    if "\0" in text:
        raise OutputError(f"the path {text!r} holds NUL, which no name can; name what to write")
    return Path(path)


def output_path(path: PathLike) -> Path:
    """Where a file named by the user is written.

    Args:
        path: an existing regular file, or a name in an existing folder.

    Returns:
        The absolute path, symbolic links followed.

    Raises:
        OutputError: an empty path; a folder, device, pipe or socket of that name; no such folder; no
            permission.
    """
    name, target = os.fspath(named_path(path)), Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    except NotADirectoryError as error:
        raise _no_folder(Path(name).parent) from error
    except OSError as error:
        raise failed(name, error) from error
    if mode is not None and not stat.S_ISREG(mode):
        raise OutputError(f"{name} is a {_kind(mode)}, not a regular file; name a file to write")
    if not target.parent.is_dir():
        raise OutputError(
            f"{name}: the folder {target.parent} does not exist; create it (mkdir -p), or name another file"
        )
    if not os.access(target if mode is not None else target.parent, os.W_OK):
        what = "the file is" if mode is not None else f"the folder {target.parent} is"
        raise OutputError(f"{name}: {what} not writable for this user; name another file")
    return target


def read_regular(path: PathLike) -> bytes:
    """Read a regular file; a named pipe, which nobody may ever write to, is not waited for.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        ConfigError: a folder, device, pipe or socket of that name, or a file that cannot be read.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # the latter: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read ({reason}); give a readable file") from error
    raise ConfigError(f"{name} is a {_kind(mode)}, not a regular file; move it away or give a file")


def make_folder(path: PathLike) -> Path:
    """Create a folder, and those above it, where they do not exist.

    Args:
        path: the folder.

    Returns:
        The same path.

    Raises:
        OutputError: an empty path, a file stands in the way, or no permission.
    """
    folder = named_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _no_folder(folder) from error
    except OSError as error:
        raise OutputError(
            f"the folder {folder} cannot be made ({error.strerror}); name one in a place you may write to"
        ) from error
    return folder


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_folder(path: PathLike) -> None:
    """Whether a folder can be made or is there, and can be written to, asked before long work.

    Raises:
        OutputError: as `make_folder`.
    """
    folder = named_path(path)
    try:
        found = next(there for there in (folder, *folder.absolute().parents) if _is_there(there))
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror}); name another") from error
    if not found.is_dir():
        raise _no_folder(folder)
    if not os.access(found, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {found} is not writable for this user; name another")


def _no_folder(folder: Path) -> OutputError:
    """The error for a folder that cannot be, since it or one above it is something else."""
    found = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return OutputError(f"{found} is not a folder, and one is needed; name another")


def failed(name: str, error: Exception) -> OutputError:
    """The error for a file of this name that could not be written."""
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return OutputError(f"{name}: cannot be written ({cause}); name another file or disk")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def is_inside(path: PathLike, folder: PathLike) -> bool:
    """Whether a path lies in a folder, or is it, once all links are followed.

    Args:
        path: need not exist.
        folder: need not exist.

    Returns:
        Whether it does.
    """
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
