"""The one sampling rule: which frames of a video the model sees, of what size, and at what rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from fourdthinker.errors import ConfigError

RESAMPLES = ("lanczos", "bicubic")
FASTEST = 1e6  # frames a second: above it, frames lie nearer than times can tell apart
NEAR = 1e-6  # seconds: what rounding and decimal notation take away from a time


def _described(default: Any, text: str, **limits: Any) -> Any:
    """A field with the explanation and limits that are checked, and shown by `--help` and docs/settings.md.

    Args:
        default: of the field.
        text: the explanation.
        **limits: `minimum` (itself allowed), `above` with `maximum`, or `choices`.
    """
    return field(default=default, metadata={"help": text, **limits})


def _wanted(value: Any, limits: Mapping[str, Any]) -> str | None:
    """What to give instead of a value outside the limits of its field, or None for one inside."""
    if "choices" in limits:
        return None if value in limits["choices"] else f"choose one of {', '.join(limits['choices'])}"
    if "maximum" in limits and not limits["above"] < value <= limits["maximum"]:
        return f"give a number above {limits['above']}, and at most {limits['maximum']:g}"
    if "minimum" in limits and value < limits["minimum"]:
        return f"give at least {limits['minimum']}"
    return None


@dataclass(frozen=True)
class FramePolicy:
    """One sampling rule for synthesis, training, evaluation and generation; saved with the checkpoint.

    The defaults are those of the 4DThinker paper.

    Attributes:
        fps: frames a second.
        max_frames, min_frames: bounds on the number of frames.
        max_pixels, min_pixels: bounds on height * width of a resized frame.
        factor: both sides of a resized frame are multiples of it (patch size * merge size: 28 for Qwen2.5-VL,
            32 for Qwen3-VL).
        resample: "lanczos" or "bicubic", both antialiased.

    Raises:
        ConfigError: a value out of range.
    """

    fps: float = _described(1.0, "Frames a second.", above=0, maximum=FASTEST)
    max_frames: int = _described(50, "Frames at most; longer clips are sampled more thinly.", minimum=1)
    min_frames: int = _described(1, "Frames at least; shorter clips are sampled more densely.", minimum=1)
    max_pixels: int = _described(256 * 28 * 28, "Height * width of a resized frame at most.", minimum=4)
    min_pixels: int = _described(28 * 28, "Height * width of a resized frame at least.", minimum=1)
    factor: int = _described(
        28, "Both sides are multiples of it, an even number: 28 for Qwen2.5-VL, 32 for Qwen3-VL.", minimum=2
    )
    resample: str = _described("lanczos", "Filter, antialiased.", choices=RESAMPLES)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, whole = getattr(self, f.name), f.name not in ("fps", "resample")
            kind = str if f.name == "resample" else Integral if whole else Real
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "text" if kind is str else "a whole number" if whole else "a number"
                raise ConfigError(f"frame policy: {f.name} is {value!r}; give {what}")
            if (wanted := _wanted(value, f.metadata)) is not None:
                raise ConfigError(f"frame policy: {f.name} is {value!r}; {wanted}")
        if self.min_frames > self.max_frames:
            raise ConfigError(
                f"frame policy: min_frames is {self.min_frames} and max_frames {self.max_frames}; "
                "min_frames <= max_frames must hold"
            )
        if self.factor % 2:
            raise ConfigError(
                f"frame policy: factor is {self.factor}; give an even number, 28 or 32 for the Qwen families"
            )
        if not (self.min_pixels <= self.max_pixels and self.factor**2 <= self.max_pixels):
            raise ConfigError(
                f"frame policy: min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; "
                f"min_pixels <= max_pixels and {self.factor**2} (factor squared) <= max_pixels must hold"
            )

    def times(self, duration: float, start: float = 0.0) -> list[float]:
        """Times, in seconds, of the frames that are taken of a clip.

        N = max(1, ceil(duration * fps - 1e-6)) frames, 1/fps apart. Where N is out of [min_frames,
        max_frames], it becomes that bound, and the frames are duration/N apart.

        Args:
            duration: of the clip in seconds.
            start: when it begins.

        Returns:
            N times, increasing, the first of them `start`.

        Raises:
            ConfigError: a number that is not finite, or a negative duration.
        """
        if not (math.isfinite(duration) and duration >= 0 and math.isfinite(start)):
            raise ConfigError(
                f"frame times: duration {duration} and start {start} must be finite, duration >= 0"
            )
        number = max(1, math.ceil(duration * self.fps - 1e-6))
        kept = min(max(number, self.min_frames), self.max_frames)
        step = 1.0 / self.fps if kept == number else duration / kept
        return [start + k * step for k in range(kept)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture is resized to.

        Above max_pixels: scaled by the square root of the ratio, each side floored to a multiple of factor.
        Otherwise each side is rounded to the nearest multiple. Where that falls below min_pixels, sides are
        scaled up and rounded up; where it exceeds max_pixels, they are floored as above. No side is below one
        factor, and no size above max_pixels (extreme shapes lose their ratio for it).

        Args:
            height: of the picture, in pixels.
            width: of the picture, in pixels.

        Returns:
            (height, width) of the result, multiples of `factor`.

        Raises:
            ConfigError: a side below 1.
        """
        if height < 1 or width < 1:
            raise ConfigError(f"frame size: a picture of {height}x{width} pixels has no content")
        f = self.factor
        new_h, new_w = max(f, round(height / f) * f), max(f, round(width / f) * f)
        if new_h * new_w < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            new_h, new_w = math.ceil(height * scale / f) * f, math.ceil(width * scale / f) * f
        if max(height * width, new_h * new_w) > self.max_pixels:
            scale = math.sqrt(self.max_pixels / (height * width))
            new_h, new_w = max(f, int(height * scale) // f * f), max(f, int(width * scale) // f * f)
        if new_h * new_w > self.max_pixels:  # one side is a single factor: shorten the other
            new_h = min(new_h, max(f, self.max_pixels // (new_w * f) * f))
            new_w = min(new_w, self.max_pixels // (new_h * f) * f)
        return new_h, new_w

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a checkpoint's frame_policy.json. `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FramePolicy:
        """Inverse of `to_dict`; absent keys take their defaults, unknown ones raise ConfigError."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"frame policy: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)


def hold(begin: Sequence[float], time: float) -> int:
    """Index of the frame that is shown at `time`, by the times at which the presentation of each begins."""
    return max(0, bisect_right(begin, time + NEAR) - 1)


def rate(times: Sequence[float], policy: FramePolicy) -> tuple[float, float]:
    """(frames a second, seconds per temporal patch of two frames) of the times of a clip."""
    step = max(0.0, times[1] - times[0]) if len(times) > 1 else 1.0 / policy.fps
    return (1.0 / step if step > 0 else policy.fps), 2.0 * step
