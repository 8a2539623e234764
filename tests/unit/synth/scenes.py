"""Facts of random scenes: tracks of smooth cameras and objects, with the labels that they were made from."""

from __future__ import annotations

import numpy as np

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


def scene(index: int, seed: int = 0) -> Facts:
    """One scene of two camera moves in a row, two moving objects and one at rest."""
    rng = np.random.default_rng([seed, index])
    times = np.linspace(0, 6, 61)
    names = rng.choice(CAMERA_MOVES, 2, replace=False)
    cut = float(rng.uniform(2, 4))
    moves = (Move("camera", str(names[0]), 0.0, cut), Move("camera", str(names[1]), cut, 6.0))
    objects = []
    for number, name in enumerate(rng.choice(NAMES, 3, replace=False)):
        objects.append(_object(rng, str(name), times, moving=number < 2))
    camera = CameraTrack(
        times=times,
        poses=_poses(rng, times),
        metric=True,
        source="random scene",
    )
    return Facts(f"clip{index:05d}", f"video{index:05d}.mp4", 6.0, camera, moves, tuple(objects))


def _poses(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    yaw = np.radians(rng.uniform(-60, 60)) * times / times[-1]
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    poses[:, :3, 3] = np.outer(times / times[-1], rng.uniform(-2, 2, 3))
    return poses


def _object(rng: np.random.Generator, name: str, times: np.ndarray, *, moving: bool) -> ObjectFacts:
    start = np.array([rng.uniform(-3, 3), rng.uniform(-1, 1), rng.uniform(3, 12)])
    word = str(rng.choice(list(DIRECTIONS)))
    speed = str(rng.choice(("constant speed", "speeding up", "slowing down")))
    share = times / times[-1]
    share = {"speeding up": share**2, "slowing down": 1 - (1 - share) ** 2}.get(speed, share)
    step = np.array(DIRECTIONS[word], dtype=float) * rng.uniform(1, 4) if moving else np.zeros(3)
    facing = np.array(DIRECTIONS[word], dtype=float) + np.array([0.01, 0, 0.02])
    corner = rng.uniform(0.1, 0.5, 2)
    track = ObjectTrack(
        name=name,
        times=times,
        positions=start + share[:, None] * step,
        metric=True,
        heading=np.tile(facing / np.linalg.norm(facing), (len(times), 1)) if moving else None,
        source="random scene",
        boxes=np.tile([*corner, *(corner + 0.2)], (len(times), 1)),
    )
    distance = str(rng.choice(("closer", "farther", "same")))
    return ObjectFacts(track, word if moving else STATIONARY, distance, speed if moving else None)
