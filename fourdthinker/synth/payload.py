"""Results of stages as bytes: compressed JSON in which arrays are base64, so that reading runs no code."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from typing import Any

import numpy as np

_ARRAY = "__array__"


def dumps(value: Any) -> bytes:
    """Bytes of a value.

    Args:
        value: numbers, texts, None, lists, tuples (read back as lists), dicts, arrays and dataclasses (read
            back as dicts).

    Returns:
        What `loads` takes; equal values give equal bytes.
    """
    return zlib.compress(
        json.dumps(value, default=_plain, sort_keys=True).encode("utf-8", "surrogatepass"), 6
    )


def loads(data: bytes) -> Any:
    """Inverse of `dumps`.

    Raises:
        ValueError: the bytes are damaged.
    """
    try:
        return json.loads(zlib.decompress(data).decode("utf-8", "surrogatepass"), object_hook=_object)
    except zlib.error as error:
        raise ValueError(f"damaged result in the journal ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return {_ARRAY: [array.dtype.str, list(array.shape), base64.b64encode(array.tobytes()).decode()]}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.decode("ascii")
    raise TypeError(f"a {type(value).__name__} cannot be kept in the journal")


def _object(found: dict[str, Any]) -> Any:
    if found.keys() != {_ARRAY}:
        return found
    kind, shape, data = found[_ARRAY]
    dtype = np.dtype(kind)
    if dtype.hasobject:
        raise ValueError("an array of objects in the journal")
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
