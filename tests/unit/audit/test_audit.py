"""Leaks that are known are found, at their size; without a leak nobody beats chance; pruning removes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")

from fourdthinker.audit import ChoiceQuestion, audit, prune, read_questions
from fourdthinker.audit.run import SolverLine, _lines
from fourdthinker.audit.solvers import SOLVERS, make_table
from fourdthinker.audit.texts import normal, shape
from fourdthinker.errors import ConfigError
from tests.shared import needs, shared
from tests.unit.audit.generators import boxed_items, dsr_items, fair_items, flipped_items


@pytest.fixture
def no_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what other solvers reach, which does not depend on them: they take nearly all of the time."""
    for name in ("classifier", "words"):
        monkeypatch.delitem(SOLVERS, name)


@pytest.mark.parametrize(("kind", "reached"), [("direction", 0.607), ("distance", 0.894)])
def test_noise_beside_a_smooth_path_is_detected(kind: str, reached: float) -> None:
    """What the simulation of DSR's generator found: a rule of two lines reaches this."""
    found = audit(dsr_items(kind, 800), folds=3)
    smoothest = found.line("smoothest")
    assert smoothest.beats_chance
    assert smoothest.accuracy == pytest.approx(reached, abs=0.06)
    assert found.line("classifier").accuracy > smoothest.accuracy - 0.03
    assert not found.line("letter").beats_chance


def test_options_of_other_tracks_tell_nothing() -> None:
    found = audit(fair_items(800), folds=3)
    assert [line.solver for line in found.leaks] == []


def test_options_made_from_the_answer_are_detected() -> None:
    found = audit(flipped_items(400), folds=3)
    assert found.line("classifier").beats_chance
    assert found.line("classifier").accuracy > 0.8  # most alike the others, or their opposite
    assert found.line("option set").chance == 0.25


