"""What a viewer sees of a track: positions and headings in its axes, and words for them and their change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.tracks import CameraTrack, ObjectTrack

Array = NDArray[np.float64]

COMPONENT = 0.3  # of a unit vector: from here on a direction is named (DSR's threshold)
UNCLEAR = 0.06  # a component so near to the threshold makes the direction unclear
CHANGED, SAME = 1.2, 1.06  # ratios: a change from here on; none up to here; unclear between


@dataclass(frozen=True)
class Viewer:
    """Who sees: the camera, or an object that has a heading.

    Attributes:
        times: float64 [T], seconds.
        positions: float64 [T, 3], world.
        axes: float64 [T, 3, 3], rows right, down, forward, world.
    """

    times: Array
    positions: Array
    axes: Array


def camera_viewer(camera: CameraTrack) -> Viewer:
    """The camera as a viewer."""
    axes = np.swapaxes(camera.poses[:, :3, :3], 1, 2)
    return Viewer(camera.times, camera.poses[:, :3, 3], axes)


def object_viewer(track: ObjectTrack, camera: CameraTrack) -> Viewer | None:
    """An object as a viewer: it faces its heading, upright as the camera is; None without a heading.

    Args:
        track: the object.
        camera: its mean downward axis is the world's.

    Returns:
        The viewer.
    """
    if track.heading is None:
        return None
    down = camera.poses[:, :3, 1].mean(axis=0)
    forward = track.heading - np.outer(track.heading @ down, down) / max(1e-12, float(down @ down))
    lengths = np.linalg.norm(forward, axis=1)
    if lengths.min() < 1e-3 or np.linalg.norm(down) < 0.5:  # it faces up or down, or the camera rolls about
        return None
    forward = forward / lengths[:, None]
    below = np.broadcast_to(down / np.linalg.norm(down), forward.shape)
    axes = np.stack([np.cross(below, forward), below, forward], axis=1)
    return Viewer(track.times, track.positions, axes)


def interpolate(times: Array, values: Array, instants: Sequence[float]) -> Array:
    """Values [T, ...] at other times, linear between neighbours, the first and last outside.

    Args:
        times: float64 [T], increasing.
        values: float64 [T, ...].
        instants: seconds.

    Returns:
        float64 [len(instants), ...].
    """
    flat = values.reshape(len(times), -1)
    found = np.stack([np.interp(instants, times, column) for column in flat.T], axis=-1)
    return found.reshape(len(instants), *values.shape[1:])


def _axes_of(viewer: Viewer, instants: Sequence[float]) -> Array:
    """Axes of the nearest sample of each instant: rotations are not to be averaged."""
    nearest = np.abs(viewer.times[None] - np.asarray(instants)[:, None]).argmin(axis=1)
    return viewer.axes[nearest]


def seen_from(viewer: Viewer, track: ObjectTrack, instants: Sequence[float], *, fixed: bool) -> Array:
    """Positions of an object in a viewer's axes.

    Args:
        viewer: who sees.
        track: the object.
        instants: seconds.
        fixed: the viewer stays as it was at the first instant; else it is followed.

    Returns:
        float64 [N, 3]: right, down, forward.
    """
    when = [instants[0]] * len(instants) if fixed else instants
    offset = interpolate(track.times, track.positions, instants) - interpolate(
        viewer.times, viewer.positions, when
    )
    return np.einsum("nij,nj->ni", _axes_of(viewer, when), offset)


def faced_from(viewer: Viewer, track: ObjectTrack, instants: Sequence[float], *, fixed: bool) -> Array | None:
    """Headings of an object in a viewer's axes, as `seen_from`; None where it has none."""
    if track.heading is None:
        return None
    heading = interpolate(track.times, track.heading, instants)
    when = [instants[0]] * len(instants) if fixed else instants
    return np.einsum("nij,nj->ni", _axes_of(viewer, when), heading)


def direction_word(vector: Array, words: Sequence[tuple[str, str]]) -> str | None:
    """The components of a vector that count, joined: "front-left"; None where one hardly does or does not.

    Args:
        vector: float64 [3]: right, down, forward.
        words: names for the negative and the positive direction of forward, right and down, in this order.

    Returns:
        The word.
    """
    length = float(np.linalg.norm(vector))
    if length < 1e-9:
        return None
    unit = vector[[2, 0, 1]] / length
    if (np.abs(np.abs(unit) - COMPONENT) < UNCLEAR).any():
        return None
    return "-".join(
        pair[int(value > 0)] for pair, value in zip(words, unit, strict=True) if abs(value) > COMPONENT
    )


def change_word(before: float, after: float, words: tuple[str, str, str]) -> str | None:
    """The word for a growth, for a shrinking and for neither, of a quantity above 0; None where unclear."""
    ratio = after / before if before > 0 else np.inf
    if ratio >= CHANGED:
        return words[0]
    if ratio <= 1 / CHANGED:
        return words[1]
    return words[2] if 1 / SAME <= ratio <= SAME else None


def change_words(values: Sequence[float], words: tuple[str, str, str]) -> list[str] | None:
    """The word of each step from one value to the next; None where one is unclear."""
    found = [change_word(a, b, words) for a, b in pairwise(values)]
    return None if None in found else [word for word in found if word]


def speeds(positions: Array, instants: Sequence[float]) -> Array:
    """Mean speed between neighbouring instants, float64 [N - 1], from positions [N, 3]."""
    return np.linalg.norm(np.diff(positions, axis=0), axis=1) / np.diff(np.asarray(instants))


def spread(start: float, end: float, number: int) -> tuple[float, ...]:
    """That many instants from start to end, evenly."""
    return tuple(float(t) for t in np.linspace(start, end, number))
