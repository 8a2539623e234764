"""Labels of motion against what was asked for: from true and from estimated geometry, and on real frames.

    python -m bench geometry [truth] [--scenes 200] [--save]
    python -m bench geometry estimated [--scenes 26] [--first 0] [--masks motion|truth] [--clips DIR] [--save]
    python -m bench geometry fox --folder FOLDER [--estimator opencv|colmap] [--save]

`estimated` renders each scene at 480x480 and 30 frames a second, encodes it as H.264, decodes it, takes as
many frames a second as synthesis does, and knows neither lens nor poses. With `--clips` rendered scenes are
kept there for the next run. `--first` is the number of the first scene: settings were chosen on scenes 0 to
25, so that those from 26 on are new to them. `fox` wants a folder with transforms.json and images.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from bench._measure import add_save, positive, save
from bench._motion_scenes import Scene, TurningWorld, make_scene
from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import (
    Estimate,
    estimate_camera,
    ground_plane,
    lift_object,
    read_nerfstudio,
    reconstruct_camera,
)
from fourdthinker.synth.motion import camera_moves, moves_during
from fourdthinker.synth.questions import described
from fourdthinker.synth.segment import moving_segments
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack, rotation_vectors
from fourdthinker.worlds.scenes import render, write_video

log = logging.getLogger(__name__)
REFUSED = "(refused)"
_WHOLE = 0.9  # of a clip in which a thing is seen, for a speed profile of the whole
Answers = dict[str, str | None]  # what is asked -> the answer, None where a label is refused


def labels(camera: CameraTrack, item: ObjectTrack | None) -> Answers:
    """The labels of a whole clip."""
    start, end = float(camera.times[0]), float(camera.times[-1])
    names = moves_during(camera_moves(camera), start, end)
    out: Answers = {"camera": ", ".join(sorted(names)) or None}
    found = None if item is None else described(item, camera)
    if found is not None:
        out |= {"direction": found.direction, "distance": found.distance}
        # What a scene was made to show is the profile of the whole.
        whole = np.ptp(found.track.times) >= _WHOLE * (end - start)
        out["speed"] = found.speed if whole else None
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
                counts[right, found.get(kind) or REFUSED] += 1

    def rows(self) -> list[dict[str, Any]]:
        """For each kind of label: how many were asked for, accepted and right, and what else was said."""
        out = []
        for kind, counts in self.pairs.items():
            accepted = sum(n for (_, said), n in counts.items() if said != REFUSED)
            right = sum(n for (truth, said), n in counts.items() if truth == said)
            other = [
                {"asked": truth, "said": said, "times": n}
                for (truth, said), n in sorted(counts.items())
                if truth != said
            ]
            out.append(
                {"label": kind, "asked": sum(counts.values()), "accepted": accepted, "right": right}
                | {"other": other}
            )
        return out


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of a `Table` for a terminal."""
    lines = ["| label | asked | accepted | right of accepted |", "|---|---:|---:|---:|"]
    for row in rows:
        shares = [
            100 * row["accepted"] / row["asked"],
            100 * row["right"] / max(row["accepted"], 1),
        ]
        lines.append(f"| {row['label']} | {row['asked']} | {shares[0]:.1f} % | {shares[1]:.1f} % |")
    return lines + [
        f"{row['label']}: {one['asked']} -> {one['said']}: {one['times']}"
        for row in rows
        for one in row["other"]
    ]


def truth(count: int) -> Table:
    table = Table()
    for seed in range(count):
        scene = make_scene(seed, fps=10, size=64)
        table.add(asked(scene), labels(scene.camera_track(), scene.object_track()))
    return table


