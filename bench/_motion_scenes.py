"""Rendered scenes whose camera and object moves are known because they were asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fourdthinker.synth.geometry import scene_camera, scene_object
from fourdthinker.synth.tracks import CAMERA_MOVES, SPEED_PROFILES, CameraTrack, ObjectTrack
from fourdthinker.worlds.scenes import World, make_world

# Metres (or radians) of each move over a clip of three seconds, along the levelled camera's right, up and
# forward.
_ALONG = {
    "truck right": (1, 0, 0), "truck left": (-1, 0, 0), "pedestal up": (0, 1, 0), "pedestal down": (0, -1, 0),
    "dolly in": (0, 0, 1), "dolly out": (0, 0, -1),
}  # fmt: skip
_TURNS = {
    "pan left": (1, 0, 0), "pan right": (-1, 0, 0), "tilt up": (0, 1, 0), "tilt down": (0, -1, 0),
    "roll clockwise": (0, 0, 1), "roll counter-clockwise": (0, 0, -1),
}  # fmt: skip
# Ways of the object over the ground, as the first camera sees it: right and forward.
WAYS = {
    "right": (1, 0), "left": (-1, 0), "toward the camera": (0, -1), "away from the camera": (0, 1),
    "stationary": (0, 0),
}  # fmt: skip


@dataclass(frozen=True)
class TurningWorld(World):
    """A world whose camera tilts (up) and rolls (clockwise) too: radians [T]."""

    tilt: np.ndarray
    roll: np.ndarray

    @property
    def rotation(self) -> np.ndarray:
        """[T, 3, 3] world to camera."""
        sy, cy = np.sin(self.yaw), np.cos(self.yaw)
        pitch = self.pitch - self.tilt
        sp, cp, zero = np.sin(pitch), np.cos(pitch), np.zeros_like(sy)
        right = np.stack([cy, sy, zero], -1)
        forward = np.stack([-sy * cp, cy * cp, -sp], -1)
        down = np.cross(forward, right)
        c, s = np.cos(self.roll)[:, None], np.sin(self.roll)[:, None]
        return np.stack([c * right + s * down, c * down - s * right, forward], 1).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """A world, and what was asked of it."""

    world: TurningWorld
    camera: str
    direction: str
    profile: str

    def camera_track(self) -> CameraTrack:
        return scene_camera(self.world)

    def object_track(self) -> ObjectTrack:
        return scene_object(self.world, 0)

    def distance(self) -> str | None:
        """Of the solid: by the ends of the paths that were rendered."""
        far = np.linalg.norm(self.world.solids[0].centre - self.world.position, axis=1)
        if far.max() / far.min() < 1.045:
            return "same"
        ratio = far[-1] / far[0]
        return "closer" if ratio < 0.84 else "farther" if ratio > 1 / 0.84 else None


def _share(profile: str, t: np.ndarray) -> np.ndarray:
    """Share of the way at shares of the time, for a profile of speed."""
    constant, up, down, up_down, down_up, varying = SPEED_PROFILES
    return {
        constant: t,
        up: 0.4 * t + 0.6 * t**2,
        down: 1.6 * t - 0.6 * t**2,
        up_down: t - 0.55 * np.sin(2 * np.pi * t) / (2 * np.pi),
        down_up: t + 0.55 * np.sin(2 * np.pi * t) / (2 * np.pi),
        varying: t + 0.55 * np.sin(4 * np.pi * t) / (4 * np.pi),
    }[profile]


def make_scene(seed: int, *, seconds: float = 3.0, fps: float = 30.0, size: int = 480) -> Scene:
    """A random scene; camera moves, ways and profiles take turns.

    Args:
        seed: of everything that is random.
        seconds: length.
        fps: frames a second.
        size: height and width in pixels.

    Returns:
        The scene; its world can be rendered.
    """
    rng = np.random.default_rng([seed, 14])
    camera = ("static", *CAMERA_MOVES)[seed % 13]
    direction = list(WAYS)[int(rng.integers(len(WAYS)))]
    profile = SPEED_PROFILES[int(rng.integers(6))]
    frames = round(seconds * fps) + 1
    for attempt in range(300):
        world = _world([seed, attempt], rng, camera, direction, profile, frames, fps, size)
        seen = world.project(world.solids[0].centre)
        margin = 0.12 * size
        inside = (seen[:, :2] > margin).all() and (seen[:, :2] < size - margin).all()
        apart = all(
            np.linalg.norm(world.solids[0].centre - other.centre, axis=1).min() > 1.1
            for other in world.solids[1:]
        )
        if inside and apart and seen[:, 2].min() > 1.5:
            return Scene(world, camera, direction, profile if direction != "stationary" else "")
    raise RuntimeError(f"no scene for seed {seed}, {camera}, {direction}")


def _world(
    seed: list[int],
    rng: np.random.Generator,
    camera: str,
    direction: str,
    profile: str,
    frames: int,
    fps: float,
    size: int,
) -> TurningWorld:
    base = make_world(seed, "move forward", "left", frames=2, fps=fps, size=size)
    share = np.linspace(0, 1, frames)
    length, angle = rng.uniform(0.9, 1.6), rng.uniform(0.4, 0.6)
    along = np.array(_ALONG.get(camera, (0, 0, 0)))
    turn = np.array(_TURNS.get(camera, (0, 0, 0)))
    if "pedestal" in camera:
        length = rng.uniform(0.7, 1.0)
    start = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.5, 0.3), rng.uniform(1.5, 2.0)])
    start[1] -= max(along[2], 0) * length / 2
    start[2] += length if camera == "pedestal down" else 0
    move = length * np.array([along[0], along[2], along[1]])
    yaw, tilt, roll = (angle * k * (share - 0.5) for k in turn)
    way = np.array([*WAYS[direction], 0.0])
    turned = float(yaw[0]) + rng.uniform(-0.15, 0.15)
    c, s = np.cos(turned), np.sin(turned)
    step = rng.uniform(1.3, 1.8) * np.array([c * way[0] - s * way[1], s * way[0] + c * way[1], 0])
    half = float(rng.uniform(0.42, 0.55))
    y = rng.uniform(3.4, 6.0)
    middle = np.array([rng.uniform(-0.3, 0.3) * y, y, half])
    centre = middle + (_share(profile, share) - 0.5)[:, None] * step
    still = [replace(s, centre=np.tile(s.centre[:1], (frames, 1))) for s in base.solids[1:]]
    first = replace(base.solids[0], size=half, centre=centre.astype(np.float32))
    return TurningWorld(
        seconds=(np.arange(frames) / fps).astype(np.float32),
        position=(start + share[:, None] * move).astype(np.float32),
        yaw=yaw.astype(np.float32),
        pitch=base.pitch,
        focal=base.focal,
        size=size,
        solids=(first, *still),
        ground=base.ground,
        tint=base.tint,
        tilt=tilt.astype(np.float32),
        roll=roll.astype(np.float32),
    )
