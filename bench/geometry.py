"""Labels of motion against what was asked for: from true geometry, from estimated geometry, and on real
frames.

    python -m bench geometry truth [--scenes 200]
    python -m bench geometry estimated [--scenes 40] [--masks truth|none]
    python -m bench geometry fox --folder FOLDER [--estimator opencv|colmap]

`estimated` renders each scene at 480x480 and 30 frames a second, encodes it as H.264, decodes it, and knows
neither lens nor poses. `fox` wants a folder with transforms.json and images.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from bench._motion_scenes import Scene, TurningWorld, make_scene
from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import read_nerfstudio
from fourdthinker.synth.geometry.lift import ground_plane, lift_object
from fourdthinker.synth.geometry.visual import Estimate, estimate_camera
from fourdthinker.synth.motion import (
    camera_moves,
    distance_change,
    moves_during,
    object_direction,
    speed_profile,
)
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack, rotation_vectors
from fourdthinker.worlds.scenes import render, write_video

log = logging.getLogger(__name__)
Answers = dict[str, str | None]  # what is asked -> the answer, None where a label is refused


def labels(camera: CameraTrack, item: ObjectTrack | None) -> Answers:
    """The labels of a whole clip."""
    start, end = float(camera.times[0]), float(camera.times[-1])
    names = moves_during(camera_moves(camera), start, end)
    out: Answers = {"camera": ", ".join(sorted(names)) or None}
    if item is not None:
        out["direction"] = object_direction(item, camera, start, end)
        out["distance"] = distance_change(item, camera, start, end)
        out["speed"] = speed_profile(item, start, end)
    return out


def asked(scene: Scene) -> Answers:
    """What the scene was made to show."""
    return {
        "camera": scene.camera,
        "direction": scene.direction,
        "distance": scene.distance(),
        "speed": scene.profile or None,
    }


class Table:
    """Pairs of what was asked and what was said, by kind of label."""

    def __init__(self) -> None:
        self.pairs: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, truth: Answers, found: Answers) -> None:
        for kind, right in truth.items():
            if right is not None:  # nothing to be right about: a distance that changes a little
                counts = self.pairs.setdefault(kind, Counter())
                counts[right, found.get(kind) or "(refused)"] += 1

    def summary(self) -> list[str]:
        rows = ["| label | asked | accepted | right of accepted |", "|---|---:|---:|---:|"]
        for kind, counts in self.pairs.items():
            total = sum(counts.values())
            accepted = sum(n for (_, said), n in counts.items() if said != "(refused)")
            right = sum(n for (truth, said), n in counts.items() if truth == said)
            rows.append(
                f"| {kind} | {total} | {100 * accepted / total:.1f} % | {100 * right / max(accepted, 1):.1f} "
                "% |"
            )
        for kind, counts in self.pairs.items():
            wrong = sorted((pair, n) for pair, n in counts.items() if pair[0] != pair[1])
            rows += [f"{kind}: {truth} -> {said}: {n}" for (truth, said), n in wrong]
        return rows


def truth(count: int) -> Table:
    table = Table()
    for seed in range(count):
        scene = make_scene(seed, fps=10, size=64)
        table.add(asked(scene), labels(scene.camera_track(), scene.object_track()))
    return table


def filmed(scene: Scene, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of the scene after H.264, and the mask of the solid that may move in each."""
    world, frames, masks = scene.world, [], []
    for first in range(0, len(world.seconds), 6):  # a few at once: a ray takes much memory
        clip = render(part(scene, slice(first, first + 6)))
        frames += list(clip.pixels)
        masks += list(clip.mask(0))
    path = folder / "clip.mp4"
    write_video(path, np.stack(frames), world.fps, crf=23)
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], masks


def part(scene: Scene, frames: slice) -> TurningWorld:
    """The world during some of its frames."""
    world = scene.world
    cut = {name: getattr(world, name)[frames] for name in ("seconds", "position", "yaw", "tilt", "roll")}
    solids = tuple(replace(solid, centre=solid.centre[frames]) for solid in world.solids)
    return replace(world, solids=solids, **cut)


def from_frames(found: Estimate, scene: Scene, masks: list[np.ndarray]) -> Answers:
    """Labels of an estimate; the object stands on the ground that was found."""
    if np.median(found.track.confidence) < 0.5:
        return {}
    plane = ground_plane(found.track, found.points)
    item = None
    if plane is not None:
        try:
            item = lift_object("solid", masks, scene.world.seconds, found.track, ground=plane)
        except GeometryError:
            item = None
    return labels(found.track, item)


