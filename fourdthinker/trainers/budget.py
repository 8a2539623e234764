"""Cutting the items of an update into forwards: by a budget of tokens, as many on every rank, by halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def cut(items: Sequence[int], cost: Callable[[Sequence[int]], int], budget: int | None) -> list[list[int]]:
    """Consecutive items that go through one forward together.

    Args:
        items: in the order in which they are to stay, alike ones beside each other.
        cost: the positions that a forward of some items has, padding included.
        budget: of a forward; an item that costs more than that goes alone. None: all go together.

    Returns:
        The parts, one at least; every item once, in order.
    """
    if budget is None:
        return [list(items)]
    parts: list[list[int]] = [[]]
    for item in items:
        if parts[-1] and cost([*parts[-1], item]) > budget:
            parts.append([])
        parts[-1].append(item)
    return parts


def cut_into(parts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Exactly `count` parts of some that are at most as many: the largest are halved, then empty ones added.

    Every rank runs as many forwards, or collectives would hang.
    """
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        if len(parts[largest]) < 2:
            return parts + [[] for _ in range(count - len(parts))]
        parts[largest : largest + 1] = halves(parts[largest])
    return parts


def halves(part: list[int]) -> list[list[int]]:
    """A part in two; one of fewer than two items stays as it is."""
    middle = len(part) // 2
    return [part[:middle], part[middle:]] if middle else [part]
