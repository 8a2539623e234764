"""From tracks to facts: the words for all motions of a clip."""

from __future__ import annotations

from collections.abc import Sequence

from fourdthinker.synth.motion import (
    MotionSettings,
    camera_moves,
    distance_change,
    object_direction,
    seen_part,
    speed_profile,
    unclear_spans,
)
from fourdthinker.synth.questions.forms import Facts, ObjectFacts
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack


def measure(
    clip: str,
    source: str,
    duration: float,
    camera: CameraTrack,
    tracks: Sequence[ObjectTrack] = (),
    settings: MotionSettings | None = None,
) -> Facts:
    """All that is asked about a clip, from its geometry alone.

    Args:
        clip: its id.
        source: the video that it is cut from.
        duration: seconds.
        camera: its track.
        tracks: of its objects, in the same world.
        settings: thresholds of the labels.

    Returns:
        The facts.

    Raises:
        GeometryError: a track that does not overlap the camera's in time, or has another scale.
    """
    moves = camera_moves(camera, settings)
    found = [described(track, camera, settings) for track in tracks]
    return Facts(
        clip=clip,
        source=source,
        duration=duration,
        camera=camera,
        moves=moves,
        objects=tuple(item for item in found if item is not None),
        unclear=unclear_spans(camera, moves, settings),
    )


def described(
    track: ObjectTrack, camera: CameraTrack, settings: MotionSettings | None = None
) -> ObjectFacts | None:
    """The part of an object's track in which it is seen, and the words for its motion in that time.

    Args:
        track: of the object.
        camera: its track in the same world.
        settings: thresholds of the labels.

    Returns:
        The facts; None where it is hardly seen.

    Raises:
        GeometryError: a track that does not overlap the camera's in time, or has another scale.
    """
    part = seen_part(track, camera, settings)
    if part is None:
        return None
    start, end = float(part.times[0]), float(part.times[-1])
    return ObjectFacts(
        track=part,
        direction=object_direction(part, camera, start, end, settings),
        distance=distance_change(part, camera, start, end, settings),
        speed=speed_profile(part, start, end, settings),
    )
