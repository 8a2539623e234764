"""Camera moves: which of the twelve the camera makes when, in its own axes at each instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.synth.motion.rates import (
    CameraRates,
    Spans,
    camera_rates,
    joined,
    spans,
    trimmed,
    with_hysteresis,
)
from fourdthinker.synth.motion.settings import MotionSettings
from fourdthinker.synth.tracks import STATIC, Array, CameraTrack, Move

# (axis, sign) of the rates -> move. Axes are x right, y down, z forward; rotations are right-handed about
# them.
TRANSLATIONS = {
    (2, 1): "dolly in",
    (2, -1): "dolly out",
    (0, -1): "truck left",
    (0, 1): "truck right",
    (1, -1): "pedestal up",
    (1, 1): "pedestal down",
}
ROTATIONS = {
    (1, -1): "pan left",
    (1, 1): "pan right",
    (0, 1): "tilt up",
    (0, -1): "tilt down",
    (2, 1): "roll clockwise",
    (2, -1): "roll counter-clockwise",
}
KEEP_CONCURRENT = 0.8  # a concurrent move goes on down to this share of the ratio that began it
MOST_OF_IT = 0.6  # of an interval that a move covers to be a move of the interval


def camera_moves(track: CameraTrack, settings: MotionSettings | None = None) -> tuple[Move, ...]:
    """The moves of a camera, each as it is in the camera's own axes at that instant.

    A move begins where its rate first reaches the threshold and ends where it last does; in between it stays
    above `settings.keep` of it but for pauses. Moves that overlap are concurrent. Where every rate is small
    the camera is static; instants that are neither, and those whose pose is unsure, are not labelled. Of a
    track without a known unit only rotations are.

    Args:
        track: the camera's path.
        settings: thresholds; None: `MotionSettings()`.

    Returns:
        Moves by start, then name; "static" is one of them.

    Raises:
        GeometryError: fewer than two poses.
    """
    settings = settings or MotionSettings()
    if len(track.times) < 2:
        raise GeometryError(
            f"{track.source or 'camera track'}: one pose has no motion; give at least two frames"
        )
    rates = camera_rates(track, settings)
    sure = rates.confidence >= settings.min_confidence
    found: list[Move] = []
    still = sure & track.scaled
    for values, threshold, names in _groups(rates, track, settings):
        largest = np.abs(values).max(axis=1)
        still &= largest < settings.keep * threshold
        for (axis, sign), name in names.items():
            rate = sign * values[:, axis]
            share = rate / np.maximum(largest, 1e-12)
            begin = sure & (rate >= threshold) & (share >= settings.concurrent)
            keep = sure & (rate >= settings.keep * threshold)
            keep &= share >= KEEP_CONCURRENT * settings.concurrent
            runs = trimmed(spans(with_hysteresis(begin, keep)), rate, threshold)
            not_back = sure & (rate > -settings.keep * threshold)  # swaying to and fro is no long move
            runs = joined(runs, rates.times, settings.min_duration, not_back)
            found += _moves(name, runs, rates, settings.min_duration)
    found += _moves(STATIC, spans(still), rates, settings.min_duration)
    return tuple(sorted(found, key=lambda move: (move.start, move.name)))


def _groups(
    rates: CameraRates, track: CameraTrack, settings: MotionSettings
) -> tuple[tuple[Array, float, dict[tuple[int, int], str]], ...]:
    """Rates [N, 3], threshold and names of translations, where their unit is known, and of rotations."""
    translation = settings.translation if track.metric else settings.translation_relative
    turning = (rates.rotation, settings.rotation, ROTATIONS)
    return ((rates.translation, translation, TRANSLATIONS), turning) if track.scaled else (turning,)


def unclear_spans(
    track: CameraTrack, moves: Sequence[Move], settings: MotionSettings | None = None
) -> tuple[tuple[float, float], ...]:
    """Times in which the camera may do more than its moves say.

    That is where the largest rate of translation, or of rotation, is at least `settings.keep` of its
    threshold while no move of that kind is named, where the poses are unsure, and all of it where the unit of
    translations is unknown.

    Args:
        track: the camera's path.
        moves: of `camera_moves` with the same settings.
        settings: thresholds; None: `MotionSettings()`.

    Returns:
        (start, end) in seconds, in order, apart from each other.
    """
    settings = settings or MotionSettings()
    rates = camera_rates(track, settings)
    times = rates.times
    unclear = (rates.confidence < settings.min_confidence) | (not track.scaled)
    for values, threshold, names in _groups(rates, track, settings):
        named = np.zeros(len(times), bool)
        for move in moves:
            if move.name in names.values():
                named |= (times >= move.start) & (times <= move.end)
        unclear |= ~named & (np.abs(values).max(axis=1) >= settings.keep * threshold)
    return tuple((float(times[first]), float(times[last - 1])) for first, last in spans(unclear))


def _moves(name: str, runs: Spans, rates: CameraRates, min_duration: float) -> list[Move]:
    times = rates.times
    # A clip shorter than the shortest move can still be one move from end to end.
    shortest = min(min_duration, 0.9 * (times[-1] - times[0]))
    return [
        Move("camera", name, float(times[first]), float(times[last - 1]))
        for first, last in runs
        if times[last - 1] - times[first] >= shortest
    ]


def move_sets(moves: Iterable[Move]) -> tuple[tuple[float, float, frozenset[str]], ...]:
    """Cut the time where any move begins or ends.

    Args:
        moves: of one camera.

    Returns:
        (start, end, names of the moves that go on), in order; stretches without any are left out, and
        neighbours of equal names are one.
    """
    moves = list(moves)
    edges = sorted({edge for move in moves for edge in (move.start, move.end)})
    out: list[tuple[float, float, frozenset[str]]] = []
    for start, end in pairwise(edges):
        names = frozenset(move.name for move in moves if move.start <= start and move.end >= end)
        if not names:
            continue
        if out and out[-1][1] == start and out[-1][2] == names:
            out[-1] = (out[-1][0], end, names)
        else:
            out.append((start, end, names))
    return tuple(out)


def moves_during(moves: Iterable[Move], start: float, end: float) -> frozenset[str]:
    """The moves of an interval: those that cover most of it.

    Args:
        moves: of one camera.
        start: of the interval, seconds.
        end: of the interval, seconds, after start.

    Returns:
        Names; empty where the interval is mostly unlabelled.
    """
    covered: dict[str, float] = {}
    for move in moves:
        overlap = min(move.end, end) - max(move.start, start)
        covered[move.name] = covered.get(move.name, 0.0) + max(overlap, 0.0)
    return frozenset(name for name, seconds in covered.items() if seconds >= MOST_OF_IT * (end - start))
