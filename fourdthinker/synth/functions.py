"""The stages of one clip: each takes what those before it have found, and returns what the next ones read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth import imagery, rle
from fourdthinker.synth.asking import latest, questions
from fourdthinker.synth.clips import RejectError, write_jpeg
from fourdthinker.synth.context import Context
from fourdthinker.synth.depths import depth_of
from fourdthinker.synth.labels import camera_of, geometry, motion, objects_of
from fourdthinker.synth.naming import name_things
from fourdthinker.synth.scenes import ASKED
from fourdthinker.synth.segment import moving_segments
from fourdthinker.synth.tracks import plain_name

Mask = NDArray[np.bool_]
Depths = Callable[[int], NDArray[np.float32]]
UNNAMED = "moving object"


def objects(context: Context) -> dict[str, Any]:
    """Names of the things in the clip, `moving` that of the one that moves by itself, where that is known.

    They are those of the scene, of the manifest or the settings, else what a model says.

    Args:
        context: of the clip, with the results of the stages before.

    Returns:
        The result of the stage, for the journal.

    Raises:
        RejectError: the model names nothing.
    """
    if context.scene is not None:
        names = [solid.name for solid in context.scene.world.solids[:ASKED]]
        return {"names": names, "moving": names[0], "from": "scene"}
    settings = context.settings
    once: dict[str, str] = {}
    for name in (*context.source.objects, *settings.names):
        once.setdefault(plain_name(name), name)
    given = list(once.values())
    if given or (settings.namer_model is None and settings.namer_weights is None):
        # Which of several is the one that moves nobody knows without a model.
        return {"names": given, "moving": given[0] if len(given) == 1 else None, "from": "given"}
    found = name_things(context)
    names = [name for name in (found.moving, found.still) if name is not None]
    if not names:
        raise RejectError("the model names nothing in it")
    return {"names": names, "moving": found.moving, "from": settings.namer_model or "checkpoint"}


def segment(context: Context) -> dict[str, Any]:
    """Masks of the things, as run lengths for each frame, None where one is not seen.

    Args:
        context: of the clip, with the results of the stages before.

    Returns:
        The result of the stage, for the journal.

    Raises:
        RejectError: there are no names to segment by.
    """
    found: list[tuple[str, Sequence[Mask | None], float]]
    if context.scene is not None:
        seen = context.scene.masks(context.clip)
        found = [
            (name, list(mask), 1.0)
            for name, mask in zip(context.results["objects"]["names"], seen, strict=True)
        ]
    elif context.settings.segment_weights is not None:
        from fourdthinker.synth.sam3 import sam3

        names = context.results["objects"]["names"]
        if not names:
            raise RejectError("no names of things to segment")
        model = sam3(context.settings.segment_weights)
        followed = model(context.clip.pixels, context.settings.analysis_fps, names)
        found = [(name, one.masks, one.score) for name, one in followed.items()]
    else:
        segments = moving_segments(
            context.clip.pixels, context.settings.analysis_fps, context.settings.least_area
        )
        moving = context.results["objects"]["moving"]
        # Which of several regions a name belongs to nobody knows without a model.
        name = moving if moving is not None and len(segments) == 1 else UNNAMED
        found = [(name, one.masks, one.score) for one in segments[:1]]
    least = context.settings.least_area * context.clip.pixels[0, ..., 0].size
    things = []
    for name, masks, score in found:
        kept = [mask if mask is not None and mask.sum() >= least else None for mask in masks]
        things.append(
            {
                "name": name,
                "score": score,
                "masks": [None if mask is None else rle.encode(mask) for mask in kept],
                "boxes": [None if mask is None else rle.box(mask) for mask in kept],
            }
        )
    return {"things": things}


def draw(context: Context) -> dict[str, Any]:
    """The pictures of every question, each drawn once, with kinds and instants.

    Args:
        context: of the clip, with the results of the stages before.

    Returns:
        The result of the stage, for the journal.
    """
    depth: Depths = cache(partial(depth_of, context))  # of a frame, for all things in it
    drawn: dict[tuple[str, int | None, int, int], str] = {}
    found: dict[str, dict[str, Any]] = {}
    tracks = objects_of(context.results)
    numbers = dict(zip([track.name for track in tracks], context.results["geometry"]["things"], strict=True))
    for question in context.results["questions"]["questions"]:
        support = question["support"]
        thing = numbers.get(support["object"])
        last = latest(question["type"], question["end"])
        until = int((context.clip.times <= last).sum())
        frames = sorted({_frame(context, thing, instant, last) for instant in support["instants"]})
        shown: dict[str, Any] = {"images": [], "kinds": [], "instants": []}
        for number, frame in enumerate(frames):
            for wanted in context.settings.imagery:
                kind = wanted if thing is not None or wanted in ("next", "depth") else "map"
                seen = until if kind == "map" else len(context.clip.times)
                shows = frames[min(number + 1, len(frames) - 1)] if kind == "next" else frame
                key = kind, thing, shows, seen
                if key not in drawn:
                    drawn[key] = _drawn(context, depth, *key)
                if drawn[key] in shown["images"]:
                    continue  # such as the map in place of two kinds that need a thing
                shown["images"].append(drawn[key])
                shown["kinds"].append(kind)
                shown["instants"].append(float(context.clip.times[frame]))
        found[question["id"]] = shown
    return found


def _frame(context: Context, thing: int | None, instant: float, last: float) -> int:
    """The frame nearest to an instant, of those that show the thing; none after `last` if one before does."""
    times = context.clip.times
    usable = np.ones(len(times), bool)
    if thing is not None:
        masks = context.results["segment"]["things"][thing]["masks"]
        usable = np.array([mask is not None for mask in masks])
    if (usable & (times <= last)).any():
        usable &= times <= last
    return int(np.argmin(np.where(usable, np.abs(times - instant), np.inf)))


def _drawn(context: Context, depth: Depths, kind: str, thing: int | None, frame: int, seen: int) -> str:
    """Draw one picture and write it; its path.

    `frame` is the one that it shows, `seen` how many of the clip's frames a map may tell of.
    """
    whose = "" if thing is None else f"-{thing}"
    only = "" if seen == len(context.clip.times) else f"-of-{seen:04d}"
    path = f"media/{context.clip.item}/{kind}{whose}-{frame:04d}{only}.jpg"
    write_jpeg(context.out / path, _picture(context, depth, kind, thing, frame, seen))
    return path


def _picture(
    context: Context, depth: Depths, kind: str, thing: int | None, frame: int, seen: int
) -> NDArray[np.uint8]:
    pixels = context.clip.pixels[frame]
    if kind == "next":
        return pixels
    masks = [] if thing is None else context.results["segment"]["things"][thing]["masks"]
    if kind == "depth":
        shown = masks[frame] if masks else None
        return imagery.depth_picture(depth(frame), None if shown is None else rle.decode(shown))
    if kind == "map" or thing is None:
        return _map(context, thing, frame, seen)
    if kind == "trail":
        height, width = pixels.shape[:2]
        boxes = [rle.box(rle.decode(mask)) for mask in masks[: frame + 1] if mask is not None]
        centres = [[(b[0] + b[2]) / 2 * width, (b[1] + b[3]) / 2 * height] for b in boxes if b is not None]
        return imagery.trail(pixels, np.array(centres))
    mask = rle.decode(masks[frame])
    return imagery.overlay(pixels, mask) if kind == "overlay" else imagery.silhouette(mask)


def _map(context: Context, thing: int | None, frame: int, seen: int) -> NDArray[np.uint8]:
    """Seen from above; how large its picture is drawn tells nothing of what comes after the frames seen."""
    camera = camera_of(context.results)
    track = dict(zip(context.results["geometry"]["things"], objects_of(context.results), strict=True)).get(
        thing
    )
    points = [camera.centres] + ([] if track is None else [track.positions_in(camera.times)])
    above, *others = (path[:seen] for path in imagery.from_above(camera.poses, points))
    forward = camera.rotations[:, :, 2] @ camera.rotations[0]
    there = others[0] if others else None
    return imagery.top_down(context.clip.pixels.shape[1:3], above, forward[:, [0, 2]], there, frame)


# The stages after `ingest`, by name.
FUNCTIONS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "objects": objects,
    "segment": segment,
    "geometry": geometry,
    "motion": motion,
    "questions": questions,
    "imagery": draw,
}
