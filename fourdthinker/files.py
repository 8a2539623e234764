"""Writing files: whole files at once, JSONL files line by line, and what stops either.

What is written goes through here, so that the same rules hold everywhere: a symbolic link is followed and
stays a link, only regular files are written, a reader sees the old file or the new one and never a half, and
every failure is an `OutputError` that names the file and the remedy. A folder that is itself an output is
created (`make_folder`); the folder that an output file is to stand in must exist. The names
that readers and writers share (picture suffixes, option letters) are here too.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fourdthinker.errors import ConfigError, OutputError

PathLike = str | os.PathLike[str]
LETTERS = "ABCDEFGH"  # of the options of a question, in order
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Names of what a killed process left half written.
UNFINISHED = re.compile(r"\.fourdthinker-[0-9a-f]{12}\.part")

log = logging.getLogger(__name__)


def named_path(path: PathLike) -> Path:
    """A path that something is written to; an empty one would be the current folder.

    Args:
        path: what the user gave.

    Returns:
        The same path.

    Raises:
        OutputError: it is empty.
    """
    if not os.fspath(path):
        raise OutputError("the path is empty; name what to write, or . for the current folder")
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
        raise _failed(name, error) from error
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


def check_output(path: PathLike) -> None:
    """Whether a file can be written, asked before long work. Creates nothing.

    Raises:
        OutputError: as `output_path`, or another process is writing the file.
    """
    target = output_path(path)
    if target.exists():
        os.close(_open_locked(target, os.fspath(path)))


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
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror}); give a readable file") from error
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


@contextmanager
def atomic_writer(path: PathLike, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write; it takes the name `path` when the block ends, and vanishes if the block raises.

    An existing file keeps its permissions, a new one gets those of the umask.

    Args:
        path: as for `output_path`.
        sync: whether the data must be on the disk before the name is. False for caches, which may be lost.

    Yields:
        A binary file. For text, write `text.encode()`.

    Raises:
        OutputError: as `output_path`, or the disk is full.
    """
    target = output_path(path)
    with _temporary(target, os.fspath(path)) as (temporary, handle):
        with os.fdopen(os.dup(handle), "wb") as file:
            yield file
        if sync:
            os.fsync(handle)
        os.replace(temporary, target)
        if sync:
            _sync_folder(target.parent)


def write_bytes(path: PathLike, data: bytes, *, sync: bool = True) -> None:
    """Write a whole file at once, as `atomic_writer` does; errors likewise.

    Args:
        path: as for `output_path`.
        data: the content.
        sync: as for `atomic_writer`.
    """
    with atomic_writer(path, sync=sync) as file:
        file.write(data)


def write_text(path: PathLike, text: str) -> None:
    """Write a whole UTF-8 file at once, as `atomic_writer` does; errors likewise.

    Args:
        path: as for `output_path`.
        text: the content. What UTF-8 cannot hold (half of a surrogate pair) is written as its escape,
            "\\udc80".
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: PathLike, value: Any) -> Path:
    """Write strict JSON (no NaN) at once, creating the folder.

    Args:
        path: as for `output_path`, but that the folder need not exist.
        value: what is written.

    Returns:
        The path as given.

    Raises:
        OutputError: as `make_folder` and `atomic_writer`.
        ValueError: NaN or infinity in `value`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    make_folder(Path(path).parent)
    write_text(path, text + "\n")
    return Path(path)


def _json_line(entry: Any) -> bytes:
    """One line of a JSONL file, with its newline; UTF-8, half a surrogate pair as its JSON escape."""
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def append_lines(path: PathLike, entries: Iterable[Any]) -> None:
    """Append JSON lines to a log, in one write. For files that are only read by eye or by `report`.

    A journal that work is resumed from is a `JsonLines`, which no other process can write.

    Args:
        path: as for `output_path`.
        entries: one for each line.

    Raises:
        OutputError: as `output_path`, or the disk is full.
    """
    target, name = output_path(path), os.fspath(path)
    try:
        handle = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise _failed(name, error) from error
    try:
        _append(handle, entries)
    except OSError as error:
        raise _failed(name, error) from error
    finally:
        os.close(handle)


