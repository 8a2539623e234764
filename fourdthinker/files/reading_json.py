"""Reading JSON that others wrote: every fault is a `ValueError` of one line, and nesting is bounded."""

from __future__ import annotations

import json
import math
from typing import Any

from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.files.paths import PathLike, read_regular

DEEPEST = 100  # levels of nesting; what walks over the value stays far from Python's own limit
_DIGITS = 308  # of an integer that a float holds


def parse_json(data: bytes | str, *, finite: bool = True, unique_keys: bool = False) -> Any:
    """A JSON value.

    Args:
        data: UTF-8, with or without a byte order mark, or a text.
        finite: whether NaN, infinities and numbers beyond the range of a float are refused. False for what
            may hold measurements of our own or comes from libraries that write NaN.
        unique_keys: whether a key that stands twice in one object is refused; of two, the last counts.

    Returns:
        The value.

    Raises:
        ValueError: not UTF-8, not JSON, more than `DEEPEST` levels, or what the arguments refuse.
    """
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    hooks: dict[str, Any] = {"object_pairs_hook": _unique} if unique_keys else {}
    if finite:
        hooks |= {"parse_constant": _constant, "parse_float": _float, "parse_int": _int}
    try:
        value = json.loads(data, **hooks)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if data.count("[") + data.count("{") > DEEPEST and isinstance(value, list | dict) and _is_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


def read_json_object(
    path: PathLike, remedy: str, *, error: type[FourdError] = ConfigError, finite: bool = True
) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: a regular file.
        remedy: what to do about a wrong one, for the message.
        error: what is raised.
        finite: as for `parse_json`.

    Returns:
        The object.

    Raises:
        FourdError: of the class `error`, names the file: it cannot be read, is no regular file, is no JSON
            or holds something else than an object.
    """
    try:
        value = parse_json(read_regular(path), finite=finite)
    except ConfigError as cause:
        raise error(str(cause)) from cause
    except ValueError as cause:
        raise error(f"{path}: malformed JSON ({cause}); {remedy}") from cause
    if not isinstance(value, dict):
        raise error(f"{path}: a JSON {type(value).__name__}, not an object; {remedy}")
    return value


_TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {max(keys, key=keys.count)!r} appears twice in one object")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is beyond the range of a float")
    return value


def _int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"an integer of {len(text)} digits is beyond the range of a float")
    return int(text)
