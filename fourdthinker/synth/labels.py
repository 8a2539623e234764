"""The stages geometry and motion of one clip: the paths of camera and things, and their moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.frames import probe
from fourdthinker.synth import rle
from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.depths import UnscaledError, lens_of, with_depth, with_lens
from fourdthinker.synth.geometry import (
    Estimate,
    estimate_camera,
    ground_plane,
    lift_object,
    read_npz,
    read_spatialvid,
    read_tum,
    reconstruct_camera,
)
from fourdthinker.synth.motion import camera_moves, distance_change, unclear_spans
from fourdthinker.synth.questions import described
from fourdthinker.synth.questions.forms import ObjectFacts
from fourdthinker.synth.tracks import STATIC, STATIONARY, CameraTrack, Move, ObjectTrack

POSES = ("spatialvid", "tum", "npz")
UNSCALED = (
    "the poses have no known unit, so that only turns are labelled; give poses_metric, or the scene's median "
    "depth in the file (TUM: a line '# depth 4.2', npz: the key depth)"
)
_LEAST_SURE = 0.3  # mean confidence of the poses of a clip


def geometry(context: Context) -> dict[str, Any]:
    """The camera's path and the paths of things: true ones, given ones, or estimated from the frames.

    Args:
        context: of the clip, with the results of the stages before.

    Returns:
        The result of the stage, for the journal.

    Raises:
        RejectError: the frames do not tell the path.
    """
    if context.scene is not None:
        camera, tracks = context.scene.camera(context.clip), context.scene.things(context.clip)
        return _result(camera, list(enumerate(tracks)), [])
    try:
        if "poses" in context.source.given:
            found = _paths(context, with_lens(context, _given(context)), None)
            if not found["camera"].scaled:
                found["left_out"].append(f"translations: {UNSCALED}")
            return found
        return _estimated(context)
    except GeometryError as error:
        raise RejectError(f"no geometry: {' '.join(str(error).split())}") from error


def _given(context: Context) -> CameraTrack:
    """Poses that came with the video, at the clip's frames."""
    path, clip = context.source.given["poses"], context.clip
    try:
        track = _read(context)
    except GeometryError as error:
        text = str(error)
        raise GeometryError(text if path in text else f"{path}: {text}") from error
    if track.times[0] > clip.start + 0.5 or track.times[-1] < clip.end - 0.5:
        raise GeometryError(
            f"{path}: poses from {track.times[0]:.2f} to {track.times[-1]:.2f} s for a clip from "
            f"{clip.start:.2f} to {clip.end:.2f} s; give poses of the whole video, in its own seconds"
        )
    return _shifted(track.resampled(clip.times + clip.start), clip.times)


def _read(context: Context) -> CameraTrack:
    """Poses of the whole video."""
    given = context.source.given
    path, kind = given["poses"], given.get("poses_format") or Path(given["poses"]).suffix.lstrip(".")
    height, width = context.clip.pixels.shape[1:3]
    if "poses_metric" in given and kind not in ("tum", "txt"):
        raise GeometryError(
            f"{path}: poses_metric is for TUM lines, and poses_format is {kind!r}, which says it itself; "
            "leave poses_metric out"
        )
    if kind == "spatialvid":
        return read_spatialvid(Path(path).parent, fps=probe(context.source.path).rate, size=(width, height))
    if kind in ("tum", "txt"):
        return read_tum(path, metric=given.get("poses_metric") == "true")
    if kind == "npz":
        return read_npz(path)
    raise GeometryError(f"{path}: poses_format is {kind!r}; choose one of {', '.join(POSES)}")


def _shifted(track: CameraTrack, times: NDArray[np.float64]) -> CameraTrack:
    values = {**vars(track), "times": times}
    return CameraTrack(**values)


def _estimated(context: Context) -> dict[str, Any]:
    clip = context.clip
    masks = [_masks(thing["masks"], clip.pixels.shape[1:3]) for thing in context.results["segment"]["things"]]
    movers = [np.logical_or.reduce(frame) for frame in zip(*masks, strict=True)] if masks else None
    estimator = reconstruct_camera if context.settings.geometry == "colmap" else estimate_camera
    estimate = estimator(list(clip.pixels), clip.times, intrinsics=lens_of(context), movers=movers)
    if float(estimate.track.confidence.mean()) < _LEAST_SURE:
        raise RejectError("no geometry: the poses are unsure")
    return _paths(context, estimate.track.resampled(clip.times), estimate)


