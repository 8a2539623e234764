"""Masks of moving things without weights: what moves otherwise than the camera's own motion explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import ConfigError

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


@dataclass(frozen=True)
class Segment:
    """One moving thing: a mask for each frame or None, and the share of frames in which it was seen."""

    masks: tuple[Mask | None, ...]
    score: float


def moving_segments(pixels: NDArray[np.uint8], fps: float, least_area: float) -> list[Segment]:
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
        residual = _residual(cv2, grey[index], grey[max(0, other)], flow)
        regions.append(_regions(cv2, residual, least_area))
        flows.append(flow * ((1 if other > index else -1) / step))
    tracks = _linked(cv2, regions, flows)
    found: list[Segment] = []
    for track in sorted(tracks, key=len, reverse=True):
        share = len(track) / len(grey)
        if share >= _COVERED and len(found) < _MOST:
            masks = [
                cv2.resize(track[k].astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR) > 0
                if k in track
                else None
                for k in range(len(grey))
            ]
            found.append(Segment(tuple(masks), round(share, 4)))
    return found


def opencv() -> Any:
    """The module `cv2`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "OpenCV is not installed, and masks by motion need it; pip install 'fourdthinker[synth]'"
        ) from error
    cv2.setNumThreads(1)  # processes share the cores
    return cv2


def _residual(cv2: Any, first: Grey, second: Grey, flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w] pixels of motion that the camera's own does not explain."""
    height, width = first.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = np.stack([columns + flow[..., 0], rows + flow[..., 1]], -1)
    corners = cv2.goodFeaturesToTrack(first, _FEATURES, 0.01, 6)
    if corners is None or len(corners) < 16:
        usual = np.median(flow.reshape(-1, 2), 0)
        return np.linalg.norm(flow - usual, axis=-1)
    tracked, good, _ = cv2.calcOpticalFlowPyrLK(first, second, corners, None, winSize=(15, 15), maxLevel=3)
    good = good.ravel() > 0
    start, end = corners[good].reshape(-1, 2), tracked[good].reshape(-1, 2)
    if len(start) < 16:
        return np.zeros((height, width), np.float32)
    homography, inside = cv2.findHomography(start, end, cv2.RANSAC, 1.5)
    if homography is not None and inside.mean() >= _EXPLAINED:
        grid = np.stack([columns, rows], -1).reshape(-1, 1, 2)
        expected = cv2.perspectiveTransform(grid, homography).reshape(height, width, 2)
        return np.linalg.norm(moved - expected, axis=-1).astype(np.float32)
    fundamental, _ = cv2.findFundamentalMat(start, end, cv2.FM_RANSAC, 1.0, 0.99)
    if fundamental is None or fundamental.shape != (3, 3):
        return np.zeros((height, width), np.float32)
    return _sampson(np.stack([columns, rows], -1), moved, fundamental)


def _sampson(
    start: NDArray[np.float32], end: NDArray[np.float32], fundamental: NDArray[np.float64]
) -> NDArray[np.float32]:
    """[h, w] distance in pixels of motions to the epipolar lines, of first order."""
    one = np.ones((*start.shape[:2], 1), np.float32)
    x, y = np.concatenate([start, one], -1), np.concatenate([end, one], -1)
    right, left = x @ fundamental.T, y @ fundamental
    error = (y * right).sum(-1)
    norm = (right[..., :2] ** 2).sum(-1) + (left[..., :2] ** 2).sum(-1)
    return (np.abs(error) / np.sqrt(np.maximum(norm, 1e-12)) * 2).astype(np.float32)


def _regions(cv2: Any, residual: NDArray[np.float32], least_area: float) -> list[Mask]:
    """Connected regions of residual motion, the largest first."""
    limit = max(_PIXELS, _NOISE * float(np.median(residual)))
    binary = (residual > limit).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, kernel)
    binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    areas = stats[1:count, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")
    wanted = [k for k in order if areas[k] >= least_area * residual.size and areas[k] < 0.6 * residual.size]
    return [labels == k + 1 for k in wanted[:4]]


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
