"""Masks of moving things without weights: what moves otherwise than the camera's own motion explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.computer_vision import opencv

Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]

_HEIGHT = 240  # rows that motion is measured at
_SECONDS = 0.2  # between the two frames that are compared
_FEATURES = 500
_EXPLAINED = (
    0.8  # share of tracks that one homography must explain; else the scene has depth, see `_residual`
)
_PIXELS = 1.0  # residual motion that counts, at least, and
_NOISE = 4.0  # so many times the usual one
_OVERLAP = 0.2  # intersection over union that makes two regions the same thing
_COVERED = 0.5  # share of the clip's frames in which a thing must be seen
_MOST = 2
_LEAST_FEATURES = 24  # to tell the camera's motion
_SEEDS = 3  # features that move, in a region that does
_LARGEST = 0.6  # share of the picture; more is the scene


@dataclass(frozen=True)
class MaskTrack:
    """One moving thing: a mask for each frame or None, and the share of frames in which it was seen."""

    masks: tuple[Mask | None, ...]
    score: float


def moving_segments(pixels: NDArray[np.uint8], fps: float, least_area: float) -> list[MaskTrack]:
    """Things that move by themselves, the most visible ones first.

    Tracked features give the camera's motion between two frames (a homography or, where the scene has depth,
    the epipolar geometry); dense flow that it does not explain is motion of a thing. Regions of it are
    followed through the clip by their overlap after the flow has carried them on.

    Args:
        pixels: uint8 [T, H, W, 3].
        fps: frames a second.
        least_area: share of the picture that a thing must cover.

    Returns:
        At most two.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    cv2 = opencv()
    step = max(1, round(_SECONDS * fps))
    height, width = pixels.shape[1:3]
    scale = min(1.0, _HEIGHT / height)
    size = max(16, round(width * scale)), max(16, round(height * scale))
    grey = [
        cv2.cvtColor(cv2.resize(p, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for p in pixels
    ]
    flow_of = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    regions: list[list[Mask]] = []
    flows: list[NDArray[np.float32]] = []
    for index in range(len(grey)):
        other = index + step if index + step < len(grey) else index - step
        flow = flow_of.calc(grey[index], grey[max(0, other)], None)
        motion = _motion(cv2, grey[index], grey[max(0, other)], flow)
        regions.append(_regions(cv2, motion, least_area))
        flows.append(flow * ((1 if other > index else -1) / step))
    tracks = _linked(cv2, regions, flows)
    found: list[MaskTrack] = []
    for track in sorted(map(_of_like_size, tracks), key=len, reverse=True):
        share = len(track) / len(grey)
        if share >= _COVERED and len(found) < _MOST:
            masks = [
                cv2.resize(track[k].astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR) > 0
                if k in track
                else None
                for k in range(len(grey))
            ]
            found.append(MaskTrack(tuple(masks), round(share, 4)))
    return found


@dataclass(frozen=True)
class _Motion:
    """Between two frames: [h, w] pixels that the camera does not explain; features, and which move."""

    residual: NDArray[np.float32]
    features: NDArray[np.float32]
    moving: NDArray[np.bool_]
    limit: float


def _motion(cv2: Any, first: Grey, second: Grey, flow: NDArray[np.float32]) -> _Motion | None:
    """None where too few features can be followed to tell the camera's motion."""
    corners = cv2.goodFeaturesToTrack(first, _FEATURES, 0.01, 5)
    if corners is None or len(corners) < _LEAST_FEATURES:
        return None
    tracked, good, _ = cv2.calcOpticalFlowPyrLK(first, second, corners, None, winSize=(15, 15), maxLevel=3)
    back, also, _ = cv2.calcOpticalFlowPyrLK(second, first, tracked, None, winSize=(15, 15), maxLevel=3)
    good = (good.ravel() > 0) & (also.ravel() > 0)
    good &= np.linalg.norm((back - corners).reshape(-1, 2), axis=1) < 0.5
    start, end = corners[good].reshape(-1, 2), tracked[good].reshape(-1, 2)
    if len(start) < _LEAST_FEATURES:
        return None
    height, width = first.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    grid = np.stack([columns, rows], -1)
    model = _camera_model(cv2, start, end)
    if model is None:
        return None
    residual = _unexplained(cv2, grid, grid + flow, model)
    own = _unexplained(cv2, start[None], end[None], model)[0]
    limit = max(_PIXELS, _NOISE * float(np.median(own)))
    return _Motion(residual, start, own > limit, limit)


def _camera_model(
    cv2: Any, start: NDArray[np.float32], end: NDArray[np.float32]
) -> tuple[str, NDArray[np.float64]] | None:
    """A homography where one explains most features, else the epipolar geometry.

    USAC also finds the latter where most features lie on one plane.
    """
    homography, inside = cv2.findHomography(start, end, cv2.USAC_MAGSAC, 1.0, maxIters=2000)
    if homography is not None and inside.mean() >= _EXPLAINED:
        return "homography", homography
    try:
        fundamental, _ = cv2.findFundamentalMat(start, end, cv2.USAC_MAGSAC, 0.7, 0.99, 2000)
    except cv2.error:  # where no sample gives a model, its refinement asserts that there is one
        return None
    if fundamental is None or fundamental.shape != (3, 3):
        return None
    return "epipolar", fundamental


def _unexplained(
    cv2: Any, start: NDArray[np.float32], end: NDArray[np.float32], model: tuple[str, NDArray[np.float64]]
) -> NDArray[np.float32]:
    """[h, w] pixels of motions from start to end, both [h, w, 2], that a camera model does not explain."""
    kind, matrix = model
    if kind == "homography":
        moved = cv2.perspectiveTransform(start.reshape(-1, 1, 2), matrix).reshape(start.shape)
        return np.linalg.norm(end - moved, axis=-1)
    fundamental = matrix.astype(np.float32)
    one = np.ones((*start.shape[:2], 1), np.float32)
    x, y = np.concatenate([start, one], -1), np.concatenate([end, one], -1)
    right, left = x @ fundamental.T, y @ fundamental
    norm = (right[..., :2] ** 2).sum(-1) + (left[..., :2] ** 2).sum(-1)
    error = np.abs((y * right).sum(-1)) / np.sqrt(np.maximum(norm, 1e-12))
    return 2 * error  # of first order; the distance to both lines together


def _regions(cv2: Any, motion: _Motion | None, least_area: float) -> list[Mask]:
    """Connected regions of residual motion around features that move, the largest first."""
    if motion is None:
        return []
    shape = motion.residual.shape
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13))
    binary = cv2.morphologyEx((motion.residual > motion.limit).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, wide)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    columns, rows = np.round(motion.features).astype(np.int64).T
    inside = labels[np.clip(rows, 0, shape[0] - 1), np.clip(columns, 0, shape[1] - 1)]
    features = np.bincount(inside, minlength=count)
    moving = np.bincount(inside, weights=motion.moving, minlength=count)
    areas = stats[:, cv2.CC_STAT_AREA]
    pixels = motion.residual.size
    wanted = [
        k
        for k in np.argsort(-areas, kind="stable")
        if k
        and least_area * pixels <= areas[k] < _LARGEST * pixels
        # Flow alone moves where there is nothing to see; features do not.
        and moving[k] >= _SEEDS
        and moving[k] >= 0.5 * features[k]
    ]
    return [labels == k for k in wanted[:4]]