def _paths(context: Context, camera: CameraTrack, estimate: Estimate | None) -> dict[str, Any]:
    """The paths of things beside that of the camera: by depth, or by the ground that they stand on."""
    left_out, depth, ground = [], None, None
    if "right" in context.source.given or context.settings.depth_weights is not None:
        try:
            camera, depth = with_depth(context, camera, estimate)
        except UnscaledError as error:  # the camera's path is as good as before
            return _result(camera, [], [f"objects: {error}"])
    elif estimate is not None:
        ground = ground_plane(estimate.track, estimate.points)
    else:
        return _result(camera, [], ["objects: no points of the scene, and no depth"])
    tracks = []
    for number, thing in enumerate(context.results["segment"]["things"]):
        masks = _masks(thing["masks"], context.clip.pixels.shape[1:3])
        try:
            track = lift_object(thing["name"], masks, context.clip.times, camera, depth=depth, ground=ground)
            tracks.append((number, track))
        except GeometryError as error:
            left_out.append(" ".join(str(error).split()))
    return _result(camera, tracks, left_out)


def _masks(coded: list[Any], size: tuple[int, ...]) -> list[NDArray[np.bool_]]:
    return [np.zeros(size[:2], bool) if mask is None else rle.decode(mask) for mask in coded]


def _result(
    camera: CameraTrack, tracks: list[tuple[int, ObjectTrack]], left_out: list[str]
) -> dict[str, Any]:
    """`things`: for each track the number of its thing in the segment stage."""
    return {
        "camera": camera,
        "objects": [track for _, track in tracks],
        "things": [number for number, _ in tracks],
        "left_out": left_out,
    }


def motion(context: Context) -> dict[str, Any]:
    """The camera's moves, where they are unclear, and the words for each thing's motion; None: unclear.

    `left_out` says why a distance is unclear that is clear by the thing's area.

    Args:
        context: of the clip, with the results of the stages before.

    Returns:
        The result of the stage, for the journal.

    Raises:
        RejectError: nothing moves clearly.
    """
    camera = camera_of(context.results)
    try:
        moves = camera_moves(camera)
        unclear = unclear_spans(camera, moves)
        found = [described(track, camera) for track in objects_of(context.results)]
        things = [
            {word: getattr(one, word, None) for word in ("direction", "distance", "speed")} for one in found
        ]
        left_out = [_partly_hidden(one, camera) for one in found if one is not None]
    except GeometryError as error:
        raise RejectError(f"no motion: {' '.join(str(error).split())}") from error
    clear = [word for words in things for word in words.values() if word not in (None, STATIONARY)]
    if not clear and not any(move.name != STATIC for move in moves):
        raise RejectError("no clear motion of camera or things" if camera.scaled else UNSCALED)
    return {
        "camera": moves,
        "unclear": unclear,
        "objects": things,
        "left_out": [reason for reason in left_out if reason is not None],
    }


def _partly_hidden(item: ObjectFacts, camera: CameraTrack) -> str | None:
    """Why the change of a distance is not told that one measure of it would tell."""
    track = item.track
    first = distance_change(track.readings()[0], camera, float(track.times[0]), float(track.times[-1]))
    if item.distance == first:
        return None
    return f"{track.name}: distance: {first!r} by its area, not by its length; something may hide a part"


def camera_of(results: Mapping[str, Any]) -> CameraTrack:
    """The camera's path, as the geometry stage has found it.

    Args:
        results: of the stages, by name.

    Returns:
        Its track.
    """
    values = results["geometry"]["camera"]
    size = values["size"]
    return CameraTrack(**{**values, "size": None if size is None else (size[0], size[1])})


def objects_of(results: Mapping[str, Any]) -> list[ObjectTrack]:
    """The paths of things, as the geometry stage has found them.

    Args:
        results: of the stages, by name.

    Returns:
        Their tracks, in the world of the camera's track.
    """
    return [ObjectTrack(**values) for values in results["geometry"]["objects"]]


def moves_of(results: Mapping[str, Any]) -> tuple[Move, ...]:
    """The camera's moves, as the motion stage has found them.

    Args:
        results: of the stages, by name.

    Returns:
        Moves in seconds of the clip.
    """
    return tuple(Move(**values) for values in results["motion"]["camera"])


def unclear_of(results: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """The times in which the camera may do more than its moves say, as the motion stage has found them.

    Args:
        results: of the stages, by name.

    Returns:
        (start, end) in seconds of the clip.
    """
    return tuple((start, end) for start, end in results["motion"]["unclear"])
