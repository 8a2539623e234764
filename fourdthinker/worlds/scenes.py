"""Procedural 4D worlds with exact motion, rendered to pixels and to H.264 files.

A world is a textured ground, a few solids of distinct colours and one moving camera; one solid moves too.
Frames are ray-cast: every pixel keeps the nearest hit (a z-buffer), so occlusion, perspective and masks are
exact. World axes: x to the right and y forward as the first camera sees them, z up; metres and seconds.
Image axes: x right, y down.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourdthinker.files import PathLike, atomic_writer, write_bytes

Array = NDArray[np.float32]

COLOURS: dict[str, tuple[float, float, float]] = {
    "green": (0.10, 0.75, 0.15),
    "blue": (0.12, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.70, 0.15, 0.85),
}
SHAPES = ("ball", "box", "can")
CAMERA_MOTIONS = ("pan left", "pan right", "move left", "move right", "move forward", "move back")
DIRECTIONS = ("left", "right", "toward", "away")
KEY_FRAMES = (0, -1)
CAN_RADIUS = 0.75  # of its half height
_DIRECTION_VECTORS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "toward": (0.0, -1.0), "away": (0.0, 1.0)}
_LIGHT = np.array([-0.45, -0.35, 0.82], np.float32)
_LIGHT /= np.linalg.norm(_LIGHT)


@dataclass(frozen=True)
class Solid:
    """One solid standing on the ground: `centre` [T, 3] in metres, `size` its half extent, upright."""

    colour: str
    shape: str
    size: float
    centre: Array

    @property
    def name(self) -> str:
        """As questions call it: colour and shape, such as "red cube"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class World:
    """Everything that decides the pixels. Solid 0 moves, the others stand still.

    `position` [T, 3] and `yaw` [T] (radians, positive turns left) move the camera, `pitch` (radians,
    positive looks down) is fixed; `focal` in pixels; `ground` [n, n] tones of the ground's tiles, `tint`
    its colour.
    """

    seconds: Array
    position: Array
    yaw: Array
    pitch: float
    focal: float
    size: int
    solids: tuple[Solid, ...]
    ground: Array
    tint: Array

    @property
    def fps(self) -> float:
        """Frames a second; they are evenly spaced."""
        return float(1.0 / (self.seconds[1] - self.seconds[0]))

    @property
    def intrinsics(self) -> Array:
        """[3, 3], pixels; the optical axis passes through the middle of the image."""
        c = self.size / 2
        return np.array([[self.focal, 0, c], [0, self.focal, c], [0, 0, 1]], np.float32)

    @cached_property
    def rotation(self) -> Array:
        """[T, 3, 3] world to camera; camera axes are x right, y down, z forward."""
        s, c = np.sin(self.yaw), np.cos(self.yaw)
        zero = np.zeros_like(s)
        sp, cp = float(np.sin(self.pitch)), float(np.cos(self.pitch))
        right = np.stack([c, s, zero], -1)
        forward = np.stack([-s * cp, c * cp, zero - sp], -1)
        down = np.cross(forward, right)
        return np.stack([right, down, forward], 1).astype(np.float32)

    def project(self, points: Array) -> Array:
        """World points [T, ..., 3] to pixel x, pixel y and depth (metres along the optical axis)."""
        extra = (1,) * (points.ndim - 2)
        local = points - self.position.reshape(-1, *extra, 3)
        camera = np.einsum("tij,t...j->t...i", self.rotation, local)
        depth = np.maximum(camera[..., 2:], 1e-3)
        pixel = camera[..., :2] / depth * self.focal + self.size / 2
        return np.concatenate([pixel, camera[..., 2:]], -1).astype(np.float32)


@dataclass(frozen=True)
class RenderedWorld:
    """A rendered world.

    `pixels` [T, H, W, 3] uint8, `solid` [T, H, W] int8 (-1 sky, 0 ground, 1 + index of a solid), `depth` [T,
    H, W] float32 (metres along the ray, infinite for the sky).
    """

    world: World
    pixels: NDArray[np.uint8]
    solid: NDArray[np.int8]
    depth: Array

    def mask(self, index: int) -> NDArray[np.bool_]:
        """[T, H, W], true where solid `index` is what the pixel shows."""
        return self.solid == index + 1


