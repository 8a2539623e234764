"""Statistics over questions, against values worked out by hand and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fourdthinker.evaluate import scoring


def test_accuracy_is_the_mean_over_questions_of_the_mean_over_samples() -> None:
    correct = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    assert scoring.accuracy_interval(correct)["mean"] == pytest.approx(0.5)
    np.testing.assert_allclose(scoring.question_means(correct), [0.5, 1.0, 0.0])


def test_wilson_interval_of_right_or_wrong_answers() -> None:
    # 8 of 10, se^2 = 0.16/9 with ddof=1: effective size 9 -> Wilson by hand
    values = [1.0] * 8 + [0.0] * 2
    z2 = 1.959963984540054**2
    centre = (0.8 + z2 / 18) / (1 + z2 / 9)
    half = math.sqrt(z2) / (1 + z2 / 9) * math.sqrt(0.16 / 9 + z2 / (4 * 81))
    got = scoring.accuracy_interval(values)
    assert got["low"] == pytest.approx(centre - half)
    assert got["high"] == pytest.approx(centre + half)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_keeps_a_width_at_the_ends(value: float) -> None:
    got = scoring.accuracy_interval([value] * 20)
    assert got["mean"] == value
    assert 0.0 <= got["low"] <= value <= got["high"] <= 1.0
    assert got["high"] - got["low"] == pytest.approx(0.1611, abs=1e-3)  # Wilson, 20 of 20


def test_more_samples_of_a_question_narrow_the_interval_but_never_count_as_questions() -> None:
    rng = np.random.default_rng(0)
    skill = rng.uniform(size=(400, 1))
    wide = scoring.accuracy_interval(rng.uniform(size=(400, 1)) < skill)
    narrow = scoring.accuracy_interval(rng.uniform(size=(400, 64)) < skill)
    widths = [x["high"] - x["low"] for x in (wide, narrow)]
    assert widths[1] < widths[0]
    assert widths[1] > 2 * 1.9 * float(skill.std()) / 20  # not below the spread between questions


def test_clusters_of_one_change_nothing_and_copies_add_nothing() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(size=50)
    alone = scoring.standard_error(values)
    assert scoring.standard_error(values, list(range(50))) == pytest.approx(alone)
    # every question asked three times about the same clip: no more is known than before
    copies = scoring.standard_error(np.repeat(values, 3), list(np.repeat(np.arange(50), 3)))
    assert copies == pytest.approx(alone)
    assert scoring.standard_error(np.repeat(values, 3)) < 0.6 * alone


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        clip = rng.uniform(size=60)  # what the three questions of a clip share
        correct = rng.uniform(size=(180, 4)) < np.repeat(clip, 3)[:, None]
        got = scoring.accuracy_interval(correct, list(np.repeat(np.arange(60), 3)))
        hits += got["low"] <= 0.5 <= got["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_paired_interval_removes_what_both_share() -> None:
    rng = np.random.default_rng(3)
    hard = rng.uniform(size=500)
    a, b = hard + 0.02 + 0.01 * rng.standard_normal(500), hard
    paired = scoring.paired_interval(a, b)
    assert paired["mean"] == pytest.approx(0.02, abs=2e-3)
    assert paired["low"] > 0.015
    assert paired["high"] < 0.025
    assert scoring.mean_interval(a)["high"] - scoring.mean_interval(a)["low"] > 0.04
    swapped = scoring.paired_interval(b, a)
    assert swapped["low"] == pytest.approx(-paired["high"])
    with pytest.raises(ValueError, match="cannot pair 3 questions with 2"):
        scoring.paired_interval([1, 0, 1], [1, 0])


def test_one_cluster_says_nothing_about_the_spread() -> None:
    assert math.isnan(scoring.standard_error([0.3]))
    got = scoring.mean_interval([0.3, 0.5], ["clip", "clip"])
    assert got["low"] == -math.inf
    assert got["high"] == math.inf
    bounds = scoring.accuracy_interval([1.0, 1.0, 0.0], ["clip"] * 3)
    assert bounds["low"] < 0.2
    assert bounds["high"] > 0.9


def test_entropy_of_answers() -> None:
    assert scoring.answer_entropy(["A"] * 4) == 0.0
    assert math.copysign(1, scoring.answer_entropy(["A"] * 4)) == 1.0
    assert scoring.answer_entropy(["A", "B", "C", None]) == pytest.approx(math.log(4))
    assert scoring.answer_entropy(["A", "A", "A", "B"]) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert math.isnan(scoring.answer_entropy([]))


def test_chance_and_majority() -> None:
    assert scoring.chance_level([2, 4, 0]) == pytest.approx((0.5 + 0.25) / 3)
    letters = {"A": "left", "B": "right"}
    flipped = {"A": "right", "B": "left"}
    # always "left" gets all three of type m, whatever its letter; always "A" gets two of three of type k
    answers = ["A", "B", "A", "A", "A", "B"]
    options = [letters, flipped, letters, {"A": "1", "B": "2"}, {"A": "3", "B": "4"}, {"A": "5", "B": "6"}]
    types = ["m", "m", "m", "k", "k", "k"]
    assert scoring.majority_correct(answers, options, types).tolist() == [True, True, True, True, True, False]
    # in one type together no constant does better than "A", four of six
    assert scoring.majority_correct(answers, options, [None] * 6).sum() == 4
    assert not scoring.majority_correct([None], [{}], [None]).any()


def test_empty_and_bad_input() -> None:
    assert math.isnan(scoring.accuracy_interval([])["mean"])
    assert math.isnan(scoring.mean_interval([])["low"])
    assert math.isnan(scoring.macro_average({}))
    assert scoring.macro_average({"a": {"accuracy": 1.0}, "b": {"accuracy": 0.0}}) == 0.5
    with pytest.raises(ValueError, match="shape"):
        scoring.question_means(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="one cluster per question"):
        scoring.standard_error([1.0, 0.0], ["a"])
