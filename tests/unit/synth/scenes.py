"""Facts of random scenes: smooth cameras and objects, with the boxes and labels that their paths give."""

from __future__ import annotations

import numpy as np

from fourdthinker.synth.motion import distance_change, seen_part
from fourdthinker.synth.questions import Facts, ObjectFacts
from fourdthinker.synth.tracks import (
    CAMERA_MOVES,
    STATIONARY,
    CameraTrack,
    Move,
    ObjectTrack,
)

DIRECTIONS = {
    "left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0),
    "toward the camera": (0, 0, -1), "away from the camera": (0, 0, 1),
    "left-up": (-1, -1, 0), "right-down": (1, 1, 0),
}  # fmt: skip
NAMES = ("red ball", "blue box", "green can", "dog", "cyclist", "car")
FOCAL, RADIUS = 0.6, 0.4  # of a square picture's side; of an object, metres


def scene(index: int, seed: int = 0) -> Facts:
    """One scene of two camera moves in a row, two moving objects and one at rest."""
    rng = np.random.default_rng([seed, index])
    times = np.linspace(0, 6, 61)
    names = rng.choice(CAMERA_MOVES, 2, replace=False)
    cut = float(rng.uniform(2, 4))
    moves = (Move("camera", str(names[0]), 0.0, cut), Move("camera", str(names[1]), cut, 6.0))
    camera = CameraTrack(times=times, poses=_poses(rng, times), metric=True, source="random scene")
    found = [
        _object(rng, str(name), camera, moving=number < 2)
        for number, name in enumerate(rng.choice(NAMES, 3, replace=False))
    ]
    objects = tuple(item for item in found if item is not None)
    return Facts(f"clip{index:05d}", f"video{index:05d}.mp4", 6.0, camera, moves, objects)


def _poses(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    yaw = np.radians(rng.uniform(-60, 60)) * times / times[-1]
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    poses[:, :3, 3] = np.outer(times / times[-1], rng.uniform(-2, 2, 3))
    return poses


def _object(rng: np.random.Generator, name: str, camera: CameraTrack, *, moving: bool) -> ObjectFacts | None:
    """Something whose path has its middle in the camera's view at that time, while it is in view."""
    word = str(rng.choice(list(DIRECTIONS)))
    speed = str(rng.choice(("constant speed", "speeding up", "slowing down")))
    share = camera.times / camera.times[-1]
    share = {"speeding up": share**2, "slowing down": 1 - (1 - share) ** 2}.get(speed, share)
    step = np.array(DIRECTIONS[word], dtype=float) * rng.uniform(1, 4) if moving else np.zeros(3)
    half = len(share) // 2
    depth = rng.uniform(4, 12)
    there = np.array([*(rng.uniform(-0.6, 0.6, 2) * depth), depth])
    middle = camera.centres[half] + camera.rotations[half] @ there
    positions = middle + (share - share[half])[:, None] * step
    facing = np.array(DIRECTIONS[word], dtype=float) + np.array([0.01, 0, 0.02])
    whole = ObjectTrack(
        name=name,
        times=camera.times,
        positions=positions,
        metric=True,
        heading=np.tile(facing / np.linalg.norm(facing), (len(share), 1)) if moving else None,
        source="random scene",
        boxes=boxes_of(camera, positions),
        confidence=in_view(camera, positions).astype(float),
    )
    track = seen_part(whole, camera)
    if track is None:
        return None
    distance = distance_change(track, camera, float(track.times[0]), float(track.times[-1]))
    return ObjectFacts(track, word if moving else STATIONARY, distance, speed if moving else None)


def in_view(camera: CameraTrack, positions: np.ndarray) -> np.ndarray:
    """[T] bool, whether the middle of a ball is in the picture."""
    local = camera.camera_points(positions)
    picture = 0.5 + FOCAL * local[:, :2] / np.maximum(local[:, 2:], 0.5)
    return (local[:, 2] > 0.5) & (picture > 0).all(axis=1) & (picture < 1).all(axis=1)


def boxes_of(camera: CameraTrack, positions: np.ndarray) -> np.ndarray:
    """[T, 4], where a ball is seen, cut at the border of the picture."""
    local = camera.camera_points(positions)
    depth = np.maximum(local[:, 2:], 0.5)
    middle, radius = 0.5 + FOCAL * local[:, :2] / depth, FOCAL * RADIUS / depth
    return np.clip(np.concatenate([middle - radius, middle + radius], axis=1), 0, 1)
