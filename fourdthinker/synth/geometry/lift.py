"""Objects in the world from their masks: by depth, by where they stand on the ground, or by their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.synth import rle
from fourdthinker.synth.geometry.depth import Depth
from fourdthinker.synth.tracks import Array, CameraTrack, ObjectTrack

_LEAST_AREA = 1e-3  # of the picture, for a mask that says where an object is
_STAYS = 0.02  # depths of the scene that a camera may move for objects to be lifted by their size
_AROUND = 0.5  # seconds before and after an instant over which an object hardly changes its outline
_OUTLINE = 1.15  # times as long for its width as usual: more is no whole object
_BORDER = 2  # pixels: a mask that reaches the border is cut off by it
_TRIES = 300
_WAYS = np.stack([np.cos(np.arange(36) * np.pi / 36), np.sin(np.arange(36) * np.pi / 36)])  # [2, 36]
_GROUND_SHARE = 0.25  # of the points in front that lie on the ground, for it to be one
_STEEP = 0.6  # cosine: the ground's normal is within 53 degrees of the mean camera's up


@dataclass(frozen=True, eq=False)
class Plane:
    """The points x with normal · x = offset; the normal [3] points up."""

    normal: Array
    offset: float


def ground_plane(camera: CameraTrack, points: Array) -> Plane | None:
    """The plane below the camera that most points of the scene lie on.

    Args:
        camera: the camera's path.
        points: [N, 3], of the scene.

    Returns:
        The plane, or None where no level plane below the camera holds a quarter of the points.
    """
    if len(points) < 20:
        return None
    up = -camera.rotations[:, :, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    distance = np.linalg.norm(points - camera.centres.mean(axis=0), axis=1)
    limit = 0.02 * float(np.median(distance))
    rng = np.random.default_rng(0)
    best, best_count = None, 0
    for _ in range(_TRIES):
        a, b, c = points[rng.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length < 1e-9:
            continue
        normal *= np.sign(normal @ up) / length
        on = np.abs((points - a) @ normal) < limit * np.maximum(1.0, distance / np.median(distance))
        if normal @ up < _STEEP or (camera.centres @ normal < a @ normal).any() or on.sum() <= best_count:
            continue
        best, best_count = on, int(on.sum())
    if best is None or best_count < max(20, _GROUND_SHARE * len(points)):
        return None
    middle = points[best].mean(axis=0)
    normal = np.linalg.svd(points[best] - middle)[2][2]
    normal *= np.sign(normal @ up)
    return Plane(normal, float(normal @ middle))


def lift_object(
    name: str,
    masks: Sequence[NDArray[np.bool_]],
    times: Sequence[float] | Array,
    camera: CameraTrack,
    *,
    depth: Depth | None = None,
    ground: Plane | None = None,
) -> ObjectTrack:
    """An object's path in the world.

    With depth, its position is the middle of its mask at the mask's median depth; with a ground plane, it is
    where the lowest part of the mask stands on the ground. With neither, its apparent size says how its
    distance changes, as of a rigid thing; the unit is then its first distance, so that the camera must not
    move. The size is the root of its area; by its length, which changes less where a part is hidden, it is
    at `otherwise`.

    Args:
        name: of the object.
        masks: bool [H, W], one for each time.
        times: seconds.
        camera: with intrinsics.
        depth: of the same frames; None: the ground is used.
        ground: the plane that the object stands on; None: the size is used.

    Returns:
        The track. Its confidence is 0 where the mask is empty, tiny or cut by the border, and the position is
        then that of the nearest time with one.

    Raises:
        GeometryError: neither depth nor ground for a camera that moves or has metres, no intrinsics, unlike
            numbers of frames, or no usable mask at all.
    """
    seconds = np.asarray(times, np.float64)
    by_size = depth is None and ground is None
    if by_size and (camera.metric or np.ptp(camera.centres, axis=0).max() > _STAYS):
        raise GeometryError(
            f"{name}: neither depth nor a ground plane says how far it is from a camera that moves; give one"
        )
    if camera.intrinsics is None or camera.size is None:
        raise GeometryError(f"{name}: the camera's track has no intrinsics; give them")
    if len(masks) != len(seconds) or (depth is not None and len(depth.values) != len(seconds)):
        raise GeometryError(f"{name}: {len(masks)} masks for {len(seconds)} times; give one for each")
    if depth is not None and depth.metric != camera.metric:
        raise GeometryError(f"{name}: depth and camera are not both in metres; give both in one unit")
    poses = camera.resampled(seconds)
    positions, otherwise = np.full((2, len(seconds), 3), np.nan)
    usable = np.array([_usable(mask) for mask in masks])
    if depth is None:
        usable &= _alike(masks, usable)
    feet = _feet(masks, seconds, usable) if depth is None and ground is not None else None
    boxes = np.zeros((len(seconds), 4))
    for k, mask in enumerate(masks):
        boxes[k] = rle.box(mask) or 0.0
        if not usable[k]:
            continue
        if depth is not None:
            positions[k] = _by_depth(mask, depth.values[k], poses, k)
        elif ground is not None:
            assert feet is not None
            positions[k] = _by_ground(mask, poses, k, ground, feet[k])
        else:
            positions[k], otherwise[k] = _by_size(mask, poses, k)
    known = np.isfinite(positions[:, 0])
    if not known.any():
        raise GeometryError(f"{name}: no mask is large enough and whole; choose another object or clip")
    nearest = np.abs(np.subtract.outer(np.arange(len(seconds)), np.flatnonzero(known))).argmin(axis=1)
    filled = np.flatnonzero(known)[nearest]
    if by_size:
        positions, otherwise = (poses.centres + _from_first(one[filled]) for one in (positions, otherwise))
    else:
        positions = positions[filled]
    confidence = np.where(known, poses.confidence, 0.0)
    source = depth.source if depth is not None else "size" if by_size else "ground"
    return ObjectTrack(
        name, seconds, positions, metric=camera.metric, confidence=confidence, source=source, boxes=boxes,
        otherwise=otherwise if by_size else None,
    )  # fmt: skip


def _usable(mask: NDArray[np.bool_]) -> bool:
    if mask.mean() < _LEAST_AREA:
        return False
    inner = mask[_BORDER:-_BORDER, _BORDER:-_BORDER]
    return int(inner.sum()) == int(mask.sum())


def _ray(poses: CameraTrack, k: int, mask: NDArray[np.bool_], column: float, row: float) -> Array:
    """[3], the direction in the world of a pixel of a mask; its part along the optical axis is 1."""
    assert poses.intrinsics is not None  # checked by lift_object
    assert poses.size is not None
    height, width = mask.shape
    pixel = np.array([column * poses.size[0] / width, row * poses.size[1] / height, 1.0])
    return poses.rotations[k] @ np.linalg.solve(poses.intrinsics[k], pixel)


def _middle_ray(mask: NDArray[np.bool_], poses: CameraTrack, k: int) -> Array:
    """The direction of the middle of a mask."""
    rows, columns = np.nonzero(mask)
    return _ray(poses, k, mask, float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)


def _from_first(offsets: Array) -> Array:
    """[T, 3] in units of the first distance."""
    return offsets / np.linalg.norm(offsets[0])


def _by_size(mask: NDArray[np.bool_], poses: CameraTrack, k: int) -> tuple[Array, Array]:
    """Along the middle ray, as far as its solid angle says, and as its largest angle across does.

    No turn of the camera changes either.
    """
    assert poses.intrinsics is not None  # checked by lift_object
    assert poses.size is not None
    scale = np.array(poses.size) / [mask.shape[1], mask.shape[0]]
    rows, columns = np.nonzero(mask)
    lens = poses.intrinsics[k]
    x = ((columns + 0.5) * scale[0] - lens[0, 2]) / lens[0, 0]
    y = ((rows + 0.5) * scale[1] - lens[1, 2]) / lens[1, 1]
    pixel = scale.prod() / (lens[0, 0] * lens[1, 1])
    angle = float(((1 + x**2 + y**2) ** -1.5).sum() * pixel)
    ray = _middle_ray(mask, poses, k)
    ray /= np.linalg.norm(ray)
    rays = np.stack([x, y, np.ones_like(x)], axis=1) @ poses.rotations[k].T
    across = rays @ np.linalg.svd(ray[None])[2][1:].T / np.linalg.norm(rays, axis=1)[:, None]
    long = float(np.ptp(across @ _WAYS, axis=0).max()) + np.sqrt(angle / len(rows))  # to the pixels' edges
    return ray / np.sqrt(angle), ray / long


def _by_depth(mask: NDArray[np.bool_], depth: NDArray[np.float32], poses: CameraTrack, k: int) -> Array:
    if depth.shape != mask.shape:
        raise GeometryError(
            f"depth has {depth.shape[1]}x{depth.shape[0]} pixels and the mask "
            f"{mask.shape[1]}x{mask.shape[0]}; give both of one size"
        )
    rows, columns = np.nonzero(mask)
    values = depth[rows, columns]
    values = values[np.isfinite(values)]
    if len(values) < 0.2 * len(rows):
        return np.full(3, np.nan)
    return poses.centres[k] + float(np.median(values)) * _middle_ray(mask, poses, k)


def _alike(masks: Sequence[NDArray[np.bool_]], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[T], whose outline is as long for its width as most usable ones: of others, something hides a part."""
    longer = np.full(len(masks), np.nan)
    for k in np.flatnonzero(usable):
        small, large = np.linalg.eigvalsh(np.cov(np.nonzero(masks[int(k)])))
        longer[k] = np.sqrt(large / max(small, 1e-9))
    if not usable.any():
        return usable
    ratio = longer / np.nanmedian(longer)
    return np.asarray((ratio < _OUTLINE) & (ratio > 1 / _OUTLINE))


