"""Camera paths with known motion, for every test of geometry and motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fourdthinker.synth.tracks import CameraTrack, rotations_of

RATE = 10.0


def walked(
    velocity: Callable[[np.ndarray], np.ndarray],
    turning: Callable[[np.ndarray], np.ndarray],
    seconds: float,
    *,
    start: np.ndarray | None = None,
    position: tuple[float, float, float] = (0, 0, 0),
    rate: float = RATE,
    metric: bool = True,
) -> CameraTrack:
    """The track of a camera with that velocity (units a second) and turning (degrees a second), [N, 3]."""
    fine = 20
    times = np.arange(round(seconds * rate) + 1) / rate
    steps = (np.arange(len(times) * fine - fine) + 0.5) / (rate * fine)
    rotation = np.eye(3) if start is None else start
    centre = np.array(position, float)
    speeds, turns = velocity(steps), np.deg2rad(turning(steps))
    poses = []
    for k in range(len(times)):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, centre
        poses.append(pose)
        for i in range(k * fine, min((k + 1) * fine, len(steps))):
            half = rotation @ rotations_of(turns[i] / (2 * rate * fine))
            centre = centre + half @ speeds[i] / (rate * fine)
            rotation = rotation @ rotations_of(turns[i] / (rate * fine))
    size = (640, 480)
    lens = np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]])
    return CameraTrack(times, np.array(poses), lens, size, metric=metric, source="test")


def steady(*values: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.tile(np.array(values, float), (len(t), 1))


def during(start: float, end: float, *values: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.where(((t >= start) & (t < end))[:, None], np.array(values, float), 0.0)


def yaw(degrees: float) -> np.ndarray:
    """A camera turned to the right by so many degrees."""
    return rotations_of(np.array([0, np.deg2rad(degrees), 0]))


NONE = steady(0, 0, 0)
FORWARD = steady(0, 0, 0.5)
# The four paths that SpatialVID's rule is wrong on, but for the first, with what the camera does.
FOUR = {
    "forward": (walked(FORWARD, NONE, 3), "dolly in"),
    "forward after turning by 90 degrees": (walked(FORWARD, NONE, 3, start=yaw(90)), "dolly in"),
    "forward after turning by 180 degrees": (walked(FORWARD, NONE, 3, start=yaw(180)), "dolly in"),
    "pan 1 m from the origin": (walked(NONE, steady(0, 10, 0), 3, position=(0, 0, 1)), "pan right"),
}
