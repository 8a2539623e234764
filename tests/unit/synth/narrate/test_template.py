"""The narrator without a model: its text is right, and varies; the validator finds what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.latents import IMAGERY
from fourdthinker.synth.narrate import fault, narrate
from fourdthinker.synth.narrate.template import camera_words
from fourdthinker.synth.options import add_options
from fourdthinker.synth.questions import Question, ask
from fourdthinker.synth.questions.metric import GRID, metres, on_grid
from fourdthinker.synth.tracks import Move
from tests.unit.synth.scenes import scene

SCENES = {f"clip{i:05d}": scene(i) for i in range(40)}
QUESTIONS = add_options([q for facts in SCENES.values() for q in ask(facts, 0)], 0, every=True).questions


def some(kind: str) -> Question:
    return next(q for q in QUESTIONS if q.type == kind and q.options)


def test_every_narration_is_right() -> None:
    kinds = {q.type for q in QUESTIONS}
    assert len(kinds) >= 20
    for q in QUESTIONS:
        for instants in (q.support.instants, q.support.instants[:1], ()):
            text = narrate(q, SCENES[q.clip], instants, seed=0)
            assert fault(text, q, len(instants)) is None, (q, text)


def test_overlays_stand_in_time_order() -> None:
    q = some("object_direction")
    text = narrate(q, SCENES[q.clip], q.support.instants, seed=0)
    times = [
        text[:i].rsplit("at ", 1)[1].split(" s")[0] for i in range(len(text)) if text.startswith(IMAGERY, i)
    ]
    assert [float(t) for t in times] == pytest.approx(q.support.instants, abs=0.051)


def test_the_cameras_motion_is_taken_away_where_the_scene_is_asked_about() -> None:
    q = next(q for q in QUESTIONS if q.type == "object_direction" and "camera" not in q.answer)
    moves = camera_words(SCENES[q.clip], q.start, q.end)
    assert moves in narrate(q, SCENES[q.clip], q.support.instants, seed=0)
    still = replace(SCENES[q.clip], moves=(Move("camera", "static", 0.0, 6.0),))
    assert "camera" in narrate(q, still, q.support.instants, seed=0).lower()
    assert camera_words(still, 0, 6) == "static"
    assert "camera" not in narrate(q, replace(still, moves=()), q.support.instants, seed=0).lower()


def test_nothing_is_said_of_a_camera_that_is_mostly_unclear() -> None:
    q = next(q for q in QUESTIONS if q.type == "object_direction" and "camera" not in q.answer)
    part = replace(SCENES[q.clip], moves=(Move("camera", "static", 0.0, q.start + 0.7 * (q.end - q.start)),))
    assert camera_words(part, q.start, q.end) == ""
    assert "camera" not in narrate(q, part, q.support.instants, seed=0).lower()


def test_a_move_with_a_pause_is_named_once() -> None:
    pans = (Move("camera", "pan left", 0.0, 2.9), Move("camera", "pan left", 3.1, 5.0))
    halves = replace(SCENES["clip00000"], moves=(*pans, Move("camera", "static", 5.0, 6.0)))
    assert camera_words(halves, 0, 6) == "pan left, then static"


def test_wording_varies_with_the_seed_and_not_otherwise() -> None:
    q = some("camera")
    texts = {narrate(q, SCENES[q.clip], q.support.instants, seed=k) for k in range(30)}
    assert len(texts) > 15
    assert narrate(q, SCENES[q.clip], (), 7) == narrate(q, SCENES[q.clip], (), 7)


def narrated(kind: str, words: str = "") -> list[tuple[Question, str]]:
    """Questions of a kind whose answer is these words, if any are given, and their narrations."""
    found = [q for q in QUESTIONS if q.type == kind and words in ("", q.answer)]
    assert found
    return [(q, narrate(q, SCENES[q.clip], q.support.instants, seed=0)) for q in found]


@pytest.mark.parametrize(
    ("kind", "answer", "clause"),
    [
        ("object_direction", "stationary", "in the scene it stays where it is"),
        ("object_direction", "left", "in the scene it moves left"),
        ("object_distance", "closer", "it ends closer to the camera than it began"),
        ("object_distance", "same", "it ends about as far from the camera as it began"),
        ("object_speed", "constant speed", "in the scene it keeps its speed"),
        ("object_speed", "slowing down", "in the scene it is slowing down"),
    ],
)
def test_what_is_found_is_a_sentence(kind: str, answer: str, clause: str) -> None:
    for _, text in narrated(kind, answer):
        assert clause in text


@pytest.mark.parametrize(
    "kind", ["camera_absolute_distance", "object_absolute_distance", "object_displacement"]
)
def test_a_number_is_not_said_to_be_another_one(kind: str) -> None:
    """4.9 m were found, and "so the answer is 4.8 m", the value of the grid next to it."""
    for q, text in narrated(kind):
        assert q.value is not None
        told = metres(q.value)
        assert told in text
        assert ("nearest" in text) == (q.letter is not None)
        if q.letter is not None:  # of the value as it is told, too
            value = float(told.split()[0])
            off = {letter: abs(float(o.split()[0]) - value) for letter, o in q.options.items()}
            assert min(off, key=off.__getitem__) == q.letter


def test_the_length_that_is_told_is_nearest_to_its_value_of_the_grid() -> None:
    """0.749 m is told as 0.75 m: as 0.7 m it would be nearer to 0.64 m than to 0.8 m, the answer."""
    grid = [float(f"{GRID**k:.2g}") for k in range(-10, 20)]
    for value in np.arange(0.2, 20, 0.001):
        choice = on_grid(value, "m")
        if choice is not None:
            told = float(metres(value).split()[0])
            assert min(grid, key=lambda step: abs(step - told)) == float(choice.split()[0]), value


def test_a_rotation_is_as_exact_as_its_answer() -> None:
    for q, text in narrated("camera_rotation"):
        assert q.value is not None
        assert f"{q.value:.1f} degrees" in text.split("</think>")[0].replace("nearest", "")


def test_the_time_that_is_named_is_the_one_that_is_asked_about() -> None:
    """Metric questions show the whole clip, and ask about an instant or two of it."""
    for q, text in narrated("camera_absolute_distance"):
        first = text.split(".", 2)
        assert f"{q.support.instants[0]:.1f} s" in ".".join(first[:2])
        assert f"{q.end:.1f} s" not in ".".join(first[:2])
    for q, text in narrated("camera_displacement"):
        start, end = q.support.instants
        assert f"{start:.1f} s" in text[:80]
        assert f"{end:.1f} s" in text[:80]


@pytest.mark.parametrize("kind", ["abs_dir", "rel_dir"])
def test_what_is_seen_at_several_times_is_one_sentence(kind: str) -> None:
    for q, text in narrated(kind):
        (clause,) = q.evidence
        assert clause in text
        assert ("at all these times" in clause) == (", then " not in q.answer)


THOUGHT = (
    "The part from 1 to 2 s matters. I imagine the ball "
    + IMAGERY
    + " and then "
    + IMAGERY
    + " to the left. It moves."
)
Q = replace(some("object_direction"), options={"A": "left", "B": "right"}, letter="A", answer="left")


@pytest.mark.parametrize("answer", ["A", "(A)", "A. left", "left", " a "])
def test_a_good_narration_is_accepted(answer: str) -> None:
    assert fault(f"<think>{THOUGHT}</think>\n<answer>{answer}</answer>", Q, 2) is None


LATER_FIRST = THOUGHT.replace("then ", "then at 1.5 s ").replace(IMAGERY, f"at 2 s {IMAGERY}", 1)


@pytest.mark.parametrize(
    ("text", "overlays", "reason"),
    [
        (f"{THOUGHT} <answer>A</answer>", 2, "not <think>"),
        (f"<think>{THOUGHT}</think>", 2, "not <think>"),
        (f"<answer>A</answer><think>{THOUGHT}</think>", 2, "not <think>"),
        (f"<think>{THOUGHT}</think><answer>A</answer> bye", 2, "not <think>"),
        (f"<think>{THOUGHT}<think></think><answer>A</answer>", 2, "each tag once"),
        (f"<think>{THOUGHT}</think><answer>B</answer><answer>A</answer>", 2, "each tag once"),
        (f"<think>{THOUGHT}</think><answer>B</answer>", 2, "answers B, and geometry says A"),
        (f"<think>{THOUGHT}</think><answer>B. left</answer>", 2, "is no option"),
        (f"<think>{THOUGHT}</think><answer>A or B</answer>", 2, "is no option"),
        (f"<think>{THOUGHT}</think><answer>A</answer>", 3, "2 <output_image> for 3"),
        (f"<think>{THOUGHT}</think><answer>A {IMAGERY}</answer>", 2, "3 <output_image> for 2"),
        (f"<think>{THOUGHT}<|im_end|></think><answer>A</answer>", 2, "control token"),
        (f"<think>{THOUGHT} <tool_call></think><answer>A</answer>", 2, "control token"),
        ("<think>Left.</think><answer>A</answer>", 0, "characters"),
        (f"<think>{THOUGHT * 200}</think><answer>A</answer>", 2, "characters"),
        (f"<think>{IMAGERY}{'x' * 900}{IMAGERY}</think><answer>A</answer>", 2, "stand together"),
        (f"<think>{THOUGHT} The correct answer is A.</think><answer>A</answer>", 2, "could not know"),
        (f"<think>{THOUGHT} The red mask shows it.</think><answer>A</answer>", 2, "could not know"),
        (f"<think>{THOUGHT} Measured facts say so.</think><answer>A</answer>", 2, "could not know"),
        (
            f"<think>{THOUGHT} So the answer is B.</think><answer>A</answer>",
            2,
            "comes to B, and geometry says A",
        ),
        (f"<think>{THOUGHT} The answer must be (B) for that.</think><answer>A</answer>", 2, "comes to B"),
        (
            f"<think>{THOUGHT} So the answer: {Q.options['B']}, surely.</think><answer>A</answer>",
            2,
            "comes to B",
        ),
        (f"<think>{THOUGHT.replace(IMAGERY, '2 s ' + IMAGERY, 1)}</think><answer>A</answer>", 2, None),
        (f"<think>{LATER_FIRST}</think><answer>A</answer>", 2, "not in order"),
        (f"<think>{THOUGHT} So the answer is A. {Q.options['A']}.</think><answer>A</answer>", 2, None),
        (f"<think>{THOUGHT} A good answer is not easy.</think><answer>A</answer>", 2, None),
        (f"<think>{THOUGHT}\x00</think><answer>A</answer>", 2, "no text"),
        (f"<think>{THOUGHT}\ud800</think><answer>A</answer>", 2, "no text"),
    ],
)
def test_what_is_wrong_is_named(text: str, overlays: int, reason: str | None) -> None:
    found = fault(text, Q, overlays)
    assert found is None if reason is None else reason in str(found)


RIGHT = f"{Q.options['B']}"


@pytest.mark.parametrize(
    "end",
    [
        f"Hence B. {RIGHT}.",
        "That is B.",
        f"This fits B. {RIGHT.capitalize()}.",
        "The answer is therefore B",
        f"The answer is clearly {RIGHT}.",
        "I choose B.",
        "The answer is A at first sight. No, the answer is B.",
    ],
)
def test_a_reasoning_that_comes_to_another_answer(end: str) -> None:
    found = fault(f"<think>{THOUGHT} {end}</think><answer>A</answer>", Q, 2)
    assert found == "the reasoning comes to B, and geometry says A"


@pytest.mark.parametrize(
    "end",
    [
        "Option B does not fit, for it would have to turn. So the answer is A.",
        "I can rule out option B.",
        "Is the answer B? It is not, since nothing turns. That is A.",
        "The answer is not B.",
        f"This fits A. {Q.options['A']}.",
    ],
)
def test_a_reasoning_that_weighs_another_answer(end: str) -> None:
    assert fault(f"<think>{THOUGHT} {end}</think><answer>A</answer>", Q, 2) is None


@pytest.mark.parametrize(
    "pictures",
    [
        f"From 2.0 s to 4.0 s I picture the ball {IMAGERY}, at 3.0 s {IMAGERY}.",
        f"In the part from 2.0 s to 4.0 s I picture {IMAGERY} at 2.0 s, {IMAGERY} at 3.0 s.",
    ],
)
def test_an_interval_is_no_time_of_a_picture(pictures: str) -> None:
    thought = (
        f"The ball matters, and what it does over the ground that is seen all the time. {pictures} It moves."
    )
    assert fault(f"<think>{thought}</think><answer>A</answer>", Q, 2) is None


def test_what_is_asked_about_may_be_named() -> None:
    q = replace(Q, support=replace(Q.support, object="face mask"))
    text = f"<think>{THOUGHT} The face mask moves.</think><answer>A</answer>"
    assert fault(text, q, 2) is None
    assert "could not know" in str(fault(text, Q, 2))


def test_a_number_is_compared_as_one() -> None:
    q = replace(Q, options={}, letter=None, value=2.44, unit="m", answer="2.4 m")
    assert fault(f"<think>{THOUGHT}</think><answer>2.4 m</answer>", q, 2) is None
    assert fault(f"<think>{THOUGHT}</think><answer>2.5</answer>", q, 2) is None
    assert "geometry says '2.4 m'" in str(fault(f"<think>{THOUGHT}</think><answer>3.1 m</answer>", q, 2))
    assert "geometry says" in str(fault(f"<think>{THOUGHT}</think><answer>2.4 to 9 m</answer>", q, 2))
    said = f"<think>{THOUGHT} The answer is 3.1 m.</think><answer>2.4 m</answer>"
    assert "comes to '3.1 m.'" in str(fault(said, q, 2))


@pytest.mark.parametrize(
    "answer", ["0.2 m", "0.20 metres", "about 0.2 m", "0.2", "0.21 meters.", "≈0.2 m", "**0.2 m**"]
)
def test_a_length_in_its_unit(answer: str) -> None:
    q = replace(Q, options={}, letter=None, value=0.2, unit="m", answer="0.20 m")
    assert fault(f"<think>{THOUGHT}</think><answer>{answer}</answer>", q, 2) is None


@pytest.mark.parametrize("answer", ["0.14 m", "0.25 m", "0.2 km", "20 cm", "0.2 degrees", "-0.2 m", "2e-1 m"])
def test_another_length_or_unit(answer: str) -> None:
    q = replace(Q, options={}, letter=None, value=0.2, unit="m", answer="0.20 m")
    assert "geometry says '0.20 m'" in str(fault(f"<think>{THOUGHT}</think><answer>{answer}</answer>", q, 2))
