"""Points of the scene, followed through the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.tracks import Array

MOST_POINTS = 400  # followed at once
LONG_SIDE = 640  # pixels; larger frames are made smaller
_BACK = 1.0  # pixels: a point that is followed forth and back returns to within this
_SLOW = 0.12  # seconds between frames from which points are matched instead of followed


def follow(
    frames: Sequence[NDArray[np.uint8]], times: Array, masks: Sequence[NDArray[np.bool_]] | None
) -> Array:
    """Points in every frame.

    Args:
        frames: uint8 [H, W, 3], of one size.
        times: [T], seconds.
        masks: bool [H, W] for each frame, true on what moves: no point is taken there; or None.

    Returns:
        [N, T, 2], x and y in pixels from the frames' corner, NaN where a point is not seen; each is seen at
        least twice.
    """
    cv2 = opencv()
    height, width = frames[0].shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    small = (max(round(width * scale), 1), max(round(height * scale), 1))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if scale < 1:
        grey = [cv2.resize(image, small, interpolation=cv2.INTER_AREA) for image in grey]
    still = [_still(cv2, mask, small) for mask in masks] if masks is not None else [None] * len(grey)
    slow = len(times) > 1 and float(np.median(np.diff(times))) > _SLOW
    points = (_matched if slow else _followed)(cv2, grey, still)
    points = points[np.isfinite(points[..., 0]).sum(axis=1) >= 2]
    # OpenCV counts from the middle of the first pixel, intrinsics from the corner of the picture.
    return (points + 0.5) * (np.array([width, height]) / np.array(small))


def _still(cv2: Any, mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """255 where points may be taken: not on what moves, nor next to it."""
    moving = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return np.where(cv2.dilate(moving, np.ones((9, 9), np.uint8)) > 0, 0, 255).astype(np.uint8)


def _followed(
    cv2: Any, grey: Sequence[NDArray[np.uint8]], still: Sequence[NDArray[np.uint8] | None]
) -> Array:
    """By optical flow from frame to frame; new corners where old ones were lost."""
    flow: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}
    height, width = grey[0].shape
    tracks: list[dict[int, Array]] = []
    alive: list[int] = []
    current = np.zeros((0, 1, 2), np.float32)
    for k, image in enumerate(grey):
        if k and len(current):
            moved, found, _ = cv2.calcOpticalFlowPyrLK(grey[k - 1], image, current, None, **flow)
            back, also, _ = cv2.calcOpticalFlowPyrLK(image, grey[k - 1], moved, None, **flow)
            xy = moved[:, 0]
            good = (found[:, 0] > 0) & (also[:, 0] > 0)
            good &= np.linalg.norm((back - current)[:, 0], axis=1) < _BACK
            good &= (xy >= 2).all(axis=1) & (xy < [width - 2, height - 2]).all(axis=1)
            allowed = still[k]
            if allowed is not None:
                inside = np.clip(np.rint(xy).astype(int), 0, [width - 1, height - 1])
                good &= allowed[inside[:, 1], inside[:, 0]] > 0
            alive = [number for number, keep in zip(alive, good, strict=True) if keep]
            current = moved[good]
            for number, point in zip(alive, current[:, 0], strict=True):
                tracks[number][k] = point
        fresh = _corners(cv2, image, still[k], current)
        alive += range(len(tracks), len(tracks) + len(fresh))
        tracks += [{k: point} for point in fresh[:, 0]]
        current = np.concatenate([current, fresh])
    return _dense(tracks, len(grey))


def _corners(
    cv2: Any, image: NDArray[np.uint8], still: NDArray[np.uint8] | None, current: NDArray[np.float32]
) -> NDArray[np.float32]:
    """New corners, away from those that are followed."""
    none = np.zeros((0, 1, 2), np.float32)
    if len(current) > 0.75 * MOST_POINTS:
        return none
    allowed = np.full(image.shape, 255, np.uint8) if still is None else still.copy()
    for x, y in current[:, 0]:
        cv2.circle(allowed, (round(float(x)), round(float(y))), 8, 0, -1)
    found = cv2.goodFeaturesToTrack(
        image, MOST_POINTS - len(current), qualityLevel=0.01, minDistance=8, mask=allowed
    )
    return none if found is None else found.astype(np.float32).reshape(-1, 1, 2)


def _matched(cv2: Any, grey: Sequence[NDArray[np.uint8]], still: Sequence[NDArray[np.uint8] | None]) -> Array:
    """By descriptors from frame to frame, for frames that are far apart."""
    detector = cv2.SIFT_create(nfeatures=4 * MOST_POINTS)
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    tracks: list[dict[int, Array]] = []
    owner: dict[int, int] = {}  # key point of the last frame -> its track
    last: tuple[Any, Any] = ((), None)
    for k, image in enumerate(grey):
        keys, words = detector.detectAndCompute(image, still[k])
        mine: dict[int, int] = {}
        if k and words is not None and last[1] is not None and min(len(keys), len(last[0])) >= 2:
            for i, j in _mutual(matcher, last[1], words):
                number = owner.get(i)
                if number is None:
                    number = len(tracks)
                    tracks.append({k - 1: np.array(last[0][i].pt)})
                tracks[number][k] = np.array(keys[j].pt)
                mine[j] = number
        owner, last = mine, (keys, words)
    return _dense(tracks, len(grey))


def _mutual(matcher: Any, first: Any, second: Any) -> list[tuple[int, int]]:
    """Pairs that are each other's best match, and clearly better than the second best."""
    forth = {
        pair[0].queryIdx: pair[0].trainIdx
        for pair in matcher.knnMatch(first, second, k=2)
        if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance
    }
    back = {match.queryIdx: match.trainIdx for match in matcher.match(second, first)}
    return [(i, j) for i, j in forth.items() if back.get(j) == i]


def _dense(tracks: Sequence[dict[int, Array]], count: int) -> Array:
    points = np.full((len(tracks), count, 2), np.nan)
    for number, seen in enumerate(tracks):
        for k, point in seen.items():
            points[number, k] = point
    return points
