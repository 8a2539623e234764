"""The 12 geometric types of DSR, from a viewpoint that is fixed (abs_*) or followed (rel_*).

They are distance, direction, orientation, speed, comparison of speeds, and prediction of a direction. The
viewer is the camera or an object with a heading. Each quantity is measured over three equal parts of the time
asked about, or at their ends; where one of them is unclear there is no question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fourdthinker.synth.motion import measures_agree
from fourdthinker.synth.questions.forms import Facts, ObjectFacts, Question, Support, join_runs, seconds
from fourdthinker.synth.questions.objects import box_near, box_text, called, named, span_of, stratum
from fourdthinker.synth.questions.phrases import put, viewpoint_phrases
from fourdthinker.synth.questions.views import (
    Array,
    Viewer,
    camera_viewer,
    change_word,
    change_words,
    direction_word,
    faced_from,
    object_viewer,
    seen_from,
    speeds,
    spread,
)
from fourdthinker.synth.tracks import ObjectTrack, plain_name

PARTS = 3
AHEAD = 0.25  # share of the track that a prediction is about, not shown
WHERE = (("behind", "front"), ("left", "right"), ("above", "below"))
WHERETO = (("backward", "forward"), ("left", "right"), ("up", "down"))
DISTANCES = ("it grows", "it shrinks", "it stays nearly the same")
SPEEDS = ("it speeds up", "it slows down", "it keeps its speed")
COMPARED = ("the former is faster", "the latter is faster", "both are nearly as fast")
TURN = 25.0  # degrees: a prediction is only asked where the motion of the last part goes on so straight
MOVES = 0.05  # of its mean distance to the viewer: what moves less in the whole time, rests

Answer = tuple[str, tuple[str, ...]]  # the answer, and the clauses that lead to it


def viewpoint_questions(facts: Facts, rng: np.random.Generator) -> list[Question]:
    """Questions of the 12 types about every pair of a viewer and an object, where their answers are clear.

    Args:
        facts: of the clip.
        rng: draws wordings.

    Returns:
        Questions; a camera, which mostly sees what is in front of it, has other pools than an object, and an
        object one for each position of its box.
    """
    items = named(facts)
    viewers: list[tuple[Viewer, ObjectTrack | None]] = [(camera_viewer(facts.camera), None)]
    for item in items:
        viewer = object_viewer(item.track, facts.camera)
        if viewer is not None:
            viewers.append((viewer, item.track))
    questions = []
    for viewer, track in viewers:
        for item in items:
            if track is item.track:
                continue
            others = [o for o in items if o is not item and o.track is not track]
            for fixed in (True, False):
                questions += list(_of_pair(facts, viewer, track, item, others, fixed, rng))
    return questions


def _of_pair(
    facts: Facts,
    viewer: Viewer,
    track: ObjectTrack | None,
    item: ObjectFacts,
    others: list[ObjectFacts],
    fixed: bool,
    rng: np.random.Generator,
) -> Iterator[Question]:
    start, end = span_of(item.track)
    start, end = max(start, float(viewer.times[0])), min(end, float(viewer.times[-1]))
    if end - start < 1.0:
        return
    who, name, pool = "camera", "the camera", "from the camera"
    if track is not None:
        box = box_near(track, (start + end) / 2)
        if box is None or not start <= box[0] <= _shown(start, end):
            return
        who = plain_name(track.name)
        name = f"{called(track)} with bounding box {box_text(box[1])} at {seconds(box[0])}"
        pool = f"from an object/{stratum(box[1])}"
    instants = spread(start, end, PARTS + 1)
    other = others[0] if others else None
    kinds: dict[str, Callable[[], Answer | None]] = {
        "dis": lambda: _distance(viewer, item, instants, fixed),
        "dir": lambda: _direction(viewer, item, instants, fixed),
        "ori": lambda: _orientation(viewer, item, instants, fixed),
        "spd": lambda: _speed(viewer, item, instants, fixed),
        "spd_comp": lambda: _comparison(viewer, item, other, instants, fixed),
        "dir_pred": lambda: _prediction(viewer, item, start, end, fixed),
    }
    for kind, find in kinds.items():
        found = find()
        if found is None:
            continue
        shown = _shown(start, end) if kind == "dir_pred" else end
        label = f"{'abs' if fixed else 'rel'}_{kind}"
        names = {"object": called(item.track), "viewer": name, "at": seconds(start), "at_end": seconds(shown)}
        if other is not None:
            names["other"] = called(other.track)
        yield Question(
            id=f"{facts.clip}.{label}.{who}.{plain_name(item.track.name)}".replace(" ", "-"),
            clip=facts.clip,
            source=facts.source,
            type=label,
            text=put(viewpoint_phrases(kind, fixed=fixed), rng, seconds(start), seconds(shown), names),
            answer=found[0],
            start=0.0 if kind == "dir_pred" else start,
            end=shown,
            pool=f"{label} {pool}",
            support=Support(item.track.name, tuple(t for t in instants if t <= shown + 1e-6)),
            evidence=found[1],
        )


def _shown(start: float, end: float) -> float:
    """Up to when a prediction shows the clip."""
    return round(end - AHEAD * (end - start), 1)


def _distance(viewer: Viewer, item: ObjectFacts, instants: tuple[float, ...], fixed: bool) -> Answer | None:
    lengths, *others = (
        np.linalg.norm(seen_from(viewer, one, instants, fixed=fixed), axis=1) for one in item.track.readings()
    )
    words = change_words(lengths.tolist(), DISTANCES)
    if words is None or not all(measures_agree(lengths, other) for other in others):
        return None
    relative = [f"{length / lengths[0]:.1f}" for length in lengths]
    return join_runs(words), (f"in turn it is {', '.join(relative)} times as far away as at first",)


def _direction(viewer: Viewer, item: ObjectFacts, instants: tuple[float, ...], fixed: bool) -> Answer | None:
    return _words(seen_from(viewer, item.track, instants, fixed=fixed), WHERE, instants, "it is at the")


def _orientation(
    viewer: Viewer, item: ObjectFacts, instants: tuple[float, ...], fixed: bool
) -> Answer | None:
    faced = faced_from(viewer, item.track, instants, fixed=fixed)
    return None if faced is None else _words(faced, WHERETO, instants, "it faces")


def _words(
    vectors: Array, words: tuple[tuple[str, str], ...], instants: tuple[float, ...], clause: str
) -> Answer | None:
    found = [direction_word(vector, words) for vector in vectors]
    if any(word is None for word in found):
        return None
    known = [str(word) for word in found]
    if len(set(known)) == 1:
        return known[0], (f"at all these times {clause} {known[0]}",)
    times = [seconds(t) for t in instants]
    rest = [f"at {time} {word}" for time, word in zip(times[1:], known[1:], strict=True)]
    return join_runs(known), (f"at {times[0]} {clause} {known[0]}, {', '.join(rest[:-1])} and {rest[-1]}",)


def _speed(viewer: Viewer, item: ObjectFacts, instants: tuple[float, ...], fixed: bool) -> Answer | None:
    found = _speeds(viewer, item, instants, fixed)
    words = None if found is None else change_words(found.tolist(), SPEEDS)
    if found is None or words is None:
        return None
    relative = [f"{value / found[0]:.1f}" for value in found]
    return join_runs(words), (f"in equal parts of the time its ways are as 1 to {' to '.join(relative[1:])}",)


def _comparison(
    viewer: Viewer, item: ObjectFacts, other: ObjectFacts | None, instants: tuple[float, ...], fixed: bool
) -> Answer | None:
    if other is None or other.track.times[0] > instants[0] or other.track.times[-1] < instants[-1]:
        return None
    one, two = _speeds(viewer, item, instants, fixed), _speeds(viewer, other, instants, fixed)
    if one is None or two is None:
        return None
    word = change_word(float(two.mean()), float(one.mean()), COMPARED)
    if word is None:
        return None
    ratio = float(one.mean() / two.mean())
    return word, (f"{called(item.track)} goes {ratio:.1f} times as far as {called(other.track)}",)


def _speeds(viewer: Viewer, item: ObjectFacts, instants: tuple[float, ...], fixed: bool) -> Array | None:
    """Speeds in the viewer's axes in each part; None for what rests there."""
    fine = spread(instants[0], instants[-1], 4 * PARTS + 1)
    positions = seen_from(viewer, item.track, fine, fixed=fixed)
    found = speeds(positions, fine)
    if found.mean() * (fine[-1] - fine[0]) < MOVES * np.linalg.norm(positions, axis=1).mean():
        return None
    return found.reshape(PARTS, 4).mean(axis=1)


def _prediction(viewer: Viewer, item: ObjectFacts, start: float, end: float, fixed: bool) -> Answer | None:
    shown = _shown(start, end)
    instants = (start, start + (shown - start) / 2, shown, end)
    positions = seen_from(viewer, item.track, instants, fixed=fixed)
    before, after = positions[2] - positions[1], positions[3] - positions[2]
    lengths = np.linalg.norm(before), np.linalg.norm(after)
    if min(lengths) < MOVES / 2 * np.linalg.norm(positions[2]):
        return None
    if before @ after / (lengths[0] * lengths[1]) < np.cos(np.radians(TURN)):
        return None  # nothing that is shown says where it goes
    word, last = direction_word(after, WHERETO), direction_word(before, WHERETO)
    if word is None or last != word:
        return None
    return word, (f"up to {seconds(shown)} it moves {last}", "it goes on as it moved last")