def _linked(cv2: Any, regions: list[list[Mask]], flows: list[NDArray[np.float32]]) -> list[dict[int, Mask]]:
    """Regions of the same thing in frame after frame: frame -> mask."""
    tracks: list[dict[int, Mask]] = []
    last: list[tuple[int, Mask]] = []  # of each track: frame and mask, carried on by the flow
    for index, found in enumerate(regions):
        if index:
            last = [(frame, _carried(cv2, mask, flows[index - 1])) for frame, mask in last]
        free = list(range(len(found)))
        for number, (frame, mask) in enumerate(last):
            if index - frame > 5 or not free:
                continue
            overlap = [_overlap(mask, found[k]) for k in free]
            best = int(np.argmax(overlap))
            if overlap[best] >= _OVERLAP:
                chosen = free.pop(best)
                tracks[number][index] = found[chosen]
                last[number] = index, found[chosen]
        for k in free:
            tracks.append({index: found[k]})
            last.append((index, found[k]))
    return tracks


def _of_like_size(track: dict[int, Mask]) -> dict[int, Mask]:
    """Without the frames in which the region has grown into the background, or is a part of the thing."""
    areas = {index: int(mask.sum()) for index, mask in track.items()}
    usual = float(np.median(list(areas.values())))
    return {index: mask for index, mask in track.items() if usual / 2.5 <= areas[index] <= 2.5 * usual}


def _carried(cv2: Any, mask: Mask, flow: NDArray[np.float32]) -> Mask:
    """A mask one frame later: shifted by the mean flow within it."""
    if not mask.any():
        return mask
    dx, dy = flow[mask].mean(0)
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = cv2.warpAffine(mask.astype(np.uint8), matrix, (mask.shape[1], mask.shape[0]))
    return np.asarray(moved > 0)


def _overlap(first: Mask, second: Mask) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
