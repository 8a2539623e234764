"""What an object does in the world, whatever the camera does: direction, distance to the camera, speed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.synth.motion.rates import longest_run, object_velocity, spans, trimmed, with_hysteresis
from fourdthinker.synth.motion.settings import MotionSettings
from fourdthinker.synth.tracks import (
    OBJECT_DIRECTIONS,
    SPEED_PROFILES,
    STATIONARY,
    Array,
    CameraTrack,
    Move,
    ObjectTrack,
)

_SURE = 0.9  # of the time in which positions must be sure, for a profile of the speed
_LARGER = 1.4  # times `speed_change`, with which a profile must be the same
_STRAIGHT = 0.8  # net displacement over path length from which a path has one direction
_TURN_MARGIN = 5.0  # degrees past a boundary between directions before the label changes


def seen_part(
    item: ObjectTrack, camera: CameraTrack, settings: MotionSettings | None = None
) -> ObjectTrack | None:
    """The longest time in which an object is seen, and the camera's pose known, with no gap above a second.

    Labels and questions are about this part. What a track has of other times is a guess, such as the last
    position that was seen.

    Args:
        item: the object's path.
        camera: the camera's path in the same world.
        settings: the least confidence; None: `MotionSettings()`.

    Returns:
        That part of the track; in gaps positions are interpolated, and the confidence stays as low as it is.
        None where less than two instants are known.

    Raises:
        GeometryError: tracks that do not overlap in time, or of unlike scale.
    """
    settings = settings or MotionSettings()
    _check_pair(item, camera)
    confidence = np.minimum(item.confidence, camera.resampled(item.times).confidence)
    run = longest_run(item.times, confidence >= settings.min_confidence)
    if len(run) < 2:
        return None
    part = slice(int(run[0]), int(run[-1]) + 1)
    known, times = item.times[run], item.times[part]
    return replace(
        item,
        times=times,
        positions=_between(times, known, item.positions[run]),
        otherwise=None if item.otherwise is None else _between(times, known, item.otherwise[run]),
        confidence=confidence[part],
        heading=None if item.heading is None else item.heading[part],
        boxes=None if item.boxes is None else item.boxes[part],
        masks=None if item.masks is None else item.masks[part],
    )


def _between(times: Array, known: Array, values: Array) -> Array:
    return np.stack([np.interp(times, known, axis) for axis in values.T], axis=1)


def _all_seen(item: ObjectTrack, settings: MotionSettings) -> bool:
    """Whether both ends are seen, and no gap between instants that are seen is above a second."""
    run = longest_run(item.times, item.confidence >= settings.min_confidence)
    return len(run) > 1 and int(run[0]) == 0 and int(run[-1]) == len(item.times) - 1


def object_moves(
    item: ObjectTrack, camera: CameraTrack, settings: MotionSettings | None = None
) -> tuple[Move, ...]:
    """The moves of an object in the world, in the words of the camera that first saw it.

    Args:
        item: the object's path.
        camera: the camera's path in the same world; its pose when the object is first seen gives the axes.
        settings: thresholds; None: `MotionSettings()`.

    Returns:
        Moves by start, one after the other: directions and "stationary". Instants between both thresholds, or
        unsure, are not labelled.

    Raises:
        GeometryError: fewer than two positions, tracks that do not overlap in time, or of unlike scale.
    """
    settings = settings or MotionSettings()
    axes = _first_axes(item, camera, settings)
    times, velocity, confidence = object_velocity(item, settings)
    velocity = velocity @ axes  # rows times the columns of the rotation: the camera's axes
    speed = np.linalg.norm(velocity, axis=1)
    threshold = settings.object_speed if item.metric else settings.object_speed_relative
    sure = confidence >= settings.min_confidence
    moving = with_hysteresis(sure & (speed >= threshold), sure & (speed >= settings.keep * threshold))
    found = []
    for first, last in trimmed(spans(moving), speed, threshold):
        found += [(name, first + a, first + b) for name, a, b in _directions(velocity[first:last])]
    found += [(STATIONARY, a, b) for a, b in spans(sure & (speed < settings.keep * threshold))]
    shortest = min(settings.min_duration, 0.9 * (times[-1] - times[0]))
    moves = [
        Move("object", name, float(times[a]), float(times[b - 1]))
        for name, a, b in found
        if times[b - 1] - times[a] >= shortest
    ]
    return tuple(sorted(moves, key=lambda move: move.start))


def object_direction(
    item: ObjectTrack,
    camera: CameraTrack,
    start: float,
    end: float,
    settings: MotionSettings | None = None,
) -> str | None:
    """Where an object goes in the world from start to end, in the words of the camera at the start.

    Args:
        item: the object's path.
        camera: the camera's path in the same world.
        start: seconds.
        end: seconds, after start.
        settings: thresholds; None: `MotionSettings()`.

    Returns:
        One of OBJECT_DIRECTIONS or STATIONARY; None where it is unclear: a path with turns, a direction
        within `settings.margin` of another one, a speed between both thresholds, or an end that is
        not seen, or a gap of more than a second.

    Raises:
        GeometryError: an empty interval, tracks that do not overlap in time, or of unlike scale.
    """
    settings = settings or MotionSettings()
    part = clipped(item, start, end)
    if not _all_seen(part, settings):
        return None
    axes = _first_axes(part, camera, settings)
    _, velocity, confidence = object_velocity(part, settings)
    if confidence.mean() < settings.min_confidence:
        return None
    speed = np.linalg.norm(velocity, axis=1)
    threshold = settings.object_speed if item.metric else settings.object_speed_relative
    if speed.max() < settings.keep * threshold:
        return STATIONARY
    net = (part.positions[-1] - part.positions[0]) @ axes
    length = float(speed.mean() * (part.times[-1] - part.times[0]))
    if speed.mean() < threshold or np.linalg.norm(net) < _STRAIGHT * length:
        return None
    outside = _outside(net[None])[0]
    return OBJECT_DIRECTIONS[int(outside.argmin())] if outside.min() <= -settings.margin else None


def distances(item: ObjectTrack, camera: CameraTrack) -> Array:
    """Distance of an object to the camera.

    Args:
        item: the object's track.
        camera: the camera's, in the same world.

    Returns:
        [T], in the unit of the tracks, at the times of the object's track.
    """
    _check_pair(item, camera)
    return np.linalg.norm(item.positions - camera.resampled(item.times).centres, axis=1)


def distance_change(
    item: ObjectTrack,
    camera: CameraTrack,
    start: float,
    end: float,
    settings: MotionSettings | None = None,
) -> str | None:
    """How the true distance to the camera changes from start to end; both may move.

    Args:
        item: the object's path.
        camera: the camera's path in the same world.
        start: seconds.
        end: seconds, after start.
        settings: ratios; None: `MotionSettings()`.

    Returns:
        "closer", "farther", "same", or None: a change too small to be named and too large to be none, or
        "same" that hides a detour, an end that is not seen, a gap of more than a second, or two measures of
        the distance that do not agree (`measures_agree`).

    Raises:
        GeometryError: an empty interval, tracks that do not overlap in time, or of unlike scale.
    """
    settings = settings or MotionSettings()
    part = clipped(item, start, end)
    if not _all_seen(part, settings):
        return None
    along, *others = (distances(one, camera) for one in part.readings())
    if not all(measures_agree(along[[0, -1]], other[[0, -1]], settings) for other in others):
        return None
    ratio = float(along[-1] / max(along[0], 1e-9))
    if ratio < settings.closer:
        return "closer"
    if ratio > 1 / settings.closer:
        return "farther"
    spread = float(along.max() / max(along.min(), 1e-9))
    return "same" if 1 / settings.same < ratio < settings.same and spread < 1 / settings.closer else None


def measures_agree(along: Array, other: Array, settings: MotionSettings | None = None) -> bool:
    """Whether two measures of a distance say alike how it changes.

    Args:
        along: [N], the distance by one measure.
        other: [N], by another one, in any unit.
        settings: ratios; None: `MotionSettings()`.

    Returns:
        False where the changes differ by as much as the largest "same" from the least "farther".
    """
    settings = settings or MotionSettings()
    ratio = other / along
    return float(ratio.max() / ratio.min()) < 1 / (settings.closer * settings.same)


def speed_profile(
    item: ObjectTrack, start: float, end: float, settings: MotionSettings | None = None
) -> str | None:
    """How the speed over the world changes from start to end, on the smoothed track.

    Args:
        item: the object's path.
        start: seconds.
        end: seconds, after start.
        settings: thresholds; None: `MotionSettings()`.

    Returns:
        One of SPEED_PROFILES; None where the object hardly moves, its positions are unsure, or twice the
        smoothing or a larger change of speed says another one.

    Raises:
        GeometryError: an empty interval.
    """
    settings = settings or MotionSettings()
    part = clipped(item, start, end)
    more = replace(settings, object_smoothing=2 * settings.object_smoothing)
    larger = replace(settings, speed_change=_LARGER * settings.speed_change)
    found = {_profile(part, one) for one in (settings, more, larger)}
    return found.pop() if len(found) == 1 else None


def _profile(item: ObjectTrack, settings: MotionSettings) -> str | None:
    """The profile of the speed of a whole track at one smoothing."""
    _, velocity, confidence = object_velocity(item, settings)
    sure = confidence >= settings.min_confidence
    if sure.mean() < _SURE:
        return None
    speed = np.linalg.norm(velocity[sure], axis=1)
    mean = float(speed.mean())
    threshold = settings.object_speed if item.metric else settings.object_speed_relative
    if mean < threshold:
        return None
    constant, up, down, up_down, down_up, varying = SPEED_PROFILES
    if speed.max() - speed.min() <= settings.speed_change * mean:
        return constant
    runs = _runs(speed, settings.speed_change * mean)
    return {(1,): up, (-1,): down, (1, -1): up_down, (-1, 1): down_up}.get(runs, varying)


def clipped(item: ObjectTrack, start: float, end: float) -> ObjectTrack:
    """The part of an object's path from start to end, both interpolated; without boxes, masks and heading.

    Args:
        item: the object's path.
        start: seconds.
        end: seconds.

    Returns:
        A shorter track.

    Raises:
        GeometryError: less than two instants of the path are in the interval.
    """
    start, end = max(start, item.times[0]), min(end, item.times[-1])
    if not end > start:
        raise GeometryError(
            f"{item.name}: seen from {item.times[0]:g} to {item.times[-1]:g} s, and the interval from "
            f"{start:g} to {end:g} s holds none of it; choose an interval in which it is seen"
        )
    inside = item.times[(item.times > start + 1e-6) & (item.times < end - 1e-6)]
    times = np.concatenate([[start], inside, [end]])
    confidence = np.interp(times, item.times, item.confidence)
    return replace(
        item,
        times=times,
        positions=item.positions_in(times),
        otherwise=None if item.otherwise is None else _between(times, item.times, item.otherwise),
        confidence=confidence,
        heading=None,
        boxes=None,
        masks=None,
    )


def _check_pair(item: ObjectTrack, camera: CameraTrack) -> None:
    if item.metric != camera.metric:
        known, other = (item.name, "the camera") if item.metric else ("the camera", item.name)
        raise GeometryError(f"{known} has metres and {other} has not; give both tracks in one unit")
    if item.times[0] > camera.times[-1] or item.times[-1] < camera.times[0]:
        raise GeometryError(
            f"{item.name}: its times, {item.times[0]:g} to {item.times[-1]:g} s, are outside the camera's, "
            f"{camera.times[0]:g} to {camera.times[-1]:g} s; give both on one time base"
        )


def _first_axes(item: ObjectTrack, camera: CameraTrack, settings: MotionSettings) -> Array:
    """[3, 3], the camera's rotation (its axes are the columns) when the object is first seen."""
    _check_pair(item, camera)
    if len(item.times) < 2:
        raise GeometryError(f"{item.name}: one position has no motion; give at least two")
    seen = np.flatnonzero(item.confidence >= settings.min_confidence)
    first = item.times[seen[0] if len(seen) else 0]
    return camera.resampled(np.array([first])).rotations[0]


