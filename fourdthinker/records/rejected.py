"""The file of the lines that a reading of records left out."""

from __future__ import annotations

import os
from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.files import PathLike, output_path, parse_json, read_regular, write_bytes

_KEYS = {"where", "reason", "line"}


def empty_rejected(path: PathLike) -> None:
    """Empty a file of lines that an earlier reading left out; where there is none, do nothing.

    Args:
        path: the file, as `read_records(rejected=)` and the trainers write it. A link stays a link.

    Raises:
        ConfigError: as `check_rejected`.
        OutputError: likewise.
    """
    check_rejected(path)
    if Path(path).exists():
        write_bytes(path, b"")


def check_rejected(path: PathLike) -> None:
    """Whether a file, where there is one, holds lines that an earlier reading left out, and no others.

    Args:
        path: as for `empty_rejected`.

    Raises:
        ConfigError: it holds anything else.
        OutputError: it cannot be written.
    """
    if not Path(path).exists():
        return
    output_path(path)
    *lines, tail = read_regular(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line and not _is_rejected(line):
            raise _other(path, number)
    if tail and not (tail.startswith(b'{"where": ') or _is_rejected(tail)):  # a kill may have cut it off
        raise _other(path, len(lines) + 1)


def _is_rejected(line: bytes) -> bool:
    try:
        entry = parse_json(line)
    except ValueError:
        return line.startswith(b'{"where": ')  # cut off, and fenced off by the line after it
    return isinstance(entry, dict) and {"where", "reason"} <= entry.keys() <= _KEYS


def _other(path: PathLike, number: int) -> ConfigError:
    return ConfigError(
        f"{os.fspath(path)}:{number}: no line of a file of rejected records, which would be replaced here; "
        "move the file away, or name another output"
    )
