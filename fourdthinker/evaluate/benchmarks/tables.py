"""Rows of the files that benchmarks come in: parquet, TSV and CSV, JSON lists and JSONL."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError, RecordError, install
from fourdthinker.files import parse_json, read_regular

_PART = re.compile(r"(.+)-(\d+)-of-(\d{1,5})(\.\w+)")  # how the Hub names the parts of a table
_LONGEST_FIELD = 16 << 20  # characters; the csv module's own limit of 128 KiB is below what a cell may hold


class TableRow:
    """One row of a file: its values by column, and where it stands."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise RecordError(
                f"{self.where}: no column {key!r}; there are {', '.join(map(repr, self.values))}. "
                "Is this the file of that benchmark?"
            )
        return self.values[key]

    def first(self, *keys: str) -> Any:
        """The value of the first of these columns that is there.

        Raises:
            RecordError: none is.
        """
        return self[next((key for key in keys if key in self.values), keys[0])]

    def text(self, *keys: str) -> str:
        """As `first`, a text that is not blank; a whole number is written out.

        Raises:
            RecordError: something else.
        """
        value = self.first(*keys)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise RecordError(f"{self.where}: {' or '.join(keys)} is {value!r:.60}; it must be a text")
        return str(value).strip()


def find_table(path: Path, patterns: tuple[str, ...], needs: str) -> list[Path]:
    """The table of a benchmark: `path` itself, or the first file in the folder that fits one of `patterns`.

    Args:
        path: a file, or a folder, which is searched with those in it.
        patterns: glob patterns of file names, the preferred first.
        needs: what the benchmark needs, for the error.

    Returns:
        The file; of one that is a part, such as test-00000-of-00002.parquet, all parts in order.

    Raises:
        ConfigError: there is none, or a part is missing.
    """
    if path.is_file():
        return _parts(path)
    for pattern in patterns:
        found = sorted(p for p in path.rglob(pattern) if p.is_file())
        if found:
            return _parts(found[0])
    raise ConfigError(f"{path}: no file {' or '.join(patterns)} in it; the benchmark needs {needs}")


def _parts(file: Path) -> list[Path]:
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    stem, first, number, suffix = match.groups()
    width = len(first)
    parts = [file.with_name(f"{stem}-{k:0{width}}-of-{number}{suffix}") for k in range(int(number))]
    missing = [part.name for part in parts if not part.is_file()]
    if missing or file not in parts:
        raise ConfigError(
            f"{file} is one of {int(number)} parts; missing: {', '.join(missing[:3]) or 'none'}"
            f"{', ...' if len(missing) > 3 else ''}; fetch all of them into that folder"
        )
    return parts


def read_rows(path: Path) -> list[TableRow]:
    """All rows of a file, which its suffix tells the form of.

    Args:
        path: .parquet, .tsv, .csv, .json (a list of objects) or .jsonl.

    Returns:
        The rows, in order.

    Raises:
        ConfigError: another suffix, or parquet without pyarrow.
        RecordError: names the file, and the row where it can.
    """
    suffix = path.suffix.lower()
    readers = {".parquet": _parquet, ".tsv": _separated, ".csv": _separated, ".json": _json, ".jsonl": _jsonl}
    if suffix not in readers:
        raise ConfigError(f"{path}: suffix {suffix!r} is none of {', '.join(readers)}; name such a file")
    rows = [
        TableRow(values, f"{path}: row {number}") for number, values in enumerate(readers[suffix](path), 1)
    ]
    if not rows:
        raise RecordError(f"{path}: no rows; is the file complete?")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow, which is not installed; {install('eval')}"
        ) from error
    try:
        return list(parquet.ParquetFile(path).read().to_pylist())
    except (ArrowException, OSError, ValueError) as error:
        raise RecordError(f"{path}: not a parquet file that can be read ({error}); fetch it anew") from error


def _separated(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_FIELD)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    table = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    try:
        for number, values in enumerate(table, 1):
            if None in values or None in values.values():
                raise RecordError(
                    f"{path}: row {number} has another number of fields than the header's "
                    f"{len(table.fieldnames or ())}; is the file complete?"
                )
            yield dict(values)
    except csv.Error as error:
        raise RecordError(f"{path}: line {table.line_num}: {error}; is the file complete?") from error


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        data = parse_json(read_regular(path), finite=False)
    except ValueError as error:
        raise RecordError(f"{path}: malformed JSON ({error}); fetch it anew") from error
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise RecordError(f"{path}: not a JSON list of objects; is this the file of that benchmark?")
    return data


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            data = parse_json(line, finite=False)
        except ValueError as error:
            raise RecordError(f"{path}:{number}: malformed JSON ({error}); fetch the file anew") from error
        if not isinstance(data, dict):
            raise RecordError(f"{path}:{number}: a JSON {type(data).__name__}, not an object")
        yield data


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}; fetch it anew") from error
