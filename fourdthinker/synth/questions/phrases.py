"""How questions are put: several wordings of each kind, drawn without regard to the answer.

`{object}`, `{other}` and `{viewer}` are names with their article, `{span}` is the time asked about, `{at}` an
instant, `{box}` where the object is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

CAMERA = (
    "How does the camera move {span}?",
    "Which option names all moves of the camera {span}?",
    "What is the camera doing {span}?",
    "Judging by what stands still, how is the camera moved {span}?",
    "Describe the motion of the camera {span}.",
    "{Span}, which moves does the camera make?",
    "Which camera work is seen {span}?",
    "By its own motion alone, what does the camera do {span}?",
)
DIRECTION = (
    "Which way does {object} move {span}, once the camera's own motion is removed?",
    "In the scene itself, where does {object} go {span}? Directions are those of the first view.",
    "{Span}, in which direction does {object} travel, as first seen by the camera?",
    "Leaving the camera's motion aside, how does {object} move {span}?",
    "What is the direction of the true motion of {object} {span}, in terms of the first view?",
    "As seen at the beginning, which way does {object} move through the scene {span}?",
    "If the camera had stayed where it was, which way would {object} have moved {span}?",
    "Name the direction of {object}'s own motion {span}.",
)
BOX_DIRECTION = (
    "Which way does the object in the box {box} at {at} move {span}, the camera's own motion removed?",
    "An object is seen in the box {box} at {at}. In which direction does it travel {span}, in terms of the "
    "first view?",
    "Follow what is in the box {box} at {at}. Which way does it move through the scene {span}?",
    "Leaving the camera's motion aside, how does the object in the box {box} at {at} move {span}?",
    "The box {box} marks an object at {at}. Name the direction of its own motion {span}.",
    "Where does the object that the box {box} shows at {at} go {span}? Directions are those of the first "
    "view.",
)
DISTANCE = (
    "How does the distance between {object} and the camera change {span}?",
    "{Span}, does {object} come closer to the camera, get farther from it, or neither?",
    "What happens to the true distance from the camera to {object} {span}?",
    "Comparing the end with the beginning, how far is {object} from the camera {span}?",
    "How does the gap between the camera and {object} develop {span}?",
    "Is {object} nearer to the camera at the end of the time {span}?",
)
SPEED = (
    "How does the speed of {object} change {span}?",
    "{Span}, does {object} speed up, slow down or keep its speed?",
    "Which option describes the speed of {object} {span}?",
    "How fast does {object} move {span}, early compared with late?",
    "What is the speed profile of {object} {span}?",
    "Leaving the camera's motion aside, how does {object}'s speed develop {span}?",
)
_FIXED = (
    "Keep the viewpoint of {viewer} at {at} fixed. ",
    "From where {viewer} is at {at}, facing as it does then: ",
    "Take the position and orientation of {viewer} at {at} for the whole time. ",
    "Imagine an observer who stays as {viewer} is at {at}. ",
)
_FOLLOWED = (
    "From the viewpoint of {viewer}, as it moves: ",
    "Follow {viewer}: at each moment take its position and orientation. ",
    "Imagine an observer who moves and turns with {viewer}. ",
    "Seen all the time by {viewer} itself: ",
)
_VIEWED = {
    "dis": (
        "how does the distance to {object} change {span}?",
        "{span}, what happens to the distance of {object}?",
        "how does {object}'s distance develop {span}?",
    ),
    "dir": (
        "where is {object} {span}?",
        "in which direction is {object} seen {span}?",
        "{span}, on which side is {object}?",
    ),
    "ori": (
        "which way does {object} face {span}?",
        "{span}, where does the front of {object} point?",
        "how is {object} oriented {span}?",
    ),
    "spd": (
        "how does the speed of {object} change {span}?",
        "{span}, how does {object}'s speed develop?",
        "what happens to the speed of {object} {span}?",
    ),
    "spd_comp": (
        "which is faster {span}: {object} (the former) or {other} (the latter)?",
        "{span}, compare the speeds of {object} (the former) and {other} (the latter).",
        "does {object} (the former) move faster than {other} (the latter) {span}?",
    ),
    "dir_pred": (
        "which way will {object} move next, after {at_end}?",
        "predict the direction in which {object} moves just after {at_end}.",
        "the clip ends at {at_end}. In which direction does {object} go on?",
    ),
}
METRIC = {
    "camera_absolute_distance": (
        "How far is {object} from the camera at {at}?",
        "At {at}, what is the distance between the camera and {object}?",
        "Estimate the distance from the camera to {object} at {at}.",
        "How many metres are between the camera and {object} at {at}?",
        "How far away is {object} at {at}, seen from the camera?",
        "At {at}, how many metres is it from the camera to {object}?",
    ),
    "object_absolute_distance": (
        "How far apart are {object} and {other} at {at}?",
        "What is the distance between {object} and {other} at {at}?",
        "At {at}, how many metres are between {object} and {other}?",
        "Estimate the distance from {object} to {other} at {at}.",
        "How distant is {object} from {other} at {at}?",
        "At {at}, how far is it from {object} to {other}?",
    ),
    "relative_distance": (
        "Which is nearer to the camera at {at}: {object} (the former) or {other} (the latter)?",
        "At {at}, compare how far {object} (the former) and {other} (the latter) are from the camera.",
        "Is {object} (the former) nearer to the camera than {other} (the latter) at {at}?",
        "Of {object} (the former) and {other} (the latter), which is closer to the camera at {at}?",
        "At {at}, is {object} (the former) or {other} (the latter) nearer to the camera?",
        "Compare two distances to the camera at {at}: that of {object} (the former) and that of {other} (the "
        "latter).",
    ),
    "camera_displacement": (
        "How far is the camera at the end from where it was at the beginning {span}?",
        "By how many metres is the camera displaced {span}?",
        "{Span}, what is the straight distance between the camera's first and last position?",
        "Estimate the displacement of the camera {span}.",
        "How many metres are between where the camera starts and where it ends {span}?",
        "How far does the camera get {span}, in a straight line?",
    ),
    "object_displacement": (
        "How far is {object} at the end from where it was at the beginning {span}?",
        "By how many metres is {object} displaced in the scene {span}?",
        "{Span}, what is the straight distance between {object}'s first and last position?",
        "Estimate the displacement of {object} {span}, the camera's motion removed.",
        "How many metres does {object} get from its starting point {span}?",
        "In a straight line, how far does {object} go in the scene {span}?",
    ),
    "camera_rotation": (
        "By how many degrees is the camera turned at the end, compared with the beginning, {span}?",
        "How large is the angle between how the camera is oriented first and last {span}?",
        "By which angle does the camera's last orientation differ from its first one {span}?",
        "Estimate how many degrees the camera's orientation at the end is from that at the beginning {span}.",
        "How far is the camera turned at the end from how it was at the beginning {span}, in degrees?",
        "{Span}, what is the angle between the camera's first and last orientation?",
    ),
    "object_bearing": (
        "At {at}, at which horizontal angle from the viewing direction of the camera is {object}?",
        "How many degrees to the left or right of straight ahead is {object} at {at}?",
        "In which horizontal direction from the camera is {object} at {at}, in degrees?",
        "By how many degrees would the camera have to pan at {at} to point at {object}?",
        "At {at}, how far to the side of the camera's axis is {object}, in degrees?",
        "Estimate the horizontal angle of {object} from the middle of the view at {at}.",
    ),
    "camera_object_change": (
        "By how much does the distance between the camera and {object} change {span}?",
        "{Span}, how many metres closer or farther is {object} to the camera at the end?",
        "Compare the distance from the camera to {object} at the end with that at the beginning, {span}.",
        "How many metres does {object} gain on the camera, or lose, {span}?",
        "What is the change of the distance from the camera to {object} {span}?",
        "How much nearer or farther does {object} get {span}, measured from the camera?",
    ),
}
NUMBER = "Answer with a number in {unit}."
_SPANS = ("from {start} to {end}", "between {start} and {end}", "in the time from {start} to {end}")


def viewpoint_phrases(kind: str, *, fixed: bool) -> tuple[str, ...]:
    """All wordings of a question from a viewpoint.

    Args:
        kind: "dis", "dir", "ori", "spd", "spd_comp" or "dir_pred".
        fixed: the viewpoint stays as it was; else it follows the viewer.

    Returns:
        Templates.
    """
    firsts = _FIXED if fixed else _FOLLOWED
    return tuple(_after(first, second) for first in firsts for second in _VIEWED[kind])


def _after(first: str, second: str) -> str:
    """A clause behind a colon, or as a sentence of its own behind another one."""
    if first.endswith(". "):
        second = second.replace("{span}", "{Span}") if second.startswith("{span}") else _capital(second)
    return first + second


def put(
    templates: Sequence[str], rng: np.random.Generator, start: str, end: str, names: Mapping[str, str]
) -> str:
    """One of the wordings, filled in.

    Args:
        templates: the wordings.
        rng: draws one.
        start: of the time asked about, as text.
        end: of it, as text.
        names: the other fields.

    Returns:
        The question.
    """
    span = str(rng.choice(_SPANS)).format(start=start, end=end)
    text = str(rng.choice(templates)).format(span=span, Span=_capital(span), **names)
    return _capital(text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
