"""When pictures are shown, and what a file says of it: true, in the order of storage, and other ways."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from tests.oracle.coded import Coded

BASE = 90_000  # ticks a second
SLACK = 45  # ticks; decoding times move down by so many where presentation times do not tell them apart


def even(count: int, step: int, start: int = 0) -> list[int]:
    """Presentation times of pictures at a constant rate, in ticks."""
    return [start + k * step for k in range(count)]


def uneven(count: int, step: int, draw: random.Random) -> list[int]:
    """Gaps of a quarter to five times the step."""
    times = [0]
    for _ in range(count - 1):
        times.append(times[-1] + draw.choice((step // 4, step, step, step, 2 * step, 5 * step)))
    return times


def jittered(count: int, step: int, draw: random.Random) -> list[int]:
    """Moved by less than half a step: their order stays."""
    return [k * step + draw.randrange(-step // 3, step // 3) + step for k in range(count)]


def duplicated(count: int, step: int, draw: random.Random) -> list[int]:
    """Some pictures have the time of the one before them."""
    same = set(draw.sample(range(1, count), max(1, count // 8)))
    return [(k - 1 if k in same else k) * step for k in range(count)]


def in_order_of_display(packets: Sequence[Coded], times: Sequence[int]) -> list[int]:
    """True stamps: each packet has the time of its picture."""
    return [times[coded.number] for coded in packets]


def in_order_of_storage(packets: Sequence[Coded], times: Sequence[int]) -> list[int]:
    """As after copying a raw stream: the k-th packet has the k-th time, whichever picture it holds."""
    return list(times[: len(packets)])


def exchanged(packets: Sequence[Coded], times: Sequence[int], draw: random.Random) -> list[int]:
    """True stamps, but for some pictures that have their neighbour's."""
    times = list(times)
    for k in draw.sample(range(1, len(times) - 1), max(1, len(times) // 6)):
        times[k], times[k + 1] = times[k + 1], times[k]
    return in_order_of_display(packets, times)


def decoding_times(pts: Sequence[int], step: int) -> list[int]:
    """Increasing, none after its packet's presentation time, as muxers want them."""
    ordered = sorted(pts)
    delay = max(place - ordered.index(stamp) for place, stamp in enumerate(pts))
    slack = SLACK if len(set(pts)) < len(pts) else 0
    early = [ordered[0] - (delay - k) * step for k in range(delay)] + ordered
    result: list[int] = []
    for place in range(len(pts)):
        least = result[-1] + 1 if result else early[place] - slack
        result.append(max(early[place] - slack, least))
    return result


def write(packets: Sequence[Coded], pts: Sequence[int], dts: Sequence[int], durations: Sequence[int]) -> None:
    """Give packets these stamps."""
    for coded, presented, decoded, duration in zip(packets, pts, dts, durations, strict=True):
        coded.packet.time_base = Fraction(1, BASE)
        coded.packet.pts, coded.packet.dts, coded.packet.duration = presented, decoded, duration