def _outside(vectors: Array) -> Array:
    """[n, 10], degrees by which vectors are outside each direction's region; negative inside.

    Away and toward hold within 45 degrees of the optical axis. The rest of the sphere is divided by the angle
    in the picture, 45 degrees for each name.
    """
    x, y, z = vectors.T
    elevation = np.rad2deg(np.arctan2(np.abs(z), np.hypot(x, y)))
    in_picture = np.rad2deg(np.arctan2(-y, x))
    off = np.abs((in_picture[:, None] - np.arange(8) * 45.0 + 180) % 360 - 180)  # LATERAL_DIRECTIONS
    lateral = np.maximum(off - 22.5, elevation[:, None] - 45)
    toward = np.where(z < 0, 45 - elevation, 45 + elevation)
    ahead = np.where(z > 0, 45 - elevation, 45 + elevation)
    return np.concatenate([lateral, toward[:, None], ahead[:, None]], axis=1)


def _directions(velocity: Array) -> list[tuple[str, int, int]]:
    """Runs of one direction; the name changes only _TURN_MARGIN past the border to another one."""
    outside = _outside(velocity)
    current, labels = int(outside[0].argmin()), []
    for row in outside:
        if row[current] > _TURN_MARGIN:
            current = int(row.argmin())
        labels.append(current)
    changes = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(OBJECT_DIRECTIONS[labels[a]], a, b) for a, b in pairwise(changes)]


def _runs(speed: Array, least: float) -> tuple[int, ...]:
    """Signs of the rises and falls of at least `least`, in order (a zigzag filter)."""
    signs: list[int] = []
    low = high = speed[0]
    for value in speed:
        low, high = min(low, value), max(high, value)
        rises = value - low >= least and signs[-1:] != [1]
        falls = high - value >= least and signs[-1:] != [-1]
        if rises or falls:
            signs.append(1 if rises else -1)
            low = high = value
        elif signs[-1:] == [1]:
            low = high  # only a fall from the highest is news
        elif signs[-1:] == [-1]:
            high = low
    return tuple(signs)