def _feet(masks: Sequence[NDArray[np.bool_]], seconds: Array, usable: NDArray[np.bool_]) -> Array:
    """[T, 2], column and row where each mask stands, NaN where it is not usable.

    A lowest pixel is exact to a pixel, the middle and the area of a mask to much less; so the foot is as far
    from the middle, in roots of the area, as it is in the median around that time.
    """
    known = np.flatnonzero(usable)
    feet = np.full((len(masks), 2), np.nan)
    if not len(known):
        return feet
    middle, size, foot = np.zeros((len(known), 2)), np.zeros((len(known), 1)), np.zeros((len(known), 2))
    for n, k in enumerate(known):
        rows, columns = np.nonzero(masks[int(k)])
        bottom = np.percentile(rows, 99) + 1
        low = rows >= bottom - max(0.08 * (bottom - rows.min()), 2)
        middle[n], size[n] = (columns.mean() + 0.5, rows.mean() + 0.5), np.sqrt(len(rows))
        foot[n] = columns[low].mean() + 0.5, bottom
    ratio = (foot - middle) / size
    near = np.abs(np.subtract.outer(seconds[known], seconds[known])) <= _AROUND
    feet[known] = middle + size * np.array([np.median(ratio[row], axis=0) for row in near])
    return feet


def _by_ground(mask: NDArray[np.bool_], poses: CameraTrack, k: int, ground: Plane, foot: Array) -> Array:
    ray = _ray(poses, k, mask, float(foot[0]), float(foot[1]))
    down = float(ray @ ground.normal)
    if down > -1e-3:  # at or above the horizon
        return np.full(3, np.nan)
    return poses.centres[k] + ray * (ground.offset - float(poses.centres[k] @ ground.normal)) / down
