"""JSONL files, written line by line by one process at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from fourdthinker.files.locks import close_locked, lock, open_locked
from fourdthinker.files.paths import PathLike, failed, output_path
from fourdthinker.files.reading_json import parse_json
from fourdthinker.files.whole import sync_folder, temporary_file


def check_output(path: PathLike) -> None:
    """Whether a file can be written, asked before long work. Creates nothing.

    Raises:
        OutputError: as `output_path`, or another process is writing the file.
    """
    target = output_path(path)
    if target.exists():
        close_locked(open_locked(target, os.fspath(path)))


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
        raise failed(name, error) from error
    try:
        _append(handle, entries)
    except OSError as error:
        raise failed(name, error) from error
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
        self._handle = open_locked(self.path, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write the file."""
        close_locked(self._handle)

    def lines(self) -> list[bytes]:
        """The whole lines of the file.

        A last line without its newline counts when it is whole JSON, or is nothing that this class has
        written; then it is for the caller to judge.
        """
        return whole_lines(self._read())

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
        if now.startswith(data) and whole_lines(now) == list(lines):
            os.ftruncate(self._handle, len(data))
            return
        with temporary_file(self.path, self.name) as (temporary, handle):
            _write_all(handle, data)
            os.fsync(handle)
            fresh = os.open(temporary, os.O_RDWR | os.O_APPEND)
            try:
                lock(fresh, self.name)  # before it has the name, so that nobody else can lock it first
                os.replace(temporary, self.path)
            except BaseException:
                os.close(fresh)
                raise
            self.close()
            self._handle = fresh
            sync_folder(self.path.parent)

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
            raise failed(self.name, error) from error

    def _read(self) -> bytes:
        with open(os.dup(self._handle), "rb") as file:
            file.seek(0)
            return file.read()


def whole_lines(data: bytes) -> list[bytes]:
    """The lines of a JSONL file that we write, without one that a kill has cut off.

    Args:
        data: of the whole file.

    Returns:
        The lines, without their newlines.
    """
    *lines, tail = data.split(b"\n")
    return [*lines, tail] if tail and not _is_cut(tail) else lines


def _is_cut(tail: bytes) -> bool:
    """Whether this is the beginning of a line that `_json_line` writes, and not all of it."""
    if tail[:2] != b'{"'[: len(tail)]:
        return False
    try:
        parse_json(tail, finite=False)
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
