"""MLLM-4D's metric questions: absolute and relative distance, displacement, orientation, change of distance.

Asked only of tracks in metres. A number is asked for as it is, or as a choice between values of a grid whose
neighbours differ by a quarter; a value between two grid points is not asked as a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fourdthinker.synth.motion import MotionSettings, camera_rates, longest_run
from fourdthinker.synth.questions.forms import Facts, ObjectFacts, Question, Support, seconds
from fourdthinker.synth.questions.objects import called, named, span_of
from fourdthinker.synth.questions.phrases import METRIC, NUMBER, put
from fourdthinker.synth.questions.views import Array, camera_viewer, change_word, interpolate, seen_from
from fourdthinker.synth.tracks import CameraTrack, plain_name, rotation_vectors

GRID = 1.25  # of lengths: each value by the one below
ANGLES = 15.0  # degrees between two values of the grid of angles
CLEAR = 0.3  # of the distance between grid points: a value so near to one is asked as a choice
TIMES = 1.5  # ratio between lengths of time whose answers are not options of one another
DIRECT = 1.1  # a camera's way from one orientation to another over the angle between them, at most
WRAPS = 170.0  # degrees: a longer way may end nearer to where it began
LEAST = 0.2  # metres: smaller displacements are not asked for
NEARER = ("the former is farther", "the former is nearer", "both are nearly as far")
DIGITS = 2  # decimals of centres


def metric_questions(facts: Facts, rng: np.random.Generator) -> list[Question]:
    """Metric questions about a clip, each as a number and, where it is clear, as a choice.

    Args:
        facts: of the clip.
        rng: draws instants and wordings.

    Returns:
        Questions; numbers have the pool "", since they take no options. None where the scale is unknown.
    """
    if not facts.camera.metric:
        return []
    questions = list(_of_camera(facts, rng))
    items = [item for item in named(facts) if item.track.metric]
    for index, item in enumerate(items):
        questions += list(_of_object(facts, item, rng))
        for other in items[index + 1 :]:
            questions += list(_of_two(facts, item, other, rng))
    return questions


def on_grid(value: float, unit: str) -> str | None:
    """A value as a choice shows it; None between two grid points, or for a length of 0.

    Args:
        value: in the unit.
        unit: "m" or "degrees".

    Returns:
        Such as "2.4 m" or "45 degrees".
    """
    if unit == "degrees":
        step = value / ANGLES
        nearest = round(step)
        return None if abs(step - nearest) > CLEAR else f"{int(nearest * ANGLES)} degrees"
    if value <= 0:
        return None
    step = math.log(value) / math.log(GRID)
    nearest = round(step)
    if abs(step - nearest) > CLEAR:
        return None
    rounded = float(f"{GRID**nearest:.2g}")
    return f"{np.format_float_positional(rounded, trim='-')} {unit}"  # 110 m, never 1.1e+02 m


def metres(value: float) -> str:
    """A length as texts have it: below 2 m to a hundredth, so that the next value of the grid is plain."""
    return f"{value:.2f} m" if value < 1.995 else f"{value:.1f} m"


def _numeric(question: Question, choice: str | None) -> Iterator[Question]:
    """A question for a number, and the same as a choice."""
    assert question.value is not None
    number = metres(question.value) if question.unit == "m" else f"{question.value:.1f} {question.unit}"
    text = f"{question.text} {NUMBER.format(unit='metres' if question.unit == 'm' else question.unit)}"
    yield replace(question, id=f"{question.id}.number", text=text, answer=number, pool="")
    if choice is not None:
        # A long time goes with a long way, and the question names the time: options are of times as long.
        length = question.support.instants[-1] - question.support.instants[0]
        bucket = round(math.log(length) / math.log(TIMES)) if length > 0 else 0
        yield replace(question, answer=choice, pool=f"{question.type} choice {bucket}")


def _make(
    facts: Facts,
    kind: str,
    rng: np.random.Generator,
    start: float,
    end: float,
    *,
    item: ObjectFacts | None = None,
    other: ObjectFacts | None = None,
    value: float | None = None,
    unit: str = "m",
    evidence: tuple[str, ...] = (),
) -> Question:
    """A question of one metric kind, its answer and pool still empty."""
    names = {"at": seconds(start)}
    if item is not None:
        names["object"] = called(item.track)
    if other is not None:
        names["other"] = called(other.track)
    who = ".".join(plain_name(o.track.name) for o in (item, other) if o is not None) or "camera"
    return Question(
        id=f"{facts.clip}.{kind}.{who}".replace(" ", "-"),
        clip=facts.clip,
        source=facts.source,
        type=kind,
        text=put(METRIC[kind], rng, seconds(start), seconds(end), names),
        answer="",
        start=0.0,
        end=facts.duration,
        pool=kind,
        support=Support(item.track.name if item else None, tuple(sorted({start, end}))),
        evidence=evidence,
        value=value,
        unit=unit,
        centres=centres(facts, item, start, end),
    )


def centres(
    facts: Facts, item: ObjectFacts | None, start: float, end: float
) -> dict[str, list[list[float] | None]]:
    """MLLM-4D's supervision: where camera and object are at two instants, in the axes of the first camera.

    Args:
        facts: of the clip.
        item: the object; None: null in its place.
        start: the first instant, seconds.
        end: the last one.

    Returns:
        {"camera_center": [[x, y, z], [x, y, z]], "object_center": [...]}, metres, x right, y down, z forward.
    """
    viewer = camera_viewer(facts.camera)

    def local(positions: Array) -> list[list[float] | None]:
        points = (positions - viewer.positions[0]) @ viewer.axes[0].T
        return [[round(float(v), DIGITS) + 0.0 for v in point] for point in points]

    camera = local(interpolate(viewer.times, viewer.positions, (start, end)))
    if item is None:
        return {"camera_center": camera, "object_center": [None, None]}
    return {
        "camera_center": camera,
        "object_center": local(interpolate(item.track.times, item.track.positions, (start, end))),
    }


def _of_camera(facts: Facts, rng: np.random.Generator) -> Iterator[Question]:
    viewer = camera_viewer(facts.camera)
    known = longest_run(viewer.times, facts.camera.confidence >= MotionSettings().min_confidence)
    if len(known) < 2:
        return
    start, end = _two_instants(float(viewer.times[known[0]]), float(viewer.times[known[-1]]), rng)
    if end - start < 0.5:
        return
    first, last = interpolate(viewer.times, viewer.positions, (start, end))
    way = float(np.linalg.norm(last - first))
    if way >= LEAST:
        evidence = (f"at {seconds(end)} the camera is {metres(way)} from where it was at {seconds(start)}",)
        made = _make(facts, "camera_displacement", rng, start, end, value=way, evidence=evidence)
        yield from _numeric(made, on_grid(way, "m"))
    angle = turn(facts.camera, start, end)
    if angle is not None and angle >= ANGLES / 2:
        evidence = (
            f"at {seconds(end)} the camera is turned by {angle:.1f} degrees from how it stood at "
            f"{seconds(start)}",
        )
        made = _make(
            facts, "camera_rotation", rng, start, end, value=angle, unit="degrees", evidence=evidence
        )
        yield from _numeric(made, on_grid(angle, "degrees"))


def turn(camera: CameraTrack, start: float, end: float) -> float | None:
    """Degrees between a camera's orientation at two instants; None where it gets there by a longer way.

    A pan of 240 degrees ends 120 degrees from where it began, one there and back again at 0: what is asked
    for is then not what is seen.

    Args:
        camera: its track.
        start: seconds.
        end: seconds, after start.

    Returns:
        0 to 170 degrees.
    """
    times = camera.times[(camera.times > start + 1e-6) & (camera.times < end - 1e-6)]
    poses = camera.resampled(np.concatenate([[start], times, [end]]))
    net = math.degrees(np.linalg.norm(rotation_vectors(poses.rotations[0].T @ poses.rotations[-1])))
    rates = camera_rates(poses, MotionSettings())
    way = float(np.linalg.norm(rates.rotation, axis=1).mean()) * (end - start)  # evenly spaced
    return net if way <= min(WRAPS, DIRECT * max(net, ANGLES / 2)) else None


def _of_object(facts: Facts, item: ObjectFacts, rng: np.random.Generator) -> Iterator[Question]:
    start, end = _two_instants(*span_of(item.track), rng)
    if end - start < 0.5:
        return
    seen = seen_from(camera_viewer(facts.camera), item.track, (start, end), fixed=False)
    near, far = (float(np.linalg.norm(point)) for point in seen)
    made = _make(
        facts, "camera_absolute_distance", rng, start, start, item=item, value=near,
        evidence=(f"at {seconds(start)} it is {metres(near)} from the camera",),
    )  # fmt: skip
    yield from _numeric(made, on_grid(near, "m"))
    bearing = math.degrees(math.atan2(seen[0][0], seen[0][2]))
    yield from _bearing(facts, item, start, bearing, rng)
    first, last = interpolate(item.track.times, item.track.positions, (start, end))
    way = float(np.linalg.norm(last - first))
    if way >= LEAST:
        made = _make(
            facts, "object_displacement", rng, start, end, item=item, value=way,
            evidence=(f"at {seconds(end)} it is {metres(way)} from where it was at {seconds(start)}",),
        )  # fmt: skip
        yield from _numeric(made, on_grid(way, "m"))
    change = far - near
    if abs(change) >= LEAST:
        word = "farther" if change > 0 else "closer"
        evidence = (
            f"at {seconds(start)} it is {near:.2f} m from the camera and at {seconds(end)} {far:.2f} m, "
            f"which is {abs(change):.2f} m {word}",
        )
        made = _make(
            facts, "camera_object_change", rng, start, end, item=item, value=abs(change), evidence=evidence
        )
        size = on_grid(abs(change), "m")
        yield from (
            replace(q, answer=f"{q.answer} {word}")
            for q in _numeric(made, size)
            if q.pool  # the number alone would not say which way
        )


def _bearing(
    facts: Facts, item: ObjectFacts, instant: float, bearing: float, rng: np.random.Generator
) -> Iterator[Question]:
    side = "right" if bearing > 0 else "left"
    size = on_grid(abs(bearing), "degrees")
    if size is None:
        return
    answer = "straight ahead" if size.startswith("0 ") else f"{size} to the {side}"
    made = _make(
        facts, "object_bearing", rng, instant, instant, item=item, value=bearing, unit="degrees",
        evidence=(f"at {seconds(instant)} it is {abs(bearing):.0f} degrees to the {side} of straight ahead",),
    )  # fmt: skip
    yield replace(made, answer=answer, pool="object_bearing choice")


def _of_two(
    facts: Facts, item: ObjectFacts, other: ObjectFacts, rng: np.random.Generator
) -> Iterator[Question]:
    spans = span_of(item.track), span_of(other.track)
    start, end = max(spans[0][0], spans[1][0]), min(spans[0][1], spans[1][1])
    if end - start < 0.5:
        return
    instant = _instant(start, end, rng)
    viewer = camera_viewer(facts.camera)
    one, two = (seen_from(viewer, o.track, (instant,), fixed=True)[0] for o in (item, other))
    apart, near, far = (float(np.linalg.norm(v)) for v in (one - two, one, two))
    made = _make(
        facts, "object_absolute_distance", rng, instant, instant, item=item, other=other, value=apart,
        evidence=(f"at {seconds(instant)} they are {metres(apart)} apart",),
    )  # fmt: skip
    yield from _numeric(made, on_grid(apart, "m"))
    word = change_word(far, near, NEARER)
    if word is not None:
        ratio = f"{near / far:.1f} times as far away as {called(other.track)}"
        made = _make(
            facts, "relative_distance", rng, instant, instant, item=item, other=other,
            evidence=(f"{called(item.track)} is {ratio}",),
        )  # fmt: skip
        yield replace(made, answer=word, unit="")


def _instant(start: float, end: float, rng: np.random.Generator) -> float:
    return round(float(rng.uniform(start, end)), 1)


def _two_instants(start: float, end: float, rng: np.random.Generator) -> tuple[float, float]:
    """Two instants, tenths of a second, at least half of the time between them."""
    length = end - start
    first = round(float(rng.uniform(start, start + length / 4)), 1)
    last = round(float(rng.uniform(end - length / 4, end)), 1)
    return first, last
