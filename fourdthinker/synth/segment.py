"""Masks of moving things without weights: what moves otherwise than the camera's own motion explains."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.computer_vision import opencv
from fourdthinker.synth.geometry.visual import estimate_camera
from fourdthinker.synth.geometry.visual.features import follow
from fourdthinker.synth.stabilised import CHANGED, Laid, changes, colour_odds, lay
from fourdthinker.synth.tracks import Array, CameraTrack

Mask = NDArray[np.bool_]
Track = dict[int, Mask]  # frame -> mask

_ROWS = 480  # that motion is measured at, at most
_ODDS = 0.8  # of a colour, from which it is a thing's
_CHANGES = 0.03  # share of a region that must have changed
_HUES = 0.06  # difference of a channel's share in the light, from one pixel to the next, between two hues
_DARK = 8.0  # grey levels that say nothing of the hue
_PIECE = 0.5  # of the least area, for a region that is a part of a thing
_PART = 0.15  # of the area of the part beside it; less says little, and comes and goes
_LARGEST = 0.4  # share of the picture; more is the scene
_MOST_REGIONS = 6  # of a frame
_OVERLAP = 0.2  # intersection over union that makes two regions the same thing
_PAUSE = 0.5  # seconds that a thing may be lost for
_COVERED = 0.5  # share of the clip's frames in which a thing must be seen
_MOST = 2
_LIKE = 1.4  # times the size that a region has at the instants around
_STAYS = 0.01  # depths of the scene between two positions of a camera that does not move
_LEAST_PAIRS = 40  # features of a region in pairs of frames, to say whether it stands
_RESTS = 0.8  # share of them that do then; of what comes nearer, those level with the camera seem to
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
    times = np.arange(len(small)) / fps
    points = follow(small, times, None)
    laid, onward = lay(cv2, points, fps)
    if not any(laid):
        return []
    camera = estimate_camera(small, times).track.resampled(times)
    frames = [cv2.GaussianBlur(frame, (3, 3), 0) for frame in small]
    changed = changes(cv2, frames, laid)
    odds = colour_odds(frames, changed)
    regions = [_regions(cv2, *one, least_area) for one in zip(frames, odds, changed, strict=True)]
    least = _COVERED * len(small)
    parts = [track for track in _linked(cv2, regions, onward, fps) if len(track) >= least]
    slow = _MOVES * size[1]
    moving = [track for track in parts if _speed(track, laid, camera) >= slow]
    moving = [track for track in moving if not _stands(track, laid, points, camera, slow)]
    things = [_of_like_size(track, fps) for track in _joined(cv2, moving)]
    things = [track for track in things if len(track) >= least]
    things.sort(key=lambda track: -_visible(track) * _speed(track, laid, camera))
    return [
        MaskTrack(
            tuple(_whole(cv2, track.get(k), (width, height)) for k in range(len(small))),
            round(len(track) / len(small), 4),
        )
        for track in things[:_MOST]
    ]


def _visible(track: Track) -> float:
    """A side of the thing, in pixels, and of how many frames."""
    return len(track) * float(np.sqrt(np.median([mask.sum() for mask in track.values()])))


def _whole(cv2: Any, mask: Mask | None, size: tuple[int, int]) -> Mask | None:
    """A mask in the size of the clip's frames."""
    if mask is None:
        return None
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_LINEAR) > 0)


