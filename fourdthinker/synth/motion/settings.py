"""The thresholds behind every motion label."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fourdthinker.errors import ConfigError


@dataclass(frozen=True)
class MotionSettings:
    """When a move begins and ends, and what is too unclear to be named.

    Lengths are metres for metric tracks. For others, the values that end in `_relative` hold; their unit is
    the median depth of the scene.

    Attributes:
        rotation: degrees a second from which a pan, tilt or roll is one.
        translation: metres a second from which a dolly, truck or pedestal is one.
        translation_relative: the same without scale.
        object_speed: metres a second from which an object moves.
        object_speed_relative: the same without scale.
        keep: within a move the rate may sink to this share of the threshold; at its ends it is the threshold.
        concurrent: share of the largest rotation (or translation) rate at an instant that another one needs
            to be named beside it. 0.5 is an angle of 27 degrees: a walk with the camera 20 degrees down is
            one forward.
        smoothing: standard deviation in seconds of the symmetric kernel over the camera's rates.
        object_smoothing: the same over an object's velocity.
        min_duration: seconds that a move lasts at least; shorter pauses do not end one.
        min_confidence: instants whose pose is less sure are not labelled.
        margin: degrees to the nearest other direction within which an object's direction is unclear.
        closer: ratio of distances, last to first, below which an object comes closer; above its inverse it
            gets farther.
        same: ratio below which (and above whose inverse) the distance stays the same.
        speed_change: change of the speed, as a share of its mean, up to which it is constant, and from which
            on a rise or a fall counts.

    Raises:
        ConfigError: a value out of range.
    """

    rotation: float = 5.0
    translation: float = 0.12
    translation_relative: float = 0.05
    object_speed: float = 0.15
    object_speed_relative: float = 0.05
    keep: float = 0.5
    concurrent: float = 0.5
    smoothing: float = 0.1
    object_smoothing: float = 0.15
    min_duration: float = 0.4
    min_confidence: float = 0.3
    margin: float = 5.0
    closer: float = 0.84
    same: float = 1.045
    speed_change: float = 0.35

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ConfigError(f"motion: {item.name} is {value!r}; give a finite number above 0")
        for name in ("keep", "concurrent", "min_confidence", "closer"):
            if getattr(self, name) > 1:
                raise ConfigError(f"motion: {name} is {getattr(self, name)}; it is a share, give 1 or less")
        if not 1 < self.same < 1 / self.closer:
            raise ConfigError(
                f"motion: same is {self.same}; give a ratio above 1 and below 1 / closer = "
                f"{1 / self.closer:g}"
            )
