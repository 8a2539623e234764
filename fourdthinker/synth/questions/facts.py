"""From tracks to facts: the words for all motions of a clip."""

from __future__ import annotations

from collections.abc import Sequence

from fourdthinker.synth.motion import (
    MotionSettings,
    camera_moves,
    distance_change,
    object_direction,
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
    return Facts(
        clip=clip,
        source=source,
        duration=duration,
        camera=camera,
        moves=moves,
        objects=tuple(_measured(track, camera, settings) for track in tracks),
        unclear=unclear_spans(camera, moves, settings),
    )


def _measured(track: ObjectTrack, camera: CameraTrack, settings: MotionSettings | None) -> ObjectFacts:
    start = max(float(track.times[0]), float(camera.times[0]))
    end = min(float(track.times[-1]), float(camera.times[-1]))
    if end <= start:
        return ObjectFacts(track)
    return ObjectFacts(
        track=track,
        direction=object_direction(track, camera, start, end, settings),
        distance=distance_change(track, camera, start, end, settings),
        speed=speed_profile(track, start, end, settings),
    )
