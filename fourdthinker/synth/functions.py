"""The stages of one clip: each takes what those before it have found, and returns what the next ones read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth import imagery, rle
from fourdthinker.synth.clips import RejectError, write_jpeg
from fourdthinker.synth.context import Context
from fourdthinker.synth.scenes import ASKED
from fourdthinker.synth.segment import moving_segments
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack
from fourdthinker.worlds.questions import camera_motion, distance_change, object_direction

Mask = NDArray[np.bool_]


def objects(context: Context) -> dict[str, Any]:
    """Names of the things in the clip: of the scene, of the manifest, or of the settings."""
    if context.scene is not None:
        return {"names": [solid.name for solid in context.scene.world.solids[:ASKED]], "from": "scene"}
    return {"names": [*context.source.objects, *context.settings.names], "from": "given"}


def segment(context: Context) -> dict[str, Any]:
    """Masks of the things, as run lengths for each frame, None where one is not seen."""
    found: list[tuple[str, Sequence[Mask | None], float]]
    if context.scene is not None:
        seen = context.scene.masks(context.clip)
        found = [
            (name, list(mask), 1.0)
            for name, mask in zip(context.results["objects"]["names"], seen, strict=True)
        ]
    else:
        segments = moving_segments(
            context.clip.pixels, context.settings.analysis_fps, context.settings.least_area
        )
        names = context.results["objects"]["names"]
        found = [(names[k] if k < len(names) else "", one.masks, one.score) for k, one in enumerate(segments)]
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


def geometry(context: Context) -> dict[str, Any]:
    """The camera's path, and the paths of things where they are known."""
    if context.scene is None:
        raise RejectError("no poses")
    return {"camera": context.scene.camera(context.clip), "objects": context.scene.things(context.clip)}


def motion(context: Context) -> dict[str, Any]:
    """How camera and things move."""
    assert context.scene is not None
    world = context.scene.world
    changes = [distance_change(world, k) for k in range(2)]
    return {"camera": camera_motion(world), "direction": object_direction(world), "distance": changes}


def questions(context: Context) -> dict[str, Any]:
    """Questions with their answers, and the instants that a picture is imagined of."""
    moved, names = context.results["motion"], context.results["objects"]["names"]
    start, end = 0.0, round(float(context.clip.times[-1]), 6)
    asked = [
        ("camera", 1, f"How does the camera move from {start:.1f} s to {end:.1f} s?", moved["camera"]),
        ("direction", 0, f"Which way does the {names[0]} move?", moved["direction"]),
    ]
    asked += [
        ("distance", k, f"How does the distance to the {names[k]} change?", change)
        for k, change in enumerate(moved["distance"])
        if change
    ]
    return {
        "questions": [
            {
                "id": f"{context.clip.item}-{kind}-{thing}",
                "type": kind,
                "text": text,
                "answer": answer,
                "start": start,
                "end": end,
                "thing": thing,
                "instants": [start, end],
            }
            for kind, thing, text, answer in asked
        ]
    }


def draw(context: Context) -> dict[str, Any]:
    """The pictures of every question, each drawn once."""
    drawn: dict[tuple[str, int, int], str] = {}
    images: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    for question in context.results["questions"]["questions"]:
        own, names = images.setdefault(question["id"], []), labels.setdefault(question["id"], [])
        frames = [int(np.argmin(np.abs(context.clip.times - instant))) for instant in question["instants"]]
        for number, frame in enumerate(frames):
            for kind in context.settings.imagery:
                key = kind, question["thing"], frame
                if key not in drawn:
                    drawn[key] = _drawn(context, *key, frames[min(number + 1, len(frames) - 1)])
                own.append(drawn[key])
                names.append(f"{kind}, {context.clip.times[frame]:.1f} s")
    return {"images": images, "labels": labels}


def _drawn(context: Context, kind: str, thing: int, frame: int, later: int) -> str:
    """Draw one picture and write it; its path."""
    path = f"media/{context.clip.item}/{kind}-{thing}-{frame:04d}.jpg"
    write_jpeg(context.out / path, _picture(context, kind, thing, frame, later))
    return path


def _picture(context: Context, kind: str, thing: int, frame: int, later: int) -> NDArray[np.uint8]:
    pixels = context.clip.pixels[frame]
    if kind == "next":
        return context.clip.pixels[later]
    if kind in ("overlay", "silhouette"):
        mask = rle.decode(_seen(context, thing)[frame])
        return imagery.overlay(pixels, mask) if kind == "overlay" else imagery.silhouette(mask)
    if kind == "trail":
        height, width = pixels.shape[:2]
        boxes = [rle.box(rle.decode(mask)) for mask in _seen(context, thing)[: frame + 1]]
        centres = [[(b[0] + b[2]) / 2 * width, (b[1] + b[3]) / 2 * height] for b in boxes if b is not None]
        return imagery.trail(pixels, np.array(centres))
    if kind == "map":
        camera, track = camera_of(context), objects_of(context)[thing]
        above, there = imagery.from_above(camera.poses, [camera.centres, track.positions_in(camera.times)])
        forward = camera.rotations[:, :, 2] @ camera.rotations[0]
        return imagery.top_down(pixels.shape[:2], above, forward[:, [0, 2]], there, frame)
    assert context.scene is not None
    depth = context.scene.depth[context.scene.index(context.clip)[frame]]
    return imagery.depth_picture(depth, rle.decode(_seen(context, thing)[frame]))


def _seen(context: Context, thing: int) -> list[Any]:
    """The masks of a thing, at each frame where it is not seen the nearest one."""
    masks = context.results["segment"]["things"][thing]["masks"]
    known = [k for k, mask in enumerate(masks) if mask is not None]
    return [masks[min(known, key=lambda k: abs(k - index))] for index in range(len(masks))]


def camera_of(context: Context) -> CameraTrack:
    """The camera's path, as the geometry stage has found it."""
    values = context.results["geometry"]["camera"]
    size = values["size"]
    return CameraTrack(**{**values, "size": None if size is None else (size[0], size[1])})


def objects_of(context: Context) -> list[ObjectTrack]:
    """The paths of things, as the geometry stage has found them."""
    return [ObjectTrack(**values) for values in context.results["geometry"]["objects"]]


FUNCTIONS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "objects": objects,
    "segment": segment,
    "geometry": geometry,
    "motion": motion,
    "questions": questions,
    "imagery": draw,
}
