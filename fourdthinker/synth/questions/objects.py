"""4DThinker's questions about an object: direction, direction by box, distance, speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from fourdthinker.synth.questions.forms import Facts, ObjectFacts, Question, Support, seconds
from fourdthinker.synth.questions.phrases import BOX_DIRECTION, DIRECTION, DISTANCE, SPEED, put
from fourdthinker.synth.questions.views import spread
from fourdthinker.synth.tracks import STATIONARY, ObjectTrack, plain_name, with_article

Box = tuple[float, float, float, float]

SIZES = 1.5  # ratio between sides of boxes whose answers are not options of one another
KEY_FRAMES = 3  # instants of the imagery
SHORTEST = 1.0  # seconds of a track that is asked about
SURE = 0.5  # mean confidence of it
_ITSELF = {  # what is found, where the word of the answer alone does not end the clause
    STATIONARY: "in the scene it stays where it is",
    "closer": "it ends closer to the camera than it began",
    "farther": "it ends farther from the camera than it began",
    "same": "it ends about as far from the camera as it began",
    "constant speed": "in the scene it keeps its speed",
    "varying speed": "in the scene its speed varies",
}


def named(facts: Facts) -> list[ObjectFacts]:
    """The objects that a name tells apart from others and the camera, and that are seen for long enough."""
    names = Counter(plain_name(item.track.name) for item in facts.objects)
    names["camera"] += 1
    return [item for item in tracked(facts) if names[plain_name(item.track.name)] == 1]


def tracked(facts: Facts) -> list[ObjectFacts]:
    """The objects that are tracked surely, and for long enough."""
    return [
        item
        for item in facts.objects
        if item.track.times[-1] - item.track.times[0] >= SHORTEST and item.track.confidence.mean() >= SURE
    ]


def called(track: ObjectTrack) -> str:
    """An object as questions call it."""
    return with_article(track.name)


def span_of(track: ObjectTrack) -> tuple[float, float]:
    """Start and end of a track, to tenths of a second within it."""
    # + 0.0: no time is written as -0.0
    return float(np.ceil(track.times[0] * 10 - 1e-6) / 10) + 0.0, float(
        np.floor(track.times[-1] * 10 + 1e-6) / 10
    )


def object_questions(facts: Facts, rng: np.random.Generator) -> list[Question]:
    """Direction, direction by box, distance and speed of every object that has a clear answer.

    Args:
        facts: of the clip.
        rng: draws wordings.

    Returns:
        Questions, each type a pool.
    """
    questions = [question for item in named(facts) for question in _of_object(facts, item, rng)]
    for index, item in enumerate(tracked(facts)):
        start, end = span_of(item.track)
        box = box_near(item.track, (start + end) / 2)
        if item.direction is not None and box is not None:
            questions.append(_box_direction(facts, item, box, index, rng))
    return questions


def _of_object(facts: Facts, item: ObjectFacts, rng: np.random.Generator) -> Iterator[Question]:
    kinds = (
        ("object_direction", DIRECTION, item.direction, "in the scene it moves"),
        ("object_distance", DISTANCE, item.distance, "it ends"),
        ("object_speed", SPEED, item.speed, "in the scene it is"),
    )
    for kind, templates, answer, found in kinds:
        if answer is None:
            continue
        start, end = span_of(item.track)
        yield Question(
            id=f"{facts.clip}.{kind}.{plain_name(item.track.name)}".replace(" ", "-"),
            clip=facts.clip,
            source=facts.source,
            type=kind,
            text=put(templates, rng, seconds(start), seconds(end), {"object": called(item.track)}),
            answer=answer,
            start=start,
            end=end,
            pool=kind,
            support=Support(item.track.name, spread(start, end, KEY_FRAMES)),
            evidence=(_ITSELF.get(answer) or f"{found} {answer}",),
        )


def _box_direction(
    facts: Facts, item: ObjectFacts, found: tuple[float, Box], index: int, rng: np.random.Generator
) -> Question:
    instant, box = found
    start, end = span_of(item.track)
    names = {"box": box_text(box), "at": seconds(instant)}
    return Question(
        id=f"{facts.clip}.object_direction_by_box.{index}",
        clip=facts.clip,
        source=facts.source,
        type="object_direction_by_box",
        text=put(BOX_DIRECTION, rng, seconds(start), seconds(end), names),
        answer=str(item.direction),
        start=start,
        end=end,
        pool=f"object_direction_by_box/{stratum(box)}",
        support=Support(item.track.name, spread(start, end, KEY_FRAMES)),
        evidence=(_ITSELF.get(str(item.direction)) or f"in the scene it moves {item.direction}",),
        bbox=box,
    )


def box_near(track: ObjectTrack, instant: float) -> tuple[float, Box] | None:
    """When, nearest to an instant, an object is seen with a box, and the box, in fractions to hundredths.

    Questions show the box in the middle of a path: the one at its beginning tells where the path goes, since
    what goes left is first seen at the right, and what comes closer is small at first.
    """
    if track.boxes is None:
        return None
    for k in np.argsort(np.abs(track.times - instant), kind="stable"):
        left, top, right, bottom = (round(float(np.clip(v, 0, 1)), 2) for v in track.boxes[k])
        if track.confidence[k] > 0 and left < right and top < bottom:
            return float(track.times[k]), (left, top, right, bottom)
    return None


def stratum(box: Box) -> str:
    """Which column, row and size a box has, as parts of a pool: a question with it has options of its like.

    What moves and what rests are seen in unlike positions, so answers are balanced in each stratum apart;
    where one is too small, with those of other sizes, then rows, then columns.
    """
    left, top, right, bottom = box
    size = math.log((right - left) * (bottom - top)) / 2
    row, column = int((top + bottom) * 1.5 - 1e-9), int((left + right) * 1.5 - 1e-9)
    return f"{column}/{row}/{round(size / math.log(SIZES))}"


def box_text(box: Box) -> str:
    """A box as questions write it: left, top, right, bottom in fractions of the frame."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"