def filmed(scene: Scene, path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of the scene after H.264, and the mask of the solid that may move in each."""
    world = scene.world
    kept = path.with_suffix(".npz")
    if not kept.exists():
        frames, masks = [], []
        for first in range(0, len(world.seconds), 6):  # a few at once: a ray takes much memory
            clip = render(part(scene, slice(first, first + 6)))
            frames += list(clip.pixels)
            masks += list(clip.mask(0))
        write_video(path, np.stack(frames), world.fps, crf=23)
        np.savez_compressed(kept, masks=np.stack(masks))
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return decoded, list(np.load(kept)["masks"])


def part(scene: Scene, frames: slice) -> TurningWorld:
    """The world during some of its frames."""
    world = scene.world
    cut = {name: getattr(world, name)[frames] for name in ("seconds", "position", "yaw", "tilt", "roll")}
    solids = tuple(replace(solid, centre=solid.centre[frames]) for solid in world.solids)
    return replace(world, solids=solids, **cut)


def moving_masks(frames: list[np.ndarray], fps: float) -> list[np.ndarray]:
    """Masks of the thing that moves most visibly, without weights; empty ones where nothing does."""
    found = moving_segments(np.stack(frames), fps, SynthSettings().least_area)
    masks = found[0].masks if found else [None] * len(frames)
    return [np.zeros(frames[0].shape[:2], bool) if mask is None else mask for mask in masks]


def from_frames(found: Estimate, seconds: np.ndarray, masks: list[np.ndarray]) -> tuple[Answers, str]:
    """Labels of an estimate, and how the object was lifted, or why it was not.

    The object stands on the ground if one is found, else its size says the rest.
    """
    if np.median(found.track.confidence) < 0.5:
        return {}, "the poses are unsure"
    plane = ground_plane(found.track, found.points)
    if not any(mask.any() for mask in masks):
        return labels(found.track, None), "nothing is seen to move"
    try:
        item = lift_object("solid", masks, seconds, found.track, ground=plane)
    except GeometryError as error:  # no ground while the camera moves, or no mask that is whole
        return labels(found.track, None), str(error)
    return labels(found.track, item), f"lifted by {item.source}"


def common_area(masks: list[np.ndarray], true: list[np.ndarray]) -> float:
    """Intersection over union with the true masks: the median over the frames that have a mask."""
    found = [(a & b).sum() / (a | b).sum() for a, b in zip(masks, true, strict=True) if a.any()]
    return float(np.median(found)) if found else 0.0


def estimated(options: argparse.Namespace) -> Table:
    table, seconds, reasons = Table(), [], Counter[str]()
    step = max(1, round(options.fps / SynthSettings().analysis_fps))
    with tempfile.TemporaryDirectory() as name:
        folder = options.clips or Path(name)
        for seed in range(options.first, options.first + options.scenes):
            scene = make_scene(seed, fps=options.fps, size=options.size)
            frames, true = filmed(scene, folder / f"{seed:03d}-{options.size}-{options.fps:g}.mp4")
            frames, true, times = frames[::step], true[::step], scene.world.seconds[::step]
            start = time.perf_counter()
            masks = true if options.masks == "truth" else moving_masks(frames, options.fps / step)
            found = estimate_camera(frames, times, movers=masks)
            seconds.append(time.perf_counter() - start)
            said, reason = from_frames(found, times, masks)
            reasons[reason] += 1
            table.add(asked(scene), said)
            common = common_area(masks, true)
            log.info("%d %.1f s, %.2f | %s | %s | %s", seed, seconds[-1], common, reason, asked(scene), said)
    log.info("seconds a clip: median %.1f", float(np.median(seconds)))
    for reason, count in reasons.most_common():
        log.info("%d: %s", count, reason)
    return table


def fox(folder: Path, estimator: str) -> tuple[CameraTrack, CameraTrack]:
    """An estimate of real frames of a phone, and COLMAP's poses; a frame's number is its time in 0.2 s."""
    listed = json.loads((folder / "transforms.json").read_text())["frames"]
    posed = {Path(frame["file_path"]).name for frame in listed}
    names = sorted(path.name for path in (folder / "images").glob("*.jpg") if path.name in posed)
    frames = [np.asarray(Image.open(folder / "images" / name).convert("RGB")) for name in names]
    times = np.array([int(Path(name).stem) for name in names]) / 5
    size = (frames[0].shape[1], frames[0].shape[0])
    known = read_nerfstudio(folder / "transforms.json", names=names, times=times, size=size)
    assert known.intrinsics is not None
    estimate = reconstruct_camera if estimator == "colmap" else estimate_camera
    return estimate(frames, times, intrinsics=known.intrinsics[0]).track.resampled(times), known


@dataclass(frozen=True)
class Differences:
    """`turn` and `way` between neighbouring frames, degrees; `seconds`: start, our moves, the other's."""

    turn: np.ndarray
    way: np.ndarray
    seconds: list[tuple[float, frozenset[str], frozenset[str]]]


def differences(track: CameraTrack, known: CameraTrack) -> Differences:
    """How far a track is from a known one of the same frames, whatever their scales."""
    turns, ways = [], []
    for one in (track, known):
        turns.append(one.rotations[:-1].transpose(0, 2, 1) @ one.rotations[1:])
        ways.append(np.einsum("tji,tj->ti", one.rotations[:-1], np.diff(one.centres, axis=0)))
    turn = np.rad2deg(np.linalg.norm(rotation_vectors(turns[0].transpose(0, 2, 1) @ turns[1]), axis=1))
    length, other = (np.linalg.norm(way, axis=1) for way in ways)
    cosine = (ways[0] * ways[1]).sum(1) / np.maximum(length * other, 1e-12)
    poses = known.poses.copy()
    poses[:, :3, 3] *= np.median(length) / np.median(other)  # the file has no scale
    moves = [camera_moves(one) for one in (track, replace(known, poses=poses, scaled=True))]
    starts = np.arange(np.ceil(known.times[0]), np.floor(known.times[-1]))
    seconds = [(float(s), moves_during(moves[0], s, s + 1), moves_during(moves[1], s, s + 1)) for s in starts]
    return Differences(turn, np.rad2deg(np.arccos(np.clip(cosine, -1, 1))), seconds)


def fox_row(folder: Path, estimator: str) -> dict[str, Any]:
    """Degrees and shares of `differences` for one estimator."""
    track, known = fox(folder, estimator)
    found = differences(track, known)
    return {
        "estimator": estimator,
        "frames": len(track.times),
        "turn": {"median": float(np.median(found.turn)), "90 %": float(np.quantile(found.turn, 0.9))},
        "way": {"median": float(np.median(found.way)), "90 %": float(np.quantile(found.way, 0.9))},
        "confidence": {"median": float(np.median(track.confidence)), "low": float(track.confidence.min())},
        "equal_seconds": float(np.mean([ours == theirs for _, ours, theirs in found.seconds])),
        "seconds": len(found.seconds),
        "other": [[s, sorted(a), sorted(b)] for s, a, b in found.seconds if a != b],
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench geometry", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("truth", "estimated", "fox"), default="truth")
    parser.add_argument("--scenes", type=positive, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--masks", choices=("truth", "motion"), default="motion")
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--size", type=positive, default=480)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--estimator", choices=("opencv", "colmap"), default="opencv")
    add_save(parser)
    options = parser.parse_args(argv)
    name = f"geometry {options.what}"
    if options.what == "fox":
        rows = [fox_row(options.folder, options.estimator)]
        lines = [f"{key}: {value}" for key, value in rows[0].items()]
    else:
        rows = (truth(options.scenes) if options.what == "truth" else estimated(options)).rows()
        lines = lines_of(rows)
        if options.what == "estimated":
            name += (
                f", masks by {options.masks}, {options.scenes} scenes of {options.size} at {options.fps:g}"
            )
            name += f", from {options.first}" if options.first else ""
    for line in lines:
        log.info("%s", line)
    if options.save:
        replacing = ("estimator",) if options.what == "fox" else None
        log.info("saved in %s", save(name, rows, replacing=replacing))
    return 0