@pytest.mark.parametrize("first", [True, False])
def test_numbers_of_the_question_that_tell_are_detected(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(SOLVERS) - {"classifier"}:
        monkeypatch.delitem(SOLVERS, name)
    line = audit(boxed_items(400, first=first), folds=3).line("classifier")
    assert line.beats_chance is first
    assert (line.accuracy > 0.5) is first


def test_letters_that_are_not_uniform_are_detected(no_classifiers: None) -> None:
    items = [
        replace(
            item,
            options=(
                item.options[item.answer],
                *item.options[: item.answer],
                *item.options[item.answer + 1 :],
            ),
            answer=0,
        )
        if index % 3 == 0
        else item
        for index, item in enumerate(fair_items(900))
    ]
    found = audit(items, folds=3)
    assert found.line("letter").beats_chance
    assert found.line("letter").accuracy == pytest.approx(1 / 3 + 2 / 3 / 4, abs=0.05)


def test_a_type_that_leaks_is_named() -> None:
    fair = fair_items(700)
    leak = [
        replace(item, index=item.index + 700, group=item.group + "b") for item in dsr_items("distance", 150)
    ]
    found = audit([*fair, *leak], folds=3)
    assert {line.type for line in found.leaks} <= {None, "distance"}
    assert found.line("smoothest", "distance").beats_chance
    assert not found.line("smoothest", "kind 0").beats_chance


def test_pruning_leaves_a_file_without_a_leak() -> None:
    items = [
        *fair_items(600),
        *(
            replace(i, index=i.index + 600, group=i.group + "b", type="kind 0")
            for i in dsr_items("distance", 60)
        ),
    ]
    assert audit(items, folds=3).leaks
    left, dropped = prune(items, folds=3)
    assert not left.leaks
    assert 0 < len(dropped) < 200
    assert sum(item.index >= 600 for item in dropped) > 0.5 * len(dropped)
    assert {i.index for i in left.items} | {i.index for i in dropped} == {i.index for i in items}


def test_pruning_what_leaks_everywhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of 300 items left, '\w+' still reaches .* write other options"):
        prune(dsr_items("distance", 300), folds=3, keep=0.9)


def test_the_worst_items_are_those_that_leak() -> None:
    items = [
        *fair_items(300),
        *(replace(i, index=i.index + 300, group=i.group + "b") for i in dsr_items("distance", 100)),
    ]
    worst = audit(items, folds=3).worst(50)
    assert sum(item.type == "distance" for item, _ in worst) > 40
    assert [bias for _, bias in worst] == sorted((bias for _, bias in worst), reverse=True)


def test_videos_are_not_parted(no_classifiers: None) -> None:
    """All questions of a video have the same options and answer: a solver that sees the others knows it."""
    rng = np.random.default_rng(0)
    items = []
    for video in range(60):
        texts = tuple(f"thing {k}" for k in rng.choice(50, 4, replace=False))
        answer = int(rng.integers(4))
        items += [
            ChoiceQuestion(f"{video}.{k}", f"v{video}", "", "?", texts, answer, 8 * video + k)
            for k in range(8)
        ]
    assert not audit(items, folds=3).line("option set").beats_chance
    parted = [replace(item, group=item.id) for item in items]
    assert audit(parted, folds=3).line("option set").accuracy > 0.9


def test_too_little_is_refused() -> None:
    items = [replace(item, group="v.mp4") for item in fair_items(20)]
    with pytest.raises(ConfigError, match=r"all 20 questions are about 'v\.mp4'"):
        audit(items)
    with pytest.raises(ConfigError, match="1 folds"):
        audit(fair_items(20), folds=1)


def test_a_guess_is_within_its_interval() -> None:
    line = SolverLine("letter", None, 100, 0.3, 0.21, 0.39, 0.25, 20, enough=True)
    assert not line.beats_chance
    assert replace(line, low=0.26).beats_chance


@pytest.mark.parametrize("videos", [5, 8, 15, 30])
def test_luck_in_few_videos_beats_no_chance(videos: int) -> None:
    """Nine guesses, each right or wrong on most questions of a video at once: one file in twenty may leak."""
    rng, runs = np.random.default_rng(videos), 60
    rows = np.repeat(np.arange(videos), rng.integers(2, 12, videos))
    table = make_table(
        [ChoiceQuestion(str(i), f"v{v}", "", "?", ("a", "b"), 0, i) for i, v in enumerate(rows)]
    )
    leaks = covered = 0
    for _ in range(runs):
        lucky = rng.beta(0.6, 0.6, (9, videos))[:, rows]
        hits = {str(solver): line for solver, line in enumerate((rng.random(lucky.shape) < lucky) * 1.0)}
        lines = _lines(table, hits)
        leaks += any(line.beats_chance for line in lines)
        covered += all(line.low <= 0.5 <= line.high for line in lines)
    assert leaks <= 0.05 * runs
    assert covered >= 0.95 * runs


def test_a_leak_in_few_videos_is_still_found() -> None:
    items = [ChoiceQuestion(str(i), f"v{i % 8}", "", "?", tuple("abcd"), 0, i) for i in range(80)]
    (line,) = _lines(make_table(items), {"letter": np.repeat([1.0, 0.0], [76, 4])})
    assert line.beats_chance


def questions_of_videos(
    rng: np.random.Generator, videos: int, *, same: float, equal: bool
) -> list[ChoiceQuestion]:
    """Two to five options; a share `same` of a video's questions has the right one at the same place."""
    sizes = np.full(videos, 12) if equal else rng.integers(1, 30, videos)
    items: list[ChoiceQuestion] = []
    for video, size in enumerate(sizes):
        place = rng.random()
        for number in range(size):
            count = int(rng.integers(2, 6))
            texts = tuple(f"{word} {rng.integers(4)}" for word in rng.permutation(list("lrudf"))[:count])
            answer = int(place * count) if rng.random() < same else int(rng.integers(count))
            items.append(
                ChoiceQuestion(
                    f"{video}.{number}", f"v{video}", f"t{number % 2}", "Where?", texts, answer, len(items)
                )
            )
    return items


def test_a_file_of_eight_videos_that_leaks_completely_is_found() -> None:
    """36 questions of 6 types about each video; the answer is always the first option."""
    rng = np.random.default_rng(0)
    items = [
        ChoiceQuestion(
            str(i),
            f"v{i // 36}",
            f"t{i % 6}",
            "Where?",
            tuple(f"{x} {rng.integers(9)}" for x in "lrud"),
            0,
            i,
        )
        for i in range(8 * 36)
    ]
    found = audit(items, folds=2)
    assert {line.type for line in found.leaks if line.solver == "letter"} == {
        None,
        *(f"t{i}" for i in range(6)),
    }
    assert found.line("letter").accuracy == 1
    assert found.doubts == ()


def test_one_video_with_most_of_the_questions_hides_no_leak(no_classifiers: None) -> None:
    items = [
        ChoiceQuestion(str(i), f"v{max(0, i - 180)}", "", "?", tuple(f"{x} {i % 7}" for x in "lrud"), 0, i)
        for i in range(200)
    ]
    assert [line.solver for line in audit(items).leaks if line.solver == "letter"] == ["letter"]


def test_too_few_videos_are_said_to_be(no_classifiers: None) -> None:
    items = [
        ChoiceQuestion(str(i), f"v{i % 4}", "", "?", tuple(f"{x} {i % 7}" for x in "lrud"), 0, i)
        for i in range(120)
    ]
    found = audit(items)
    assert found.line("letter").accuracy == 1
    assert found.leaks == ()
    assert found.doubts == ("all (120 questions): 4 videos are too few to tell",)


@pytest.mark.parametrize("equal", [True, False])
def test_luck_beats_no_chance_in_whole_audits(equal: bool, no_classifiers: None) -> None:
    leaks = 0
    for run, (videos, same) in enumerate([(5, 1.0), (8, 0.8), (15, 0.5), (30, 1.0)] * 2):
        rng = np.random.default_rng(run)
        leaks += bool(audit(questions_of_videos(rng, videos, same=same, equal=equal), folds=3).leaks)
    assert leaks == 0


@needs("benchmarks")
def test_the_prior_of_vlm4d_is_what_was_measured(no_classifiers: None) -> None:
    file = read_questions(shared("benchmarks") / "vlm4d_real.json")
    assert len(file.items) == 1371
    found = audit(file.items)
    assert found.groups == 600
    assert found.line("option text").accuracy == pytest.approx(0.429, abs=0.01)
    assert found.line("option text").beats_chance
    assert found.ambiguous == 1  # validation_633


# --- what a text shows ------------------------------------------------------------------------------------


def test_steps_and_reversals_are_counted() -> None:
    assert shape("left").steps == 1
    assert shape("pan left, then pan right, then truck up").steps == 3
    assert shape("pan left, then pan right, then truck up").reversals == 1
    assert shape("(1) become larger (2) keep nearly constant and then become smaller").steps == 2
    assert shape("(1) become larger (2) keep nearly constant and then become smaller").reversals == 1
    assert shape("roll clockwise; roll counter-clockwise").reversals == 1


def test_rough_is_what_changes_much() -> None:
    smooth, rough = (
        shape("(1) Left|Above (2) Left (3) Left|Front"),
        shape("(1) Left|Above (2) Right (3) Left|Front"),
    )
    assert smooth.roughness == pytest.approx(2 / 2 + 1)
    assert rough.roughness == pytest.approx((3 + 3) / 2 + 1)
    assert shape("keep nearly constant").roughness == 0


def test_numbers_are_read() -> None:
    assert shape("2.5 m").number == 2.5
    assert shape("-3").number == -3
    assert shape("from 1 to 2").number is None
    assert shape("left").number is None


def test_denials_are_one_text() -> None:
    assert normal("No cars there") == normal("there are no people.") == "<none>"
    assert normal("Turn  Left.") == "turn left"
    assert normal("north") == "north"
