"""Questions about a rendered world: camera motion, object direction, distance change.

Labels and options are those of the synthesis pipeline, from the exact poses, in the few words of the demo's
tokenizer. Answers are balanced over a set of clips and wrong options are right answers of other clips, so
that a question's text says nothing about its answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fourdthinker.files import LETTERS
from fourdthinker.synth.geometry import scene_camera, scene_object
from fourdthinker.synth.motion import camera_moves, distance_change, moves_during, object_direction
from fourdthinker.synth.options import add_options
from fourdthinker.synth.questions import Question, Support
from fourdthinker.worlds.scenes import (
    CAMERA_MOTIONS,
    CAN_RADIUS,
    COLOURS,
    DIRECTIONS,
    KEY_FRAMES,
    World,
)

FAMILIES: dict[str, tuple[str, ...]] = {
    "camera": CAMERA_MOTIONS,
    "direction": DIRECTIONS,
    "distance": ("closer", "farther", "same"),
}
SUBJECTS = (0, 1)  # the solids that questions are about: the moving one and one at rest
_LETTERS = LETTERS[:8]  # words of the demo's tokenizer, whose ids its results depend on
# The pipeline's words -> the demo's; other moves are none that a scene of the demo makes.
_CAMERA = {
    "pan left": "pan left",
    "pan right": "pan right",
    "truck left": "move left",
    "truck right": "move right",
    "dolly in": "move forward",
    "dolly out": "move back",
}
_DIRECTION = {"left": "left", "right": "right", "toward the camera": "toward", "away from the camera": "away"}


@dataclass(frozen=True)
class Labels:
    """What the geometry of a world says, in the words of FAMILIES; None where it is unclear.

    Attributes:
        camera: the camera's one move from the first frame to the last.
        direction: where the moving solid goes over the ground, in the words of the first view, whatever the
            camera does.
        distance: of each of SUBJECTS, how its distance to the camera changes.
    """

    camera: str | None
    direction: str | None
    distance: tuple[str | None, ...]


def label(world: World) -> Labels:
    """The labels of a world, from its exact poses."""
    camera, end = scene_camera(world), float(world.seconds[-1])
    moves = sorted(moves_during(camera_moves(camera), 0.0, end))
    tracks = [scene_object(world, index) for index in SUBJECTS]
    return Labels(
        _CAMERA.get(moves[0]) if len(moves) == 1 else None,
        _DIRECTION.get(object_direction(tracks[0], camera, 0.0, end) or ""),
        tuple(distance_change(track, camera, 0.0, end) for track in tracks),
    )


def ask(world: World, labels: Labels, family: str, index: int, clip: str = "0") -> Question:
    """One question of `family` about solid `index` of clip `clip`, without options.

    Raises:
        ValueError: it has no clear answer, or no such family.
    """
    name = world.solids[index].name
    if family == "camera":
        text, answer = "how does the camera move ?", labels.camera
    elif family == "direction":
        text, answer = f"which way does the {name} move ?", labels.direction if index == 0 else None
    elif family == "distance":
        text, answer = f"how does the distance to the {name} change ?", labels.distance[index]
    else:
        raise ValueError(f"unknown question family {family!r}: use one of {', '.join(FAMILIES)}")
    if answer is None:
        raise ValueError(f"{family}: no clear answer about the {name} in this world; ask another")
    end = float(world.seconds[-1])
    shown = Support(name, tuple(float(world.seconds[frame]) for frame in KEY_FRAMES))
    return Question(f"{clip}-{family}", clip, clip, family, text, answer, 0.0, end, family, shown)


def ask_all(worlds: Sequence[tuple[World, Labels]], seed: int) -> list[list[Question]]:
    """Questions of all families for every world, answers balanced over the set as far as the worlds allow.

    The camera and direction answers are as balanced as the worlds are; the solid of a distance question (0
    or 1) is chosen for the answer least used so far. What is unclear in a world is not asked of it. Options
    are the pipeline's; all questions of its blocks are asked, since every answer here is so common that none
    can be told by having learnt the others.
    """
    rng = np.random.default_rng([seed, 7])
    used: Counter[str] = Counter()
    asked = []
    for number, (world, labels) in enumerate(worlds):
        clip = f"{number:05d}"
        if labels.camera is not None:
            asked.append(ask(world, labels, "camera", 1, clip))
        if labels.direction is not None:
            asked.append(ask(world, labels, "direction", 0, clip))
        order = rng.permutation(2)
        candidates = [(int(k), change) for k in order if (change := labels.distance[int(k)])]
        if candidates:
            index, change = min(candidates, key=lambda item: used[item[1]])
            # An answer that is already ahead of the rarest one waits, so that the counts stay level.
            if used[change] <= min(used[text] for text in FAMILIES["distance"]) + 2:
                used[change] += 1
                asked.append(ask(world, labels, "distance", index, clip))
    of_clip: dict[str, list[Question]] = defaultdict(list)
    for question in add_options(asked, seed, every=True).questions:
        of_clip[question.clip].append(question)
    return [of_clip[f"{number:05d}"] for number in range(len(worlds))]


def subject(world: World, question: Question) -> int:
    """The solid that a question, its overlays and its narration are about."""
    return [solid.name for solid in world.solids].index(str(question.support.object))


def spot(world: World, index: int, frame: int) -> str:
    """Where solid `index` is seen in `frame`: column and row in eighths of the image, and its size."""
    x, y, depth = world.project(world.solids[index].centre)[frame]
    cell = world.size / 8
    wide = 2 * world.solids[index].size / depth * world.focal * (64 / world.size)
    column, row = (int(np.clip(v // cell, 0, 7)) for v in (x, y))
    return f"{column} {row} {int(np.clip(wide // 3, 0, 9))}"


def _flows(world: World) -> list[tuple[float, float]]:
    """How the ground slides near the camera and farther off, halfway through the clip.

    Pixels a frame of a 64-pixel image, to the right and down.
    """
    flows = []
    middle = len(world.seconds) // 2
    for row in (0.85, 0.5):
        local = np.array([0, (row - 0.5) * world.size / world.focal, 1], np.float32)
        ray = local @ world.rotation[middle]
        point = world.position[middle] - ray * world.position[middle, 2] / ray[2]
        seen = world.project(np.broadcast_to(point, (len(world.seconds), 3)))
        dx, dy = (seen[middle + 1, :2] - seen[middle - 1, :2]) / 2 * (64 / world.size)
        flows.append((float(dx), float(dy)))
    return flows


def ground_flow(world: World) -> str:
    """How the ground slides through the image, near the camera and farther off: pixels per frame, rounded."""
    (near_x, near_y), (far_x, far_y) = _flows(world)
    return f"near {_signed(near_x)} {_signed(near_y)} far {_signed(far_x)} {_signed(far_y)}"


def ground_slide(world: World) -> str:
    """The same in words: where to, and whether the near ground is faster than the far one (parallax)."""
    (x, y), far = _flows(world)
    sideways = abs(x) > abs(y)
    way = ("rightward" if x > 0 else "leftward") if sideways else ("downward" if y > 0 else "upward")
    near_speed, far_speed = np.hypot(x, y), np.hypot(*far)
    return f"{way} near {'faster' if near_speed > 1.35 * far_speed else 'alike'}"


def _signed(value: float) -> str:
    number = int(np.clip(np.round(value), -6, 6))
    return f"+{number}" if number > 0 else str(number)


def scan(world: World, frame: int) -> str:
    """What is seen in `frame` from left to right.

    For each eighth of the image's width the colour of the nearest solid in its middle, or a dot.
    """
    seen = world.project(np.stack([solid.centre for solid in world.solids], 1))[frame]
    found = []
    for k in range(8):
        x = (k + 0.5) * world.size / 8
        colour, nearest = ".", np.inf
        for solid, (column, _, depth) in zip(world.solids, seen, strict=True):
            half = solid.size * (CAN_RADIUS if solid.shape == "can" else 1) / depth * world.focal
            if abs(x - column) < half and depth < nearest:
                colour, nearest = solid.colour, depth
        found.append(colour)
    return " ".join(found)


def caption(world: World, frames: Iterable[int], *, scan_first: bool = True) -> str:
    """What the pixels show, without an answer.

    At `frames` the solids from left to right, where each of them is seen, and how the ground slides.

    Args:
        world: what is described.
        frames: the times.
        scan_first: whether the solids from left to right come first. A column can be read off them, so a
            model has to see it only where they come last (LOG.md).

    Returns:
        Words of the demo's tokenizer.
    """
    times = list(frames)
    scans, spots = [scan(world, frame) for frame in times], []
    for index in sorted(range(len(world.solids)), key=lambda k: list(COLOURS).index(world.solids[k].colour)):
        seen = " to ".join(spot(world, index, k) for k in times)
        spots.append(f"{world.solids[index].name} {seen}")
    parts = [*scans, *spots] if scan_first else [*spots, *scans]
    return " , ".join([*parts, f"ground {ground_flow(world)}"]) + " ,"


def narrate(world: World, question: Question) -> str:
    """A short chain of thought, and the answer in words.

    It has one <output_image> per overlay (the solid in the first and in the last frame) and the facts that
    the answer follows from.
    """
    index = subject(world, question)
    name = world.solids[index].name
    first, last = (spot(world, index, frame).split() for frame in KEY_FRAMES)
    thought = "" if question.type == "distance" else f"the ground slides {ground_slide(world)} . "
    thought += (
        f"the {name} goes from {first[0]} {first[2]} <output_image> to {last[0]} {last[2]} <output_image> ."
    )
    return f"<think> {thought} </think> <answer> {question.answer} </answer>"


def words() -> list[str]:
    """Every word of questions, captions and narration, in a fixed order, for a word-level tokenizer."""
    numbers = [str(n) for n in range(10)] + [_signed(n) for n in range(-6, 7) if n]
    text = (
        "<think> </think> <answer> </answer> how does the camera move ? which way distance to change "
        "goes from to the ground slides near far alike faster "
        "rightward leftward downward upward , . describe user assistant"
    )
    letters = [f"{letter}." for letter in _LETTERS]
    answers = " ".join(answer for family in FAMILIES.values() for answer in family)
    every = [*text.split(), *COLOURS, "ball", "box", "can", *answers.split(), *letters, *_LETTERS, *numbers]
    return list(dict.fromkeys(every))
