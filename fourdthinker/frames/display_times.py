"""When the pictures of a stream are shown, where what its packets say of it is not simply believed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal

TimesFrom = Literal["container", "sorted", "rate"]


def increases(stamps: Sequence[int]) -> bool:
    """Whether each stamp is above the one before it."""
    return all(a < b for a, b in pairwise(stamps))


def times_of(
    stored: Sequence[int | None], display: Sequence[int], step: Fraction
) -> tuple[array[int], TimesFrom]:
    """When each picture is shown, in display order, and how that was learnt.

    Args:
        stored: stamps in decoding order, None for a picture that has none.
        display: positions in that order, in the order of display.
        step: from one picture to the next at the rate of the stream, in units of stamps.

    Returns:
        (stamps, never decreasing; how they were learnt). "container": the stamps are there and increase.
        "sorted": the k-th picture is shown at the k-th of the sorted stamps; the first of two that share one
        is never seen. "rate": some or all stamps are missing, and follow from those before them at the
        stream's rate. A stamp that repeats is then that of the last one: a packet of the container held the
        end of a picture, to which no stamp belongs, and the next one.
    """
    stamps = [stored[position] for position in display]
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps):
        return (array("q", known), "container") if increases(known) else (array("q", sorted(known)), "sorted")
    last = {stamp: position for position, stamp in enumerate(stored)}
    single = [stamp if last[stamp] == position else None for position, stamp in enumerate(stored)]
    stamps = [single[position] for position in display]
    if increases([stamp for stamp in stamps if stamp is not None]):
        return array("q", _filled(stamps, step)), "rate"
    return array("q", sorted(_filled(single, step))[: len(display)]), "rate"


def _filled(stamps: Sequence[int | None], step: Fraction) -> list[int]:
    """Missing stamps at the rate from the last that is there, or evenly where they would reach the next."""
    known = [(position, stamp) for position, stamp in enumerate(stamps) if stamp is not None]
    if not known:
        return [round(step * position) for position in range(len(stamps))]
    (first, begin), (last, end) = known[0], known[-1]
    filled = [begin - round(step * (first - position)) for position in range(first)]
    for (before, low), (after, high) in pairwise(known):
        count = after - before
        room = step if low >= high or high - low > step * (count - 1) else Fraction(high - low, count)
        filled += [low + round(room * k) for k in range(count)]
    return filled + [end + round(step * k) for k in range(len(stamps) - last)]
