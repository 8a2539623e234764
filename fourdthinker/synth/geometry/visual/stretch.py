"""A stretch of the path: rotation alone until there is parallax, then poses and points together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.geometry.visual.bundle import adjust, resect
from fourdthinker.synth.geometry.visual.views import (
    fit_rotation,
    inliers,
    project,
    relative_poses,
    triangulate,
)
from fourdthinker.synth.tracks import Array, rotation_vectors

PARALLAX = 0.012  # radians left by the best rotation, in the median, from which a camera has moved
LEAST_COMMON = 24  # points of two views from which a rotation is fitted
LEAST_KNOWN = 12  # points of known position from which a pose is computed
MOST_ADJUSTED = 600  # points in a bundle adjustment
NEAR = 2.5  # pixels within which a point agrees with a pose
_ANGLE = 0.015  # radians between rays from which a point is triangulated
_TURN_COST = 0.05  # pixels of error that a degree beside the best rotation is worth
_EVERY = 12  # frames between two bundle adjustments


@dataclass
class Path:
    """What is known so far. `rays` [N, T, 2]; poses camera to world; `points` [N, 3], NaN where unknown."""

    rays: Array
    pixel: float
    rotations: Array
    centres: Array
    confidence: Array
    points: Array

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.rays.shape[1]

    def seen(self, *frames: int) -> NDArray[np.bool_]:
        """[N], the points that all these frames see."""
        return np.asarray(np.isfinite(self.rays[:, list(frames), 0]).all(axis=1))

    def known(self, frame: int) -> NDArray[np.bool_]:
        """[N], the points of known position that a frame sees."""
        return self.seen(frame) & np.isfinite(self.points[:, 0])


def new_path(rays: Array, pixel: float) -> Path:
    """A path that stands still, of which only the first pose is known."""
    count = rays.shape[1]
    confidence = np.zeros(count)
    confidence[0] = 1
    return Path(
        rays,
        pixel,
        np.tile(np.eye(3), (count, 1, 1)),
        np.zeros((count, 3)),
        confidence,
        np.full((len(rays), 3), np.nan),
    )


def go_on(path: Path, first: int) -> int:
    """Solve as many frames as possible from `first`, whose pose is known; the last frame that was solved."""
    path.points[:] = np.nan
    end, base = _turn(path, first)
    if base is None:
        return end
    if not _begin(path, first, base):
        path.confidence[first + 1 : base + 1] *= 0.5
        return base
    last = base
    for frame in range(base + 1, path.length):
        if not _locate(path, frame, frame - 1):
            break
        last = frame
        _extend(path, first, frame)
        if (frame - base) % _EVERY == 0:
            _adjust(path, first, frame)
    _adjust(path, first, last)
    for frame in range(first + 1, last + 1):
        _locate(path, frame, frame)
    return last


def _turn(path: Path, first: int) -> tuple[int, int | None]:
    """Rotations after `first`: the last frame that they reach, and the first frame with parallax."""
    for frame in range(first + 1, path.length):
        common = path.seen(first, frame)
        if common.sum() < LEAST_COMMON:
            if frame > first + 1:
                return frame - 1, None
            path.rotations[frame], path.centres[frame] = path.rotations[first], path.centres[first]
            path.confidence[frame] = 0  # nothing connects these two frames
            return frame, None
        fit = fit_rotation(path.rays[common, first], path.rays[common, frame], path.pixel)
        path.rotations[frame] = path.rotations[first] @ fit.rotation
        path.centres[frame] = path.centres[first]
        share = float((fit.residuals < max(2 * NEAR * path.pixel, PARALLAX)).mean())
        path.confidence[frame] = sureness(share, int(common.sum()))
        if np.median(fit.residuals) > PARALLAX:
            return frame, frame
    return path.length - 1, None


def sureness(share: float, count: int) -> float:
    """How sure a pose is with which `share` of `count` points agree: 1 from 80 % of 40, 0 to 40 % or 20."""
    return float(np.clip((share - 0.4) / 0.4, 0, 1) * np.clip((count - 20) / 20, 0, 1))


def _begin(path: Path, first: int, base: int) -> bool:
    """Poses between two frames with parallax, and points: the candidate that most frames agree with."""
    common = np.flatnonzero(path.seen(first, base))
    a, b = path.rays[common, first], path.rays[common, base]
    others = sorted({*np.linspace(first, base, 5, dtype=int)[1:-1].tolist(), *range(base + 1, base + 4)})
    others = [k for k in others if first < k < path.length and k != base]
    best: tuple[float, Array, Array, Array] | None = None
    for rotation, centre in relative_poses(a, b, path.pixel):
        found = _candidate(path, common, first, base, rotation, centre, others)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        return False
    _, path.rotations[base], path.centres[base], path.points[common] = best
    for frame in range(first + 1, base):
        if not _locate(path, frame, frame):
            path.centres[frame] = path.centres[first]
    _extend(path, first, base)
    _adjust(path, first, base)
    return True


def _candidate(
    path: Path,
    common: NDArray[np.int64],
    first: int,
    base: int,
    rotation: Array,
    centre: Array,
    others: list[int],
) -> tuple[float, Array, Array, Array] | None:
    """Score (lower is better), rotation and centre of `base`, points [len(common), 3]; or None."""
    pair = np.stack([np.eye(3), rotation]), np.stack([np.zeros(3), centre])
    local, angle = triangulate(*pair, path.rays[common][:, [first, base]])
    fits = np.ones(len(common), bool)
    for k, frame in enumerate((first, base)):
        fits &= inliers(pair[0][k], pair[1][k], local, path.rays[common, frame], NEAR * path.pixel)
    good = fits & (angle > 0.3 * _ANGLE)  # far points agree with much, and say little
    if good.sum() < LEAST_KNOWN or fits.sum() < 0.4 * len(common):
        return None
    scale = 1 / float(np.median(local[good, 2]))
    turn, origin = path.rotations[first], path.centres[first]
    points = origin + (local * scale) @ turn.T
    after = origin + turn @ centre * scale
    errors = [np.full(int((~fits).sum()), 3 * NEAR)]  # in pixels; a point that does not fit counts as far off
    for frame in others:
        seen = good & np.isfinite(path.rays[common, frame, 0])
        if seen.sum() < LEAST_KNOWN:
            continue
        rays = path.rays[common[seen], frame]
        guess = (path.rotations[frame], origin) if frame < base else (turn @ rotation, after)
        pose = resect(*guess, points[seen], rays, path.pixel)
        size = np.linalg.norm(project(*pose, points[seen])[0] - rays, axis=1) / path.pixel
        errors.append(np.minimum(size, 3 * NEAR))
    # Views of a plane have two explanations that fit equally well; the one that needs no other turn is taken.
    turned = rotation_vectors(path.rotations[base].T @ turn @ rotation)
    score = float(np.concatenate(errors).mean() + _TURN_COST * np.rad2deg(np.linalg.norm(turned)))
    points[~good] = np.nan
    return score, turn @ rotation, after, points


def _locate(path: Path, frame: int, guess: int) -> bool:
    """The pose of a frame, from that of another one and known points; those that disagree are forgotten."""
    known = np.flatnonzero(path.known(frame))
    if len(known) < LEAST_KNOWN:
        return False
    rotation, centre = path.rotations[guess], path.centres[guess]
    if guess == frame - 1 and guess > 0:  # as the last step went on
        rotation = rotation @ path.rotations[guess - 1].T @ rotation
        centre = 2 * centre - path.centres[guess - 1]
    good = known
    for _ in range(2):
        rotation, centre = resect(rotation, centre, path.points[good], path.rays[good, frame], path.pixel)
        fits = inliers(rotation, centre, path.points[known], path.rays[known, frame], NEAR * path.pixel)
        if fits.sum() < max(LEAST_KNOWN, 0.4 * len(known)):
            return False
        good = known[fits]
    u, _, v = np.linalg.svd(rotation)  # rounding would grow from frame to frame
    path.rotations[frame], path.centres[frame] = u @ v, centre
    path.confidence[frame] = sureness(float(fits.mean()), len(good))
    path.points[known[~fits]] = np.nan
    return True


def _extend(path: Path, first: int, last: int) -> None:
    """Triangulate what the last frame sees and has parallax by now."""
    window = np.unique(np.linspace(first, last, 24, dtype=int))
    unknown = np.flatnonzero(path.seen(last) & ~np.isfinite(path.points[:, 0]))
    rays = path.rays[unknown][:, window]
    several = np.isfinite(rays[..., 0]).sum(axis=1) >= 2
    unknown, rays = unknown[several], rays[several]
    if not len(unknown):
        return
    points, angle = triangulate(path.rotations[window], path.centres[window], rays)
    good = angle > _ANGLE
    for k, frame in enumerate(window):
        here = np.isfinite(rays[:, k, 0])
        pose = path.rotations[frame], path.centres[frame]
        good[here] &= inliers(*pose, points[here], rays[here, k], NEAR * path.pixel)
    path.points[unknown[good]] = points[good]


def _adjust(path: Path, first: int, last: int) -> None:
    """Bundle adjustment of the frames from first to last, over the points that most of them see."""
    frames = slice(first, last + 1)
    count = np.isfinite(path.rays[:, frames, 0]).sum(axis=1)
    usable = np.flatnonzero(np.isfinite(path.points[:, 0]) & (count >= 3))
    if len(usable) < LEAST_KNOWN or last - first < 2:
        return
    usable = usable[np.argsort(-count[usable], kind="stable")[:MOST_ADJUSTED]]
    rays = path.rays[usable, frames]
    enough = np.isfinite(rays[..., 0]).sum(axis=0) >= LEAST_KNOWN
    enough[0] = True
    index = np.arange(first, last + 1)[enough]
    before = float(np.linalg.norm(path.centres[last] - path.centres[first]))
    found = adjust(
        path.rotations[index], path.centres[index], path.points[usable], rays[:, enough], path.pixel
    )
    after = float(np.linalg.norm(found[1][-1] - path.centres[first]))
    # The scale is free: keep the length of the stretch, which the points' depth was set by.
    scale = before / after if enough[-1] and after > 1e-9 else 1.0
    origin = path.centres[first]
    path.rotations[index] = found[0]
    path.centres[index] = origin + scale * (found[1] - origin)
    path.points[usable] = origin + scale * (found[2] - origin)
    for frame in np.arange(first, last + 1)[~enough]:
        _locate(path, int(frame), int(frame))
