"""Rates of change on an even grid of times, and the stretches over which one is large."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.motion.settings import MotionSettings
from fourdthinker.synth.tracks import (
    REACH,
    Array,
    CameraTrack,
    ObjectTrack,
    rotation_vectors,
    rotations_of,
)

STEP = 0.02  # seconds between the grid's times
SHARE_OF_PEAK = 0.15  # a move begins and ends where its rate is this share of its largest, or the threshold
Spans = list[tuple[int, int]]  # first index, index after the last


@dataclass(frozen=True)
class CameraRates:
    """The camera's own motion.

    `times` [N] seconds; `translation` [N, 3] a second and `rotation` [N, 3] degrees a second, along and about
    the camera's axes at that instant; `confidence` [N].
    """

    times: Array
    translation: Array
    rotation: Array
    confidence: Array


def grid(start: float, end: float) -> Array:
    """Even times from start to end, both among them, about STEP apart."""
    return np.linspace(start, end, max(round((end - start) / STEP), 1) + 1)


def smoothed(times: Array, values: Array, weights: Array, wanted: Array, sigma: float) -> Array:
    """Weighted means around each wanted time; the kernel is a symmetric Gaussian, so nothing is delayed.

    Args:
        times: [M] where the values are.
        values: [M, ...].
        weights: [M], such as the seconds that each value stands for.
        wanted: [N].
        sigma: the kernel's standard deviation, seconds.

    Returns:
        [N, ...].
    """
    exponent = -0.5 * ((wanted[:, None] - times[None, :]) / sigma) ** 2
    # The largest exponent of a row is taken out, so that far from every value the nearest one counts.
    kernel = np.exp(exponent - exponent.max(axis=1, keepdims=True)) * weights[None, :]
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.einsum("nm,m...->n...", kernel, values)


def camera_rates(track: CameraTrack, settings: MotionSettings) -> CameraRates:
    """Translation and rotation a second in the camera's own axes.

    Args:
        track: at least two poses.
        settings: the smoothing.

    Returns:
        Rates on an even grid from the track's first to its last time.
    """
    track = _filled(track)
    seconds = np.diff(track.times)
    turn = rotation_vectors(track.rotations[:-1].transpose(0, 2, 1) @ track.rotations[1:])
    halfway = track.rotations[:-1] @ rotations_of(turn / 2)
    step = np.einsum("tji,tj->ti", halfway, np.diff(track.centres, axis=0))
    rates = np.concatenate([step, np.rad2deg(turn)], axis=1) / seconds[:, None]
    confidence = np.minimum(track.confidence[:-1], track.confidence[1:])
    middle = (track.times[:-1] + track.times[1:]) / 2
    wanted = grid(track.times[0], track.times[-1])
    mean = smoothed(middle, rates, seconds * np.maximum(confidence, 1e-3), wanted, settings.smoothing)
    sure = smoothed(middle, confidence, seconds, wanted, settings.smoothing)
    return CameraRates(wanted, mean[:, :3], mean[:, 3:], sure)


def _filled(track: CameraTrack) -> CameraTrack:
    """The track with poses, most of them of no confidence, in gaps where the camera was lost."""
    wide = [(a, b) for a, b in pairwise(track.times) if b - a > 2 * REACH + 1e-6]
    if not wide:
        return track
    return track.resampled(np.unique(np.concatenate([track.times, *(grid(a, b) for a, b in wide)])))


def object_velocity(item: ObjectTrack, settings: MotionSettings) -> tuple[Array, Array, Array]:
    """The object's velocity in the world.

    Args:
        item: at least two positions.
        settings: the smoothing.

    Returns:
        Times [N] of an even grid, velocity [N, 3] a second, confidence [N].
    """
    seconds = np.diff(item.times)
    confidence = np.minimum(item.confidence[:-1], item.confidence[1:])
    middle = (item.times[:-1] + item.times[1:]) / 2
    wanted = grid(item.times[0], item.times[-1])
    rates = np.diff(item.positions, axis=0) / seconds[:, None]
    weights = seconds * np.maximum(confidence, 1e-3)
    velocity = smoothed(middle, rates, weights, wanted, settings.object_smoothing)
    return wanted, velocity, smoothed(middle, confidence, seconds, wanted, settings.object_smoothing)


def longest_run(times: Array, sure: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The sure instants of the longest time in which neighbouring ones are at most 2 * REACH seconds apart.

    Args:
        times: [T] seconds, increasing.
        sure: [T].

    Returns:
        Indices of times; none where nothing is sure.
    """
    known = np.flatnonzero(sure)
    runs = np.split(known, np.flatnonzero(np.diff(times[known]) > 2 * REACH + 1e-6) + 1)
    return max(runs, key=lambda run: float(np.ptp(times[run])) if len(run) else -1.0)


def spans(mask: NDArray[np.bool_]) -> Spans:
    """The runs of true values."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def with_hysteresis(begin: NDArray[np.bool_], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True over every run of `keep` that holds a true value of `begin`."""
    out = np.zeros_like(begin)
    for first, last in spans(keep | begin):
        out[first:last] = begin[first:last].any()
    return out


def trimmed(found: Spans, rate: Array, threshold: float) -> Spans:
    """Each run cut at both ends to where its rate reaches the threshold and SHARE_OF_PEAK of its largest."""
    out = []
    for first, last in found:
        part = rate[first:last]
        large = np.flatnonzero(part >= max(threshold, SHARE_OF_PEAK * part.max()))
        if len(large):
            out.append((first + int(large[0]), first + int(large[-1]) + 1))
    return out


def joined(found: Spans, times: Array, pause: float, between: NDArray[np.bool_]) -> Spans:
    """Runs with less than `pause` seconds between them are one, where `between` holds over the pause."""
    out: Spans = []
    for first, last in found:
        if out and times[first] - times[out[-1][1] - 1] < pause and between[out[-1][1] : first].all():
            out[-1] = (out[-1][0], last)
        else:
            out.append((first, last))
    return out