class JsonLines:
    """A JSONL file that this process alone writes, until it is closed.

    A line that a kill has cut off is no line: `lines` leaves it out, and it goes with the next `keep` or is
    fenced off by the next `append`. Lines are bytes, without the newline; split at newlines only, since JSON
    strings may hold U+2028.
    """

    def __init__(self, path: PathLike) -> None:
        """Open or create the file and lock it.

        Raises:
            OutputError: as `output_path`, or another process has the file open as JsonLines.
        """
        self.name = os.fspath(path)
        self.path = output_path(path)
        self._handle = _open_locked(self.path, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back, also where a forked process still has the file open."""
        with suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)

    def lines(self) -> list[bytes]:
        """The whole lines of the file.

        A last line without its newline counts when it is whole JSON, or is nothing that this class has
        written; then it is for the caller to judge.
        """
        return self._lines(self._read())

    def keep(self, lines: Sequence[bytes]) -> None:
        """Make the file hold these lines, in this order, and no half line after them.

        Nothing is written when it holds them already; a half line is cut off; else the file is replaced at
        once.

        Raises:
            OutputError: the disk is full.
        """
        data = b"".join(line + b"\n" for line in lines)
        now = self._read()
        if now == data:
            return
        if now.startswith(data) and self._lines(now) == list(lines):
            os.ftruncate(self._handle, len(data))
            return
        with _temporary(self.path, self.name) as (temporary, handle):
            _write_all(handle, data)
            os.fsync(handle)
            fresh = os.open(temporary, os.O_RDWR | os.O_APPEND)
            try:
                _lock(fresh, self.name)  # before it has the name, so that nobody else can lock it first
                os.replace(temporary, self.path)
            except BaseException:
                os.close(fresh)
                raise
            self.close()
            self._handle = fresh
            _sync_folder(self.path.parent)

    def append(self, entries: Iterable[Any]) -> None:
        """Append a JSON line for each entry, in one write, and flush it to the disk.

        Raises:
            OutputError: the disk is full; the file is then as before.
        """
        size = os.fstat(self._handle).st_size
        try:
            _append(self._handle, entries)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, size)
            raise _failed(self.name, error) from error

    def _read(self) -> bytes:
        with open(os.dup(self._handle), "rb") as file:
            file.seek(0)
            return file.read()

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, tail = data.split(b"\n")
        return [*lines, tail] if tail and not _is_cut(tail) else lines


def _is_cut(tail: bytes) -> bool:
    """Whether this is the beginning of a line that `_json_line` writes, and not all of it."""
    if tail[:2] != b'{"'[: len(tail)]:
        return False
    try:
        json.loads(tail)
    except ValueError:
        return True
    return False


def _append(handle: int, entries: Iterable[Any]) -> None:
    data = b"".join(_json_line(entry) for entry in entries)
    size = os.fstat(handle).st_size
    if size and data and os.pread(handle, 1, size - 1) != b"\n":
        data = b"\n" + data  # the last line was cut off; it spoils no other
    _write_all(handle, data)
    os.fsync(handle)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


@contextmanager
def _temporary(target: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A new file beside `target`, with its permissions; removed unless it was renamed."""
    temporary = target.with_name(f".fourdthinker-{secrets.token_hex(6)}.part")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise _failed(name, error) from error
    try:
        with suppress(FileNotFoundError):
            os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        yield temporary, handle
    except OSError as error:
        raise _failed(name, error) from error
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)  # after the rename there is none


def _open_locked(target: Path, name: str) -> int:
    while True:
        try:
            handle = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise _failed(name, error) from error
        try:
            _lock(handle, name)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(target)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its writer has replaced the file since it was opened: lock the new one


def _lock(handle: int, name: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{name}: another process is writing this file; wait for it to end, or name another file"
        ) from error
    except OSError as error:
        log.warning(
            "%s: this file system has no locks (%s); let no other process write it", name, error.strerror
        )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def _no_folder(folder: Path) -> OutputError:
    """The error for a folder that cannot be, since it or one above it is something else."""
    found = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return OutputError(f"{found} is not a folder, and one is needed; name another")


def _failed(name: str, error: OSError) -> OutputError:
    return OutputError(f"{name}: cannot be written ({error.strerror or error}); name another file or disk")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