def _path(start: NDArray[Any], step: NDArray[Any], frames: int) -> Array:
    t = np.linspace(0, 1, frames, dtype=np.float32)[:, None]
    return (start + t * step).astype(np.float32)


def _empty(rng: np.random.Generator, camera: str, frames: int, fps: float, size: int) -> World:
    """A world without solids whose camera does `camera`."""
    move, yaw = np.zeros(3, np.float32), 0.0
    kind, way = camera.split()
    if kind == "pan":
        yaw = rng.uniform(0.38, 0.48) * (1 if way == "left" else -1)
    else:
        axis, sign = {"left": (0, -1), "right": (0, 1), "forward": (1, 1), "back": (1, -1)}[way]
        move[axis] = sign * (rng.uniform(0.9, 1.5) if axis == 0 else rng.uniform(1.1, 1.8))
    base = np.array([0, 0, rng.uniform(1.5, 2.0)], np.float32)
    return World(
        seconds=(np.arange(frames) / fps).astype(np.float32),
        # The middle of the camera's path is near the origin, so that every motion class sees the same places.
        position=_path(base - move / 2, move, frames),
        yaw=np.linspace(-yaw / 2, yaw / 2, frames).astype(np.float32),
        pitch=float(rng.uniform(0.34, 0.42)),
        focal=float(size * rng.uniform(0.78, 0.86)),
        size=size,
        solids=(),
        ground=rng.uniform(0.3, 1.0, (16, 16)).astype(np.float32),
        tint=(rng.uniform(0.5, 0.75) + rng.uniform(-0.06, 0.06, 3)).astype(np.float32),
    )


def _random_solid(
    rng: np.random.Generator, world: World, colour: str, direction: str | None, way: tuple[float, float]
) -> Solid:
    """A solid somewhere in the camera's reach that goes a way of so many metres to `direction`, or stands."""
    half = float(rng.uniform(0.42, 0.55))
    y = rng.uniform(3.2, 5.8)
    step = np.zeros(3, np.float32)
    if direction is not None:
        turn = rng.uniform(-0.25, 0.25) + float(world.yaw[0])
        dx, dy = _DIRECTION_VECTORS[direction]
        length = rng.uniform(*way)
        c, s = np.cos(turn), np.sin(turn)
        step[:2] = length * (c * dx - s * dy), length * (s * dx + c * dy)
    middle = np.array([rng.uniform(-0.36, 0.36) * y, y, half], np.float32)
    centre = _path(middle - step / 2, step, len(world.seconds))
    return Solid(colour, str(rng.choice(SHAPES)), half, centre)


def _fits(world: World, solid: Solid, others: list[Solid], in_view: bool) -> bool:
    """Whether a solid can be added to a world.

    It is in view (or need not be), touches no other, and hides at most a part of one, and one of it, in the
    key frames.
    """
    seen = world.project(solid.centre)
    margin = 0.09 * world.size
    if seen[:, 2].min() < 1.5:
        return False
    if in_view and (seen[:, :2].min() < margin or seen[:, :2].max() > world.size - margin):
        return False
    ends = list(KEY_FRAMES)
    for other in others:
        if np.linalg.norm(solid.centre[:, :2] - other.centre[:, :2], axis=-1).min() < 1.2:
            return False
        there = world.project(other.centre)[ends]
        here = seen[ends]
        radii = world.focal * (solid.size / here[:, 2] + other.size / there[:, 2])
        if (np.linalg.norm(here[:, :2] - there[:, :2], axis=-1) < 0.8 * radii).any():
            return False
    return True


