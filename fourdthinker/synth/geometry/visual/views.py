"""What two views and their common points say: the rotation alone, or rotation and direction of translation.

Points are on the plane at depth 1 ("rays" [..., 2]); a residual of 1 pixel is 1 / focal there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.tracks import Array


@dataclass(frozen=True)
class RotationFit:
    """`rotation` [3, 3] takes directions of the second camera to the first's; `residuals` [n] in radians."""

    rotation: Array
    residuals: Array


def directions(rays: Array) -> Array:
    """[n, 3] unit vectors of rays [n, 2]."""
    vectors = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fit_rotation(first: Array, second: Array, pixel: float) -> RotationFit:
    """The rotation that explains most points of two views, as if the camera had not moved from its position.

    Args:
        first: rays [n, 2].
        second: rays [n, 2] of the same points.
        pixel: size of a pixel on the plane of the rays.

    Returns:
        The rotation and what it leaves of each point.
    """
    a, b = directions(first), directions(second)
    best, best_count = _kabsch(a, b, np.ones(len(a))), -1
    rng = np.random.default_rng(0)
    for _ in range(60):
        pair = rng.choice(len(a), 2, replace=False)
        rotation = _kabsch(a[pair], b[pair], np.ones(2))
        count = int((np.linalg.norm(a - b @ rotation.T, axis=1) < 1.5 * pixel).sum())
        if count > best_count:
            best, best_count = rotation, count
    for _ in range(8):  # reweighted, from the best start
        residuals = np.linalg.norm(a - b @ best.T, axis=1)
        best = _kabsch(a, b, 1 / (1 + (residuals / (2 * pixel)) ** 2))
    return RotationFit(best, np.linalg.norm(a - b @ best.T, axis=1))


def _kabsch(a: Array, b: Array, weights: Array) -> Array:
    """The rotation R with a ≈ R b."""
    u, _, v = np.linalg.svd((a * weights[:, None]).T @ b)
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))]) @ v


def relative_poses(first: Array, second: Array, pixel: float) -> list[tuple[Array, Array]]:
    """Candidate poses of the second camera in the first's axes.

    The essential matrix gives one; a homography, which fits views of a plane, gives up to four.

    Args:
        first: rays [n, 2], at least 8.
        second: rays [n, 2] of the same points.
        pixel: size of a pixel on the plane of the rays.

    Returns:
        Rotation [3, 3] (second to first) and centre [3] of length 1, for each candidate.
    """
    cv2 = opencv()
    one = np.eye(3)
    found = []
    essential, inliers = cv2.findEssentialMat(first, second, one, cv2.RANSAC, 0.999, 1.0 * pixel, 1000)
    if essential is not None and essential.shape == (3, 3):
        _, rotation, translation, _ = cv2.recoverPose(essential, first, second, one, mask=inliers)
        found.append((rotation.T, -rotation.T @ translation[:, 0]))
    homography, _ = cv2.findHomography(first, second, cv2.RANSAC, 2 * pixel)
    if homography is not None:
        _, rotations, translations, _ = cv2.decomposeHomographyMat(homography, one)
        for rotation, translation in zip(rotations, translations, strict=True):
            length = float(np.linalg.norm(translation))
            if length > 1e-4 and np.isfinite(rotation).all():
                found.append((rotation.T, -rotation.T @ translation[:, 0] / length))
    return found


def triangulate(rotations: Array, centres: Array, rays: Array) -> tuple[Array, Array]:
    """Points next to all their rays.

    Args:
        rotations: [v, 3, 3], camera to world.
        centres: [v, 3].
        rays: [n, v, 2], NaN where a view does not see a point.

    Returns:
        Points [n, 3], and the angle in radians [n] between their two most different rays, as seen from the
        first view that sees each.
    """
    seen = np.isfinite(rays[..., 0])
    local = np.concatenate([np.where(seen[..., None], rays, 0.0), np.ones((*rays.shape[:2], 1))], axis=2)
    local /= np.linalg.norm(local, axis=2, keepdims=True)
    world = np.einsum("vij,nvj->nvi", rotations, local)
    # Sum over views of the projectors perpendicular to each ray.
    projector = (np.eye(3) - world[..., :, None] * world[..., None, :]) * seen[..., None, None]
    left = projector.sum(axis=1) + 1e-12 * np.eye(3)
    right = np.einsum("nvij,vj->ni", projector, centres)
    points = np.linalg.solve(left, right[..., None])[..., 0]
    start = world[np.arange(len(world)), seen.argmax(axis=1)]
    cosine = np.clip(np.einsum("nvi,ni->nv", world, start), -1, 1)
    angles = np.where(seen, np.arccos(cosine), 0.0).max(axis=1)
    return points, angles


def project(rotation: Array, centre: Array, points: Array) -> tuple[Array, Array]:
    """Rays [n, 2] and depths [n] of world points [n, 3] in one view."""
    local = (points - centre) @ rotation
    return local[:, :2] / np.maximum(local[:, 2:], 1e-6), local[:, 2]


def inliers(rotation: Array, centre: Array, points: Array, rays: Array, limit: float) -> NDArray[np.bool_]:
    """[n], true for points in front of a view that are projected to within `limit` of their ray."""
    found, depth = project(rotation, centre, points)
    return (depth > 1e-3) & (np.linalg.norm(found - rays, axis=1) < limit)