def estimated(count: int, masks_given: bool) -> Table:
    table, seconds = Table(), []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(count):
            scene = make_scene(seed)
            frames, masks = filmed(scene, Path(name))
            start = time.perf_counter()
            found = estimate_camera(frames, scene.world.seconds, movers=masks if masks_given else None)
            seconds.append(time.perf_counter() - start)
            said = from_frames(found, scene, masks)
            table.add(asked(scene), said)
            log.info("%d %s | %s | %s", seed, f"{seconds[-1]:.1f} s", asked(scene), said)
    log.info("seconds a clip: median %.1f", float(np.median(seconds)))
    return table


def fox(folder: Path, estimator: str) -> list[str]:
    """Real frames of a phone beside COLMAP's poses; a frame's number counts fifths of a second."""
    names = sorted(
        {path.name for path in (folder / "images").glob("*.jpg")}
        & {Path(f["file_path"]).name for f in json.loads((folder / "transforms.json").read_text())["frames"]}
    )
    frames = [np.asarray(Image.open(folder / "images" / name).convert("RGB")) for name in names]
    times = np.array([int(Path(name).stem) for name in names]) / 5
    size = (frames[0].shape[1], frames[0].shape[0])
    known = read_nerfstudio(folder / "transforms.json", names=names, times=times, size=size)
    assert known.intrinsics is not None
    if estimator == "colmap":
        from fourdthinker.synth.geometry.sfm import reconstruct_camera

        track = reconstruct_camera(frames, times, intrinsics=known.intrinsics[0]).track.resampled(times)
    else:
        track = estimate_camera(frames, times, intrinsics=known.intrinsics[0]).track.resampled(times)
    return compared(track, known)


def compared(track: CameraTrack, known: CameraTrack) -> list[str]:
    """How far a track is from a known one of the same frames, whatever their scales."""
    steps = []
    for one in (track, known):
        turn = one.rotations[:-1].transpose(0, 2, 1) @ one.rotations[1:]
        steps.append((turn, np.einsum("tji,tj->ti", one.rotations[:-1], np.diff(one.centres, axis=0))))
    (turn, step), (true_turn, true_step) = steps
    angle = np.rad2deg(np.linalg.norm(rotation_vectors(turn.transpose(0, 2, 1) @ true_turn), axis=1))
    lengths = np.linalg.norm(step, axis=1) * np.linalg.norm(true_step, axis=1)
    off = np.rad2deg(np.arccos(np.clip((step * true_step).sum(1) / np.maximum(lengths, 1e-12), -1, 1)))
    scale = np.median(np.linalg.norm(step, axis=1)) / np.median(np.linalg.norm(true_step, axis=1))
    poses = known.poses.copy()
    poses[:, :3, 3] *= scale
    both = [camera_moves(one) for one in (track, replace(known, poses=poses))]
    seconds = np.arange(np.ceil(known.times[0]), np.floor(known.times[-1]))
    sets = [[moves_during(moves, s, s + 1) for s in seconds] for moves in both]
    same = np.mean([a == b for a, b in zip(*sets, strict=True)])
    return [
        f"rotation between neighbours: {np.median(angle):.2f} degrees, 90 % {np.quantile(angle, 0.9):.2f}",
        f"direction of translation: {np.median(off):.1f} degrees, 90 % {np.quantile(off, 0.9):.1f}",
        f"confidence: median {np.median(track.confidence):.2f}, smallest {track.confidence.min():.2f}",
        f"seconds of equal camera moves: {100 * same:.0f} % of {len(seconds)}",
        *(
            f"  {s:.0f} s: {sorted(a)} | {sorted(b)}"
            for s, a, b in zip(seconds, *sets, strict=True)
            if a != b
        ),
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench geometry", description=__doc__)
    parser.add_argument("what", choices=("truth", "estimated", "fox"))
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--masks", choices=("truth", "none"), default="truth")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--estimator", choices=("opencv", "colmap"), default="opencv")
    options = parser.parse_args(argv)
    if options.what == "fox":
        lines = fox(options.folder, options.estimator)
    else:
        table = (
            truth(options.scenes)
            if options.what == "truth"
            else estimated(options.scenes, options.masks == "truth")
        )
        lines = table.summary()
    for line in lines:
        log.info("%s", line)
    return 0
