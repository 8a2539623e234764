"""Which frame is shown at a time, and the rate of the times that were chosen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from fourdthinker.frames.policy import FramePolicy

NEAR = 1e-6  # seconds: what rounding and decimal notation take away from a time


def hold(begin: Sequence[float], time: float) -> int:
    """Index of the frame that is shown at `time`, by the times at which the presentation of each begins."""
    return max(0, bisect_right(begin, time + NEAR) - 1)


def rate(times: Sequence[float], policy: FramePolicy) -> tuple[float, float]:
    """(frames a second, seconds per temporal patch of two frames) of the times of a clip."""
    step = max(0.0, times[1] - times[0]) if len(times) > 1 else 1.0 / policy.fps
    return (1.0 / step if step > 0 else policy.fps), 2.0 * step