def _regions(
    cv2: Any,
    frame: NDArray[np.uint8],
    odds: NDArray[np.float32],
    changed: NDArray[np.uint8],
    least_area: float,
) -> list[Mask]:
    """Regions of colours that change, each of one hue; the largest first.

    Things that touch in the picture mostly are of unlike hue, and are not to become one.
    """
    unit = odds.shape[0] / _ROWS
    binary = (cv2.GaussianBlur(odds, (0, 0), 1.5 * unit) > _ODDS).astype(np.uint8)
    for kind, radius in ((cv2.MORPH_OPEN, 2), (cv2.MORPH_CLOSE, 4)):
        side = 2 * max(1, round(radius * unit)) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        binary = cv2.morphologyEx(binary, kind, kernel)
    outlines, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(binary, outlines, -1, 1, cv2.FILLED)
    cores = _cores(cv2, frame, binary, _PIECE * least_area * odds.size)
    if not cores.any():
        return []
    # Every pixel belongs to the nearest core.
    _, labels = cv2.distanceTransformWithLabels(
        (cores == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    labels[binary == 0] = 0
    areas = np.bincount(labels.ravel())
    moved = np.bincount(labels[changed == CHANGED], minlength=len(areas))
    least = _PIECE * least_area * odds.size
    wanted = [
        k
        for k in np.argsort(-areas, kind="stable")
        if k and least <= areas[k] < _LARGEST * odds.size and moved[k] >= _CHANGES * areas[k]
    ]
    return [labels == k for k in wanted[:_MOST_REGIONS]]


def _cores(cv2: Any, frame: NDArray[np.uint8], binary: NDArray[np.uint8], least: float) -> NDArray[np.uint8]:
    """Regions without their pixels between two hues; whole ones of which too little would be left."""
    light = frame.astype(np.float32) + _DARK
    hue = light / light.sum(axis=2, keepdims=True)
    kernel = np.ones((3, 3), np.uint8)
    edges = (cv2.dilate(hue, kernel) - cv2.erode(hue, kernel)).max(axis=2) > _HUES
    _, labels, stats, _ = cv2.connectedComponentsWithStats(binary * (edges == 0), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    cores = large[labels].astype(np.uint8)
    _, wholes = cv2.connectedComponents(binary, connectivity=8)
    kept = np.unique(wholes[cores > 0])
    cores[(wholes > 0) & ~np.isin(wholes, kept)] = 1
    return cores


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


def _joined(cv2: Any, tracks: list[Track]) -> list[Track]:
    """Tracks that mostly touch are of one thing, but for those that are small beside it."""
    sizes = [float(np.median([mask.sum() for mask in track.values()])) for track in tracks]
    kernel = np.ones((5, 5), np.uint8)
    wide = [{k: cv2.dilate(m.astype(np.uint8), kernel) > 0 for k, m in track.items()} for track in tracks]
    owner = list(range(len(tracks)))
    for first, second in combinations(range(len(tracks)), 2):
        both = tracks[first].keys() & tracks[second].keys()
        touching = sum(bool((wide[first][k] & tracks[second][k]).any()) for k in both)
        if min(sizes[first], sizes[second]) < _PART * max(sizes[first], sizes[second]):
            continue
        if touching > 0.5 * min(len(tracks[first]), len(tracks[second])):
            owner = [owner[first] if k == owner[second] else k for k in owner]
    found: dict[int, Track] = {}
    for number, track in zip(owner, tracks, strict=True):
        whole = found.setdefault(number, {})
        for k, mask in track.items():
            whole[k] = whole[k] | mask if k in whole else mask
    return list(found.values())


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


def _speed(track: Track, laid: Laid, camera: CameraTrack) -> float:
    """Pixels a second that the lower end of a region moves over what is laid, in the median; 0: not known.

    Where the camera goes somewhere, what does not lie in what is laid moves over it toward or from the point
    that the camera goes to (the epipole); so only motion across that direction counts.
    """
    found = []
    for index in track:
        x, y = _lower_end(track[index])
        for other, matrix in laid[index]:
            if other in track:
                there = matrix @ [*_lower_end(track[other]), 1.0]
                step = there[:2] / there[2] - [x, y]
                pixels = _across(camera, index, other, np.array([[x + 0.5, y + 0.5]]), step[None])
                found.append(float(pixels[0]) / abs(camera.times[other] - camera.times[index]))
    return float(np.median(found)) if found else 0.0


def _stands(track: Track, laid: Laid, points: Array, camera: CameraTrack, slow: float) -> bool:
    """Whether the features in a region lie where the camera's path says that features at rest do.

    Its lower end tells less: it changes where something nearer hides a part of the thing.
    """
    assert camera.intrinsics is not None  # of an estimate
    found = []
    for index in track:
        for other, _ in laid[index]:
            if other not in track:
                continue
            both = points[np.isfinite(points[:, [index, other], 0]).all(axis=1)][:, [index, other]]
            both = both[_inside(track[index], both[:, 0]) & _inside(track[other], both[:, 1])]
            turn = camera.rotations[other].T @ camera.rotations[index]
            infinite = camera.intrinsics[other] @ turn @ np.linalg.inv(camera.intrinsics[index])
            turned = np.insert(both[:, 0], 2, 1.0, axis=1) @ infinite.T
            turned = turned[:, :2] / turned[:, 2:]
            pixels = _across(camera, other, index, turned, both[:, 1] - turned)
            found += (pixels / abs(camera.times[other] - camera.times[index])).tolist()
    return len(found) >= _LEAST_PAIRS and float(np.quantile(found, _RESTS)) < slow


def _inside(mask: Mask, points: Array) -> NDArray[np.bool_]:
    """[n], the points that a mask covers."""
    column, row = np.clip(points.astype(int), 0, np.array(mask.shape)[::-1] - 1).T
    return mask[row, column]


def _across(camera: CameraTrack, index: int, other: int, places: Array, steps: Array) -> Array:
    """[n], lengths of steps [n, 2] at places [n, 2], across the way to where the camera is at another time.

    Where it stays, the whole lengths.
    """
    way = camera.centres[other] - camera.centres[index]
    if np.linalg.norm(way) < _STAYS:
        return np.hypot(*steps.T)
    assert camera.intrinsics is not None  # of an estimate
    epipole = camera.intrinsics[index] @ camera.rotations[index].T @ way
    along = epipole[:2] - epipole[2] * places
    across = np.abs(steps[:, 0] * along[:, 1] - steps[:, 1] * along[:, 0])
    return np.asarray(across / np.maximum(np.hypot(*along.T), 1e-12))


def _lower_end(mask: Mask) -> tuple[float, float]:
    """Column and row of the middle of the lowest tenth of a mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    bottom = int(rows[-1])
    low = mask[bottom - (bottom - int(rows[0])) // 10 : bottom + 1]
    return float(np.nonzero(low)[1].mean()), float(bottom)
