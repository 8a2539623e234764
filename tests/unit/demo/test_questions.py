"""Questions: labels follow from geometry, answers are balanced, and their text gives nothing away."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.answers import parse_answer
from fourdthinker.demo.data import caption_text, demo_world
from fourdthinker.demo.questions import (
    FAMILIES,
    ask,
    ask_all,
    caption,
    ground_flow,
    label,
    narrate,
    scan,
    spot,
    subject,
    words,
)
from fourdthinker.demo.settings import DemoSettings
from fourdthinker.rewards import format_reward
from fourdthinker.worlds.scenes import CAMERA_MOTIONS, DIRECTIONS, KEY_FRAMES, World, make_world


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [make_world((9, i), CAMERA_MOTIONS[i % 6], DIRECTIONS[i // 6 % 4]) for i in range(144)]


def test_labels_follow_from_the_poses(worlds: list[World]) -> None:
    for i, world in enumerate(worlds):
        assert label(world).camera == CAMERA_MOTIONS[i % 6]
        assert label(world).direction == DIRECTIONS[i // 6 % 4]


def test_direction_does_not_depend_on_what_the_camera_does_later(worlds: list[World]) -> None:
    world = worlds[0]
    moved = replace(world, position=world.position + np.linspace(0, 3, 8)[:, None].astype(np.float32))
    assert label(moved).direction == label(world).direction
    # ... and seen from the other side, left is right.
    turned = replace(world, yaw=world.yaw + np.float32(np.pi))
    opposite = {"left": "right", "right": "left", "toward": "away", "away": "toward"}
    assert label(turned).direction == opposite[label(world).direction or ""]
    with pytest.raises(ValueError, match="no clear answer"):
        ask(world, label(world), "direction", 1)  # it stands still


@pytest.mark.parametrize(
    ("ratio", "change"),
    [(0.5, "closer"), (0.9, None), (1.0, "same"), (1.03, "same"), (1.1, None), (1.5, "farther")],
)
def test_distance_change(worlds: list[World], ratio: float, change: str | None) -> None:
    world = worlds[0]
    away = world.solids[0].centre[0] - world.position[0]
    centre = np.stack([world.position[0] + away, world.position[0] + ratio * away])
    solid = replace(world.solids[0], centre=centre)
    two = replace(
        world,
        seconds=world.seconds[[0, 4]],  # a second apart
        solids=(solid, solid),
        position=world.position[[0, 0]],
        yaw=world.yaw[[0, 0]],
    )
    assert label(two).distance == (change, change)


def test_options_are_right_answers_of_the_family_each_as_often(worlds: list[World]) -> None:
    labelled = [(world, label(world)) for world in worlds]
    letters, wrong = Counter(), Counter()
    for seed in range(8):
        for question in (q for questions in ask_all(labelled, seed) for q in questions):
            texts = list(question.options.values())
            assert question.options[str(question.letter)] == question.answer
            assert len(set(texts)) == len(texts) == min(4, len(FAMILIES[question.type]))
            assert set(texts) <= set(FAMILIES[question.type])
            letters[question.type, question.letter] += 1
            wrong.update((question.answer, text) for text in texts if text != question.answer)
    for family, answers in FAMILIES.items():
        counts = [count for (known, _), count in letters.items() if known == family]
        assert len(counts) == min(4, len(answers))
        assert max(counts) - min(counts) < 8 * np.sqrt(max(counts))
        pairs = [wrong[answer, other] for answer in answers for other in answers if other != answer]
        assert min(pairs) > 0.6 * max(pairs), (family, pairs)


def test_answers_are_balanced(worlds: list[World]) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for questions in ask_all([(world, label(world)) for world in worlds], 0):
        for question in questions:
            counts[question.type][question.answer] += 1
    for family, answers in FAMILIES.items():
        values = [counts[family][answer] for answer in answers]
        assert min(values) > 0, (family, values)
        assert max(values) - min(values) <= 3, (family, values)  # at most 3 a block are left over
    assert counts["distance"].total() > 0.5 * len(worlds)


def test_text_alone_is_at_chance() -> None:
    """Lookup tables on everything a reader of the text sees, learned on one half and tried on the other."""
    cells = [(c, d) for c in CAMERA_MOTIONS for d in DIRECTIONS]
    # Worlds are slow to find; their text varies by names and options, so each is asked many times.
    base = [make_world((4, i), *cells[i % 24]) for i in range(72)]
    labelled = [(world, label(world)) for world in base]
    asked = [
        (world, question)
        for seed in range(32)
        for world, questions in zip(base, ask_all(labelled, seed), strict=True)
        for question in questions
    ]
    names = {id(w): [s.name for s in w.solids] for w in base}
    weight: Counter[tuple[str, str]] = Counter((q.type, q.answer) for _, q in asked)
    half = {
        id(w): int(k) % 2 for w, k in zip(base, np.random.default_rng(1).permutation(len(base)), strict=True)
    }
    keys = {
        "options as a set": lambda w, q: (q.type, frozenset(q.options.values())),
        "options in order": lambda w, q: (q.type, tuple(q.options.values())),
        "letter": lambda w, q: (q.type, "letter"),
        "name": lambda w, q: (q.type, names[id(w)][subject(w, q)].split()[0]),
    }
    for what, key in keys.items():
        table: dict[object, Counter[str]] = defaultdict(Counter)
        for world, q in asked:
            if half[id(world)]:
                answer = q.letter if what == "letter" else q.answer
                table[key(world, q)][answer] += 1 / weight[q.type, q.answer]
        right, chance, count = 0.0, 0.0, 0.0
        for world, q in asked:
            if half[id(world)]:
                continue
            seen = table.get(key(world, q))
            guess = max(seen, key=seen.__getitem__) if seen else "A"
            hit = guess == (q.letter if what == "letter" else q.answer)
            w = 1 / weight[q.type, q.answer]
            right, chance, count = right + w * hit, chance + w / len(q.options), count + w
        # The worlds of a half are few, so a table on names may be off by several points by luck.
        assert right / count < chance / count + 0.08, (what, right / count, chance / count)


def test_what_is_unclear_is_not_asked(worlds: list[World]) -> None:
    labelled = [(world, label(world)) for world in worlds]
    assert {question.type for question in ask_all(labelled, 0)[0]} >= {"camera", "direction"}
    labelled[0] = (worlds[0], replace(labelled[0][1], camera=None, distance=(None, None)))
    assert [question.type for question in ask_all(labelled, 0)[0]] == ["direction"]


def test_unclear_questions_are_refused(worlds: list[World]) -> None:
    unclear = next(w for w in worlds if label(w).distance[0] is None)
    with pytest.raises(ValueError, match="ask another"):
        ask(unclear, label(unclear), "distance", 0)
    with pytest.raises(ValueError, match="unknown question family"):
        ask(unclear, label(unclear), "speed", 0)


def test_narration_states_the_answer_and_has_a_place_for_each_overlay(worlds: list[World]) -> None:
    for world in worlds[:48]:
        for family in ("camera", "direction"):
            question = ask(world, label(world), family, 1 if family == "camera" else 0)
            text = narrate(world, question)
            assert text.count("<output_image>") == 2
            assert parse_answer(text, {"A": "none", "B": question.answer}) == "B"
            assert format_reward(text, None) == 1.0  # type: ignore[arg-type]


def test_captions_describe_and_do_not_answer(worlds: list[World]) -> None:
    known, answers = (
        set(words()),
        {word for family in FAMILIES.values() for a in family for word in a.split()},
    )
    for world in worlds[:48]:
        text = caption(world, (0, -1))
        assert set(text.split()) <= known
        assert not set(text.split()) & answers
        for family, index in (("camera", 1), ("direction", 0)):
            question = ask(world, label(world), family, index)
            shown = [f"{letter}. {text}" for letter, text in zip("ABCDEF", FAMILIES[family], strict=False)]
            everything = " ".join([question.text, *shown, narrate(world, question)])
            assert set(everything.replace("<output_image>", "").split()) <= known


def test_captions_come_in_both_orders_for_every_pair_of_motions() -> None:
    settings, pairs = DemoSettings().render, len(FAMILIES["camera"]) * len(FAMILIES["direction"])
    for index in (0, 7, pairs - 1):
        world = demo_world(settings, 0, "train", index)
        parts = caption_text(index, world).split(" , ")
        other = caption_text(index + pairs, world).split(" , ")
        scans, spots, ground = parts[:2], parts[2:5], parts[5:]
        assert scans == [scan(world, frame) for frame in KEY_FRAMES]
        assert other == [*spots, *scans, *ground]


def test_what_captions_say_is_what_is_seen(worlds: list[World]) -> None:
    for world in worlds[:24]:
        x, y, _ = world.project(world.solids[0].centre)[-1]
        column, row, _ = (int(v) for v in spot(world, 0, -1).split())
        assert column == int(x // (world.size / 8))
        assert row == int(y // (world.size / 8))
        depths = world.project(np.stack([s.centre for s in world.solids], 1))[0, :, 2]
        assert world.solids[int(depths.argmin())].colour in scan(world, 0).split()
    flows = {label(w).camera: ground_flow(w).split() for w in worlds[:6]}
    assert int(flows["pan left"][1]) > 0 > int(flows["pan right"][1])
    assert int(flows["move left"][1]) > int(flows["move left"][4]) >= 0  # parallax: the near ground is faster
    assert int(flows["move forward"][2]) > 0 > int(flows["move back"][2])
