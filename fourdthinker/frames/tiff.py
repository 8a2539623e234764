"""Whether all strips or tiles of a TIFF are there: Pillow makes zeros, or other bytes, of those that are not.

Source: TIFF 6.0, sections 3 and 15 (strips and tiles; one set of them for each plane of a planar file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_UNCOMPRESSED, _YCBCR, _APART = 1, 6, 2


def check_parts(tags: Mapping[int, Any]) -> None:
    """Refuse a picture that lacks some of its data, by Pillow's `tag_v2`.

    Raises:
        ValueError: there are fewer strips or tiles than the size takes, some are nowhere or empty, or
            uncompressed ones are shorter than their rows.
    """
    tiled = _TILE_OFFSETS in tags
    offsets = _all(tags.get(_TILE_OFFSETS if tiled else _OFFSETS))
    if not offsets:
        return  # a form that Pillow knows otherwise, or refuses
    counts = _all(tags.get(_TILE_COUNTS if tiled else _COUNTS))
    width, height = _first(tags, _WIDTH, 0), _first(tags, _HEIGHT, 0)
    across = _first(tags, _TILE_WIDTH, 0) if tiled else width
    rows = _first(tags, _TILE_LENGTH, 0) if tiled else min(_first(tags, _ROWS, height), height)
    if min(across, rows) < 1:
        raise ValueError("its strips or tiles have no size")
    samples, apart = _first(tags, _SAMPLES, 1), _first(tags, _PLANAR, 1) == _APART
    planes = samples if apart else 1
    parts = -(-width // across) * -(-height // rows)
    kind = "tiles" if tiled else "strips"
    if len(offsets) < planes * parts or (counts and len(counts) < planes * parts):
        present = min(len(offsets), len(counts) or len(offsets))
        raise ValueError(f"it has {present} of the {planes * parts} {kind} that its size takes")
    if not all(offsets) or not all(counts):
        raise ValueError(f"some of its {kind} are missing")
    if _first(tags, _COMPRESSION, 1) != _UNCOMPRESSED or _first(tags, _PHOTOMETRIC, 1) == _YCBCR:
        return
    line = -(-across * _first(tags, _BITS, 1) * (1 if apart else samples) // 8)
    for index, count in enumerate(counts[: planes * parts]):
        last = not tiled and index % parts == parts - 1
        if count < line * (height - rows * (parts - 1) if last else rows):
            raise ValueError(f"one of its {kind} is shorter than its rows: {count} bytes")


def _all(value: Any) -> tuple[int, ...]:
    """Of a tag with one value or several; none: ()."""
    if value is None:
        return ()
    return tuple(int(each) for each in value) if isinstance(value, (tuple, list)) else (int(value),)


def _first(tags: Mapping[int, Any], tag: int, default: int) -> int:
    return (*_all(tags.get(tag)), default)[0]
