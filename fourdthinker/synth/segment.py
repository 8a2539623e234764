"""Masks of moving things without weights: what moves otherwise than the camera's own motion explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.geometry.visual.features import follow
from fourdthinker.synth.stabilised import CHANGED, Laid, changes, colour_odds, lay
from fourdthinker.synth.tracks import Array

Mask = NDArray[np.bool_]
Track = dict[int, Mask]  # frame -> mask

_ROWS = 480  # that motion is measured at, at most
_ODDS = 0.5  # logarithm of how much more often a colour changes than it stays, from which it is a thing's
_CHANGES = 0.1  # share of a region that must have changed
_LARGEST = 0.4  # share of the picture; more is the scene
_MOST_REGIONS = 4  # of a frame
_OVERLAP = 0.2  # intersection over union that makes two regions the same thing
_PAUSE = 0.5  # seconds that a thing may be lost for
_COVERED = 0.5  # share of the clip's frames in which a thing must be seen
_MOST = 2
_LIKE = 1.4  # times the size that a region has at the instants around
_MOVES = 0.012  # pictures' heights a second that its lower end moves over what it stands on


@dataclass(frozen=True)
class MaskTrack:
    """One moving thing: a mask for each frame or None, and the share of frames in which it was seen."""

    masks: tuple[Mask | None, ...]
    score: float


def moving_segments(pixels: NDArray[np.uint8], fps: float, least_area: float) -> list[MaskTrack]:
    """Things that move by themselves, the most visible ones first.

    Followed features give homographies that lay the frames around over each frame, by the ground where the
    camera moves. What then differs, grown by the colours that do, are regions; those whose lower end moves
    over what is laid are things.

    Args:
        pixels: uint8 [T, H, W, 3].
        fps: frames a second.
        least_area: share of the picture that a thing must cover.

    Returns:
        At most two; none where no one homography explains most features.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    cv2 = opencv()
    height, width = pixels.shape[1:3]
    scale = min(1.0, _ROWS / height)
    size = max(16, round(width * scale)), max(16, round(height * scale))
    small = [np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA)) for p in pixels]
    laid, onward = lay(cv2, follow(small, np.arange(len(small)) / fps, None), fps)
    frames = [cv2.GaussianBlur(frame, (3, 3), 0) for frame in small]
    changed = changes(cv2, frames, laid)
    odds = colour_odds(frames, changed)
    regions = [_regions(cv2, *one, least_area) for one in zip(odds, changed, strict=True)]
    tracks = [_of_like_size(track, fps) for track in _linked(cv2, regions, onward, fps)]
    found: list[tuple[float, MaskTrack]] = []
    for track in tracks:
        share, speed = len(track) / len(small), _speed(track, laid, fps) / size[1]
        if share >= _COVERED and speed >= _MOVES:
            masks = [_whole(cv2, track.get(k), (width, height)) for k in range(len(small))]
            found.append((share * speed, MaskTrack(tuple(masks), round(share, 4))))
    found.sort(key=lambda one: -one[0])
    return [one for _, one in found[:_MOST]]


def _whole(cv2: Any, mask: Mask | None, size: tuple[int, int]) -> Mask | None:
    """A mask in the size of the clip's frames."""
    if mask is None:
        return None
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_LINEAR) > 0)


def _regions(
    cv2: Any, odds: NDArray[np.float32], changed: NDArray[np.uint8], least_area: float
) -> list[Mask]:
    """Connected regions of colours that change, some of which has changed; the largest first."""
    binary = (cv2.GaussianBlur(odds, (0, 0), 1.5) > _ODDS).astype(np.uint8)
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    outlines, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(binary, outlines, -1, 1, cv2.FILLED)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    moved = np.bincount(labels[changed == CHANGED], minlength=count)
    areas = stats[:, cv2.CC_STAT_AREA]
    wanted = [
        k
        for k in np.argsort(-areas, kind="stable")
        if k and least_area * odds.size <= areas[k] < _LARGEST * odds.size and moved[k] >= _CHANGES * areas[k]
    ]
    return [labels == k for k in wanted[:_MOST_REGIONS]]


def _linked(cv2: Any, regions: list[list[Mask]], onward: list[Array | None], fps: float) -> list[Track]:
    """Regions of the same thing in frame after frame."""
    tracks: list[Track] = []
    last: list[tuple[int, Mask]] = []  # of each track: frame and mask, laid over the present frame
    for index, found in enumerate(regions):
        matrix = onward[index]
        if matrix is not None:
            last = [(frame, _carried(cv2, mask, matrix)) for frame, mask in last]
        free = list(range(len(found)))
        for number, (frame, mask) in enumerate(last):
            if index - frame > _PAUSE * fps or not free:
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


def _carried(cv2: Any, mask: Mask, matrix: Array) -> Mask:
    size = mask.shape[1], mask.shape[0]
    return np.asarray(cv2.warpPerspective(mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0)


def _overlap(first: Mask, second: Mask) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


def _of_like_size(track: Track, fps: float) -> Track:
    """Without the frames in which the region has grown into the background, or is a part of the thing."""
    frames = np.array(list(track))
    areas = np.array([mask.sum() for mask in track.values()], np.float64)
    near = np.abs(np.subtract.outer(frames, frames)) <= max(1, round(_PAUSE * fps))
    usual = np.array([np.median(areas[row]) for row in near])
    like = (areas < _LIKE * usual) & (areas > usual / _LIKE)
    return {int(k): track[int(k)] for k in frames[like]}


def _speed(track: Track, laid: Laid, fps: float) -> float:
    """Pixels a second that the lower end of a region moves over what is laid, in the median; 0: not known."""
    found = []
    for index in track:
        for other, matrix in laid[index]:
            if other in track:
                x, y, w = matrix @ [*_lower_end(track[other]), 1.0]
                here = _lower_end(track[index])
                found.append(float(np.hypot(x / w - here[0], y / w - here[1])) * fps / abs(other - index))
    return float(np.median(found)) if found else 0.0


def _lower_end(mask: Mask) -> tuple[float, float]:
    """Column and row of the middle of the lowest tenth of a mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    bottom = int(rows[-1])
    low = mask[bottom - (bottom - int(rows[0])) // 10 : bottom + 1]
    return float(np.nonzero(low)[1].mean()), float(bottom)