def make_world(
    seed: int | Sequence[int],
    camera: str,
    direction: str,
    *,
    frames: int = 8,
    fps: float = 4.0,
    size: int = 64,
    way: tuple[float, float] = (1.2, 1.8),
) -> World:
    """A random world in which the camera and solid 0 move as told.

    The two solids that questions may be about (0, moving, and 1, at rest) stay in view.

    Args:
        seed: of everything that is random.
        camera: one of CAMERA_MOTIONS.
        direction: one of DIRECTIONS: where solid 0 moves, as the first camera sees it, the camera's own
            motion removed.
        frames: how many.
        fps: frames a second.
        size: height and width of the pictures, in pixels.
        way: how far solid 0 goes, from and to, in metres.

    Returns:
        The world; `render` makes pictures of it.

    Raises:
        RuntimeError: no world was found in 200 tries.
    """
    rng = np.random.default_rng(seed)
    for _ in range(200):
        world = _empty(rng, camera, frames, fps, size)
        colours = [str(c) for c in rng.permutation(list(COLOURS))]
        solids: list[Solid] = []
        for _ in range(60):
            number = len(solids)
            solid = _random_solid(rng, world, colours[number], direction if number == 0 else None, way)
            if _fits(world, solid, solids, in_view=number < 2):
                solids.append(solid)
            if len(solids) == 3:
                return replace(world, solids=tuple(solids))
    raise RuntimeError(f"no world for seed {seed}, camera {camera!r}, direction {direction!r} in 200 tries")


def _hit_ball(origin: Array, ray: Array, centre: Array, half: float) -> tuple[Array, Array]:
    offset = origin - centre
    b = np.einsum("tpi,ti->tp", ray, offset)
    c = (offset * offset).sum(-1)[:, None] - half * half
    root = b * b - c
    t = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)
    return t.astype(np.float32), np.zeros(0, np.float32)


def _hit_box(origin: Array, ray: Array, centre: Array, half: float) -> tuple[Array, Array]:
    offset = (origin - centre)[:, None]
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / np.where(np.abs(ray) < 1e-9, 1e-9, ray)
    near = (-np.sign(inverse) * half - offset) * inverse
    far = (np.sign(inverse) * half - offset) * inverse
    enter, leave = near.max(-1), far.min(-1)
    t = np.where((enter < leave) & (enter > 0), enter, np.inf)
    return t.astype(np.float32), np.argmax(near, -1).astype(np.float32)


def _hit_can(origin: Array, ray: Array, centre: Array, half: float) -> tuple[Array, Array]:
    """An upright cylinder of radius CAN_RADIUS * half and half height `half`."""
    offset = (origin - centre)[:, None]
    radius = CAN_RADIUS * half
    a = (ray[..., :2] ** 2).sum(-1)
    b = (ray[..., :2] * offset[..., :2]).sum(-1)
    c = (offset[..., :2] ** 2).sum(-1) - radius * radius
    root = b * b - a * c
    side = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / np.maximum(a, 1e-9), np.inf)
    with np.errstate(invalid="ignore"):
        z = offset[..., 2] + np.where(np.isfinite(side), side, 0) * ray[..., 2]
    side = np.where(np.abs(z) <= half, side, np.inf)
    down = np.where(ray[..., 2] < -1e-6, ray[..., 2], -1e-6)
    cap = (half - offset[..., 2]) / down
    hit = offset[..., :2] + cap[..., None] * ray[..., :2]
    cap = np.where(((hit**2).sum(-1) <= radius * radius) & (cap > 0), cap, np.inf)
    return np.minimum(side, cap).astype(np.float32), (cap < side).astype(np.float32)


def _normals(shape: str, point: Array, ray: Array, part: Array) -> Array:
    """Unit normals [n, 3] at `point` (relative to the solid's centre)."""
    if shape == "ball":
        normal = point.copy()
    elif shape == "box":
        normal = np.zeros_like(point)
        rows, axis = np.arange(len(point)), part.astype(np.int64)
        normal[rows, axis] = -np.sign(ray[rows, axis])
    else:
        normal = point.copy()
        normal[:, 2] = 0
        normal[part > 0] = (0, 0, 1)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)


