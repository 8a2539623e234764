"""Whole files, written at once: a reader sees the old file or the new one and never a half."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from fourdthinker.files.paths import PathLike, failed, make_folder, output_path

# Names of what a killed process left half written.
UNFINISHED = re.compile(r"\.fourdthinker-[0-9a-f]{12}\.part")


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
    with temporary_file(target, os.fspath(path)) as (temporary, handle):
        with os.fdopen(os.dup(handle), "wb") as file:
            yield file
        if sync:
            os.fsync(handle)
        os.replace(temporary, target)
        if sync:
            sync_folder(target.parent)


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


@contextmanager
def temporary_file(target: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A new file beside `target`, with its permissions; removed unless it was renamed.

    Args:
        target: where the file will be renamed to.
        name: as the user named it, for messages.

    Yields:
        (path, handle) of the file, open for reading and writing.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = target.with_name(f".fourdthinker-{secrets.token_hex(6)}.part")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise failed(name, error) from error
    try:
        with suppress(FileNotFoundError):
            os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        yield temporary, handle
    except OSError as error:
        raise failed(name, error) from error
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)  # after the rename there is none


@contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """What fails while a library writes a file or a folder, by name.

    Args:
        path: the file or folder, for messages.

    Yields:
        Nothing.

    Raises:
        OutputError: the disk is full, or whatever else the system says.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise failed(os.fspath(path), error) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # of torch.save, whose errors have no class of their own
            raise
        raise failed(os.fspath(path), error) from error


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Put the data of a file on the disk, whoever wrote it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Put all files below a folder, and their names, on the disk.

    Other processes may write there meanwhile; what they rename or remove is left to them.
    """
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sync_file(Path(path, name))
        with suppress(FileNotFoundError):
            sync_folder(Path(path))
