"""JSON values of other types than a reader expects, each in the place of every value of a sound object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (None, "s", 3, [], [None], {}, {"s": None}, True, -1.5, 10**300, 1e308)


def spoilt(sound: Any, odd: Any) -> Iterator[Any]:
    """`sound` with one of its values replaced by `odd`, at any depth, then with the next one."""
    keys = sound.items() if isinstance(sound, dict) else enumerate(sound) if isinstance(sound, list) else ()
    for key, value in list(keys):
        for other in (odd, *spoilt(value, odd)):
            copy = dict(sound) if isinstance(sound, dict) else list(sound)
            copy[key] = other
            yield copy
