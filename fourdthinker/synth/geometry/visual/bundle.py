"""Least squares over reprojection errors: the pose of one view, and all poses and points of a stretch."""

from __future__ import annotations

import numpy as np

from fourdthinker.synth.tracks import Array, rotations_of

_STEPS = 10


def _residuals(rotations: Array, centres: Array, points: Array, rays: Array) -> tuple[Array, Array, Array]:
    """Errors [n, 2]; their derivatives by the view's turn and shift [n, 2, 6], by the point [n, 2, 3]."""
    local = np.einsum("nji,nj->ni", rotations, points - centres)
    x, y = local[:, 0], local[:, 1]
    z = np.where(np.abs(local[:, 2]) < 1e-6, 1e-6, local[:, 2])
    zero = np.zeros_like(x)
    by_local = np.stack(
        [np.stack([1 / z, zero, -x / z**2], axis=1), np.stack([zero, 1 / z, -y / z**2], axis=1)], axis=1
    )
    cross = np.stack(
        [
            np.stack([zero, -local[:, 2], y], axis=1),
            np.stack([local[:, 2], zero, -x], axis=1),
            np.stack([-y, x, zero], axis=1),
        ],
        axis=1,
    )
    by_point = by_local @ rotations.transpose(0, 2, 1)
    by_view = np.concatenate([by_local @ cross, -by_point], axis=2)
    return np.stack([x / z, y / z], axis=1) - rays, by_view, by_point


def _weights(errors: Array, limit: float) -> Array:
    """Huber's: errors beyond `limit` count linearly."""
    size = np.linalg.norm(errors, axis=1)
    return np.where(size <= limit, 1.0, limit / np.maximum(size, 1e-12))


def resect(rotation: Array, centre: Array, points: Array, rays: Array, pixel: float) -> tuple[Array, Array]:
    """The pose of a view that sees known points.

    Args:
        rotation: [3, 3], a first guess, camera to world.
        centre: [3], a first guess.
        points: [n, 3].
        rays: [n, 2].
        pixel: size of a pixel on the plane of the rays.

    Returns:
        Rotation and centre. Errors beyond two pixels count linearly, so that a few wrong points pull little.
    """
    for _ in range(_STEPS):
        errors, by_view, _ = _residuals(np.broadcast_to(rotation, (len(points), 3, 3)), centre, points, rays)
        weight = _weights(errors, 2 * pixel)
        matrix = np.einsum("n,nij,nik->jk", weight, by_view, by_view) + 1e-9 * np.eye(6)
        step = -np.linalg.solve(matrix, np.einsum("n,nij,ni->j", weight, by_view, errors))
        rotation, centre = rotation @ rotations_of(step[:3]), centre + step[3:]
        if np.abs(step).max() < 1e-7:
            break
    return rotation, centre


def adjust(
    rotations: Array, centres: Array, points: Array, rays: Array, pixel: float
) -> tuple[Array, Array, Array]:
    """All poses of a stretch and all points, so that the reprojection errors are smallest.

    Args:
        rotations: [v, 3, 3], camera to world; the first view is held.
        centres: [v, 3].
        points: [n, 3].
        rays: [n, v, 2], NaN where a view does not see a point.
        pixel: size of a pixel on the plane of the rays.

    Returns:
        Rotations, centres and points. Levenberg and Marquardt's method; the points are eliminated first
        (Schur).
    """
    point, view = np.nonzero(np.isfinite(rays[..., 0]))
    seen = rays[point, view]
    damping, cost = 1e-4, np.inf
    current = (rotations, centres, points)
    for _ in range(3 * _STEPS):
        errors, by_view, by_point = _residuals(current[0][view], current[1][view], current[2][point], seen)
        weight = _weights(errors, 2 * pixel)
        step = _step(errors, by_view, by_point, weight, view, point, len(rotations), len(points), damping)
        tried = (current[0] @ rotations_of(step[0][:, :3]), current[1] + step[0][:, 3:], current[2] + step[1])
        now = _cost(errors, pixel) if np.isinf(cost) else cost
        new = _cost(_residuals(tried[0][view], tried[1][view], tried[2][point], seen)[0], pixel)
        if new < now:
            current, damping = tried, max(damping / 5, 1e-9)
            if now - new < 1e-5 * now:
                break
            cost = new
        else:
            cost, damping = now, damping * 10
            if damping > 1e3:
                break
    return current


def _cost(errors: Array, pixel: float) -> float:
    size = np.linalg.norm(errors, axis=1) / (2 * pixel)
    return float(np.where(size <= 1, size**2, 2 * size - 1).sum())


def _step(
    errors: Array,
    by_view: Array,
    by_point: Array,
    weight: Array,
    view: np.ndarray,
    point: np.ndarray,
    views: int,
    points: int,
    damping: float,
) -> tuple[Array, Array]:
    """One damped Gauss-Newton step: [views, 6] and [points, 3]."""
    weighted_view, weighted_point = by_view * weight[:, None, None], by_point * weight[:, None, None]
    h_view, h_point = np.zeros((views, 6, 6)), np.zeros((points, 3, 3))
    np.add.at(h_view, view, np.einsum("nij,nik->njk", weighted_view, by_view))
    np.add.at(h_point, point, np.einsum("nij,nik->njk", weighted_point, by_point))
    g_view, g_point = np.zeros((views, 6)), np.zeros((points, 3))
    np.add.at(g_view, view, np.einsum("nij,ni->nj", weighted_view, errors))
    np.add.at(g_point, point, np.einsum("nij,ni->nj", weighted_point, errors))
    for blocks in (h_view, h_point):
        diagonal = np.einsum("nii->ni", blocks)
        diagonal += damping * diagonal + 1e-12
    mixed = np.zeros((views, 6, points, 3))
    mixed[view, :, point] = np.einsum("nij,nik->njk", weighted_view, by_point)
    flat = mixed.reshape(6 * views, 3 * points)
    inverse = np.linalg.inv(h_point)
    times_inverse = np.einsum("vpi,pij->vpj", flat.reshape(6 * views, points, 3), inverse)
    times_inverse = times_inverse.reshape(6 * views, 3 * points)
    schur = -times_inverse @ flat.T
    for k in range(views):
        schur[6 * k : 6 * k + 6, 6 * k : 6 * k + 6] += h_view[k]
    right = -g_view.reshape(-1) + times_inverse @ g_point.reshape(-1)
    solved = np.zeros(6 * views)
    solved[6:] = np.linalg.solve(schur[6:, 6:], right[6:])  # the first view is held
    of_points = -np.einsum("pij,pj->pi", inverse, g_point + (flat.T @ solved).reshape(points, 3))
    return solved.reshape(views, 6), of_points
