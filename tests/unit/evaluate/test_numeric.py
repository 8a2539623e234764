"""Answers that are numbers: what is read, and mean relative accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fourdthinker.cli.evaluate import _grouped, _lines
from fourdthinker.evaluate import AnsweredQuestion, EvalResult, compare, scoring, without_duplicates
from fourdthinker.evaluate.numeric import mean_relative_accuracy, parse_number
from fourdthinker.evaluate.prompt_batches import make_question
from fourdthinker.records import Record


@pytest.mark.parametrize(
    ("error", "score"),
    [("0", 1.0), ("5", 1.0), ("10", 0.9), ("25", 0.6), ("50", 0.1), ("60", 0.0), ("50.000001", 0.0)],
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_mean_relative_accuracy_is_exact(error, score, sign):
    whole, _, part = error.partition(".")
    for answer in (f"{100 + int(whole)}.{part or 0}", str(100 - float(error))):
        assert mean_relative_accuracy(sign + answer, f"{sign}100") == score
        # the same error of a small number, whose decimals no binary fraction has
        assert mean_relative_accuracy(f"{sign}{answer}e-3", f"{sign}.1") == score


def test_a_target_of_zero_takes_the_absolute_error():
    scores = [mean_relative_accuracy(a, "0") for a in ("0", "0.05", "-0.1", "0.5", "0.51", "3")]
    assert scores == [1.0, 1.0, 0.9, 0.1, 0.0, 0.0]
    assert mean_relative_accuracy(None, "0") == 0.0


# What changes the number before it, or leaves it open, is no unit.
WORDS = (
    "k", "hundred", "thousand", "million", "millions", "billion", "bn", "mn", "lakh", "dozen", "score",
    "pairs", "half", "or", "to", "and", "plus", "minus", "times", "x", "of", "more",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", "3"), (" -2.5 m ", "-2.5"), ("1,200", "1200"), ("1e3", "1e3"), (".5", ".5"), ("3.", "3"),
        ("2.5 meters.", "2.5"), ("300 cm", "300"), ("3m", "3"), ("about 3", None), ("3 or 4", None),
        ("three", None), ("", None),
        ("e5", None), ("3 4", None), ("1,20", None), ("٣", None), ("+", None), ("9" * 400, None),
        ("1e999", None), ("<answer>4", "4"),
        ("1.5 square meters", "1.5"), ("4 m²", "4"), ("4 sq ft", "4"), ("2 m/s", "2"), ("3 km/h.", "3"),
        ("9.8 m/s^2", "9.8"), ("2 meters per second", "2"), ("45°", "45"), ("45 degrees", "45"), ("3%", "3"),
        ("12 s", "12"), ("5 in.", "5"), ("6 Frames", "6"), ("1e3 m", "1e3"),
        *((f"2 {word}", None) for word in WORDS), ("2k", None), ("1.5K", None), ("2 m or", None),
    ],
)  # fmt: skip
def test_the_documented_form_is_read_and_nothing_else(text, number):
    assert parse_number(f"It is 7. <answer>1</answer> <answer>{text}</answer> or 8") == number
    assert parse_number(text) is None  # never free text


def result(*answers: str | None) -> EvalResult:
    numeric = AnsweredQuestion("n", "count", "a", {}, "100", answers=answers, greedy=answers[0])
    letter = AnsweredQuestion(
        "l", "which", "b", {"A": "x", "B": "y"}, "A", answers=("A",) * len(answers), greedy="B"
    )
    failed = AnsweredQuestion("f", "count", "c", {}, "0", failed="the file is missing")
    return EvalResult("m", (numeric, letter, failed), len(answers), True)


def test_numbers_and_letters_are_scored_together():
    summary = result("110", None).summary()
    assert summary["accuracy"] == pytest.approx((0.45 + 1 + 0) / 3)
    assert summary["greedy"] == pytest.approx((0.9 + 0 + 0) / 3)
    assert summary["by_type"]["count"]["accuracy"] == pytest.approx(0.225)
    assert (summary["failed"], summary["n"], summary["answered"]["n"]) == (1, 3, 2)
    assert summary["answered"]["accuracy"] == pytest.approx(1.45 / 2)  # both denominators are there


def test_a_number_is_one_answer_however_it_is_written():
    own, other = (AnsweredQuestion("a", "", "v", {}, "3", (said, "3", "3.00"), said) for said in ("3", "3.0"))
    first, second = (EvalResult("m", (question,), 3, True) for question in (own, other))
    assert compare(first, second).changed == 0
    assert second.summary()["entropy"] == 0
    asked = Record("rl", "a", "How far?", {}, "1,200 m", video="v")
    again, odd = replace(asked, id="b", answer="1200.0"), replace(asked, id="c", answer="1201")
    assert without_duplicates([asked, again])[1] == {"b": "the same question as a"}
    assert without_duplicates([asked, odd])[0] == []


def test_adjusted_accuracy():
    # (hits - sum 1/n) / (N - sum 1/n) by hand: one question of two options, two numbers
    assert result("110", None).summary()["adjusted"] == pytest.approx((1.45 - 0.5) / (3 - 0.5))
    assert scoring.adjusted_accuracy(0.25, 0.25) == 0.0
    assert scoring.adjusted_accuracy(1.0, 0.25) == 1.0


def test_tasks_and_twins():
    numbers = result("100").by_task({"count": "t", "which": "t"})
    assert numbers["tasks"]["t"]["accuracy"] == pytest.approx(2 / 3)  # over the questions
    assert numbers["task_mean"] == pytest.approx((0.5 + 1) / 2)  # over the types
    apart = result("100").by_task({"count": "numbers"})
    assert {k: v["n"] for k, v in apart["tasks"].items()} == {"numbers": 2, "which": 1}
    assert result("100", "90").consistency({"n": "1", "l": "1"})["accuracy"] == 0.5
    assert result("100").consistency({"n": "1", "l": "2", "f": "2"})["accuracy"] == 0.5


def test_tasks_and_twins_have_both_denominators():
    """What failed counts as wrong, and beside it are the figures of what could be asked."""
    lost, twins = result("100"), {"n": "1", "l": "1", "f": "2"}  # f failed
    summary = lost.summary()
    found: dict[str, Any] = {"model": summary, "answered": summary["answered"], "left_out": {}}
    found |= _grouped(lost, {"count": "t", "which": "t"}, twins)
    found["answered"] |= _grouped(lost.answered, {"count": "t", "which": "t"}, twins)
    assert [question.id for question in lost.answered.questions] == ["n", "l"]
    assert found["tasks"]["t"]["n"] == found["answered"]["tasks"]["t"]["n"] + 1 == 3
    assert found["task_mean"] < found["answered"]["task_mean"]
    assert (found["consistency"]["n"], found["answered"]["consistency"]["n"]) == (2, 1)
    lines = _lines(found)
    heads = ["t", "mean of the tasks", "right on all twins of a question"]
    heads += [f"answered only: {head}" for head in heads]
    assert all(line.startswith(f"{head}: ") for line, head in zip(lines, heads, strict=True))
    assert replace(lost, questions=()).by_task({"count": "t"})["task_mean"] is None


def test_only_full_sets_of_twins_count():
    twins = {"n": "1", "l": "1", "f": "2", "left out": "2"}
    assert result("100").consistency(twins) == result("100").consistency({"n": "1", "l": "1"})
    none = result("100").consistency({"f": "2", "left out": "2"})
    assert none == {"accuracy": None, "low": None, "high": None, "n": 0}


def test_the_best_constant_number():
    marks = scoring.majority_correct(["1", "10", "10", "11"], [{}] * 4, [""] * 4)
    assert marks.tolist() == [0.0, 1.0, 1.0, mean_relative_accuracy("10", "11")]


@pytest.mark.parametrize("answer", ["1,200", "1200 m", "1200 "])
def test_a_right_number_is_kept_as_it_is_compared(answer):
    question = make_question(Record("rl", "q", "How far?", answer=answer, video="a.mp4"), answers=("1200",))
    assert AnsweredQuestion.from_dict(question.to_dict()).answer == "1200"
    assert mean_relative_accuracy("1200", question.answer) == 1.0