def _ground_colour(world: World, x: Array, y: Array, distance: Array, frame: NDArray[np.int64]) -> Array:
    n = len(world.ground)
    tone = world.ground[np.floor(x / 0.8).astype(int) % n, np.floor(y / 0.8).astype(int) % n]
    fade = np.clip((distance - 6) / 14, 0, 1)  # far tiles are smaller than a pixel: show their mean
    tone = tone * (1 - fade) + 0.65 * fade
    for solid in world.solids:
        centre = solid.centre[frame]
        dx = x - centre[:, 0] + _LIGHT[0] / _LIGHT[2] * solid.size
        dy = y - centre[:, 1] + _LIGHT[1] / _LIGHT[2] * solid.size
        tone = np.where(dx * dx + dy * dy < (1.05 * solid.size) ** 2, tone * 0.35, tone)  # its shadow
    return tone[:, None] * world.tint


_HITS = {"ball": _hit_ball, "box": _hit_box, "can": _hit_can}


def render(world: World) -> RenderedWorld:
    """Ray-cast every frame of a world.

    Args:
        world: what is seen.

    Returns:
        Pictures, and for each pixel what is seen and how far away.
    """
    size, frames = world.size, len(world.seconds)
    grid = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / world.focal
    local = np.stack([*np.meshgrid(grid, grid), np.ones((size, size), np.float32)], -1).reshape(-1, 3)
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    ray = (local @ world.rotation).astype(np.float32)  # rows of the rotation are the camera's axes
    origin = world.position

    with np.errstate(divide="ignore"):
        depth = np.where(ray[..., 2] < -1e-4, -origin[:, None, 2] / ray[..., 2], np.inf).astype(np.float32)
    depth[depth > 60] = np.inf
    solid = np.where(np.isfinite(depth), 0, -1).astype(np.int8)
    part = np.zeros_like(depth)
    for k, item in enumerate(world.solids):
        t, where = _HITS[item.shape](origin, ray, item.centre, item.size)
        nearer = t < depth
        depth[nearer] = t[nearer]
        solid[nearer] = k + 1
        if where.size:
            part[nearer] = where[nearer]

    colour = np.empty((*depth.shape, 3), np.float32)
    sky = solid < 0
    colour[sky] = np.array([0.55, 0.68, 0.85], np.float32)
    frame_of = np.broadcast_to(np.arange(frames)[:, None], depth.shape)
    ground = solid == 0
    hit = origin[frame_of[ground]] + depth[ground][:, None] * ray[ground]
    colour[ground] = _ground_colour(world, hit[:, 0], hit[:, 1], depth[ground], frame_of[ground])
    for k, item in enumerate(world.solids):
        mine = solid == k + 1
        index = frame_of[mine]
        point = origin[index] + depth[mine][:, None] * ray[mine] - item.centre[index]
        lit = np.maximum(_normals(item.shape, point, ray[mine], part[mine]) @ _LIGHT, 0)
        colour[mine] = np.array(COLOURS[item.colour], np.float32) * (0.4 + 0.6 * lit)[:, None]
    pixels = np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)
    shape = (frames, size, size)
    return RenderedWorld(world, pixels.reshape(*shape, 3), solid.reshape(shape), depth.reshape(shape))


def write_video(path: PathLike, pixels: NDArray[np.uint8], fps: float, *, crf: int = 16) -> None:
    """Write a video, H.264 in mp4, of the same pixels always the same bytes.

    It is not waited for the disk, since it can be rendered once more.

    Args:
        path: the file.
        pixels: uint8 [T, H, W, 3]; H and W are even.
        fps: frames a second; rounded to a whole number.
        crf: quality, as x264 counts it: 0 is lossless.

    Raises:
        ValueError: an odd side.
    """
    import av  # only here, so that a machine without PyAV can render

    if pixels.shape[1] % 2 or pixels.shape[2] % 2:
        raise ValueError(
            f"H.264 needs even sides, got {pixels.shape[1]}x{pixels.shape[2]}: render another size"
        )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        stream.thread_count = 1
        # x264 with its tree of macroblocks makes other bytes of the same pictures, call by call.
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_bytes(path, buffer.getvalue(), sync=False)


def write_image(path: PathLike, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG; it is not waited for the disk, since it can be rendered once more.

    Args:
        path: the file.
        pixels: uint8 [H, W, 3].
    """
    with atomic_writer(path, sync=False) as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
