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
    # 8 of 10, se^2 = 0.16/9 with ddof=1: effective size 9, and 10 with the weight of one of the two mistakes
    values, size = [1.0] * 8 + [0.0] * 2, 3 / (2 / 9 + 1 / 10)
    t2 = 2.2621572**2
    centre = (0.8 + t2 / (2 * size)) / (1 + t2 / size)
    half = math.sqrt(t2) / (1 + t2 / size) * math.sqrt(0.16 / size + t2 / (4 * size**2))
    got = scoring.accuracy_interval(values)
    assert got["low"] == pytest.approx(centre - half)
    assert got["high"] == pytest.approx(centre + half)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_keeps_a_width_at_the_ends(value: float) -> None:
    got = scoring.accuracy_interval([value] * 20)
    assert got["mean"] == value
    assert 0.0 <= got["low"] <= value <= got["high"] <= 1.0
    assert got["high"] - got["low"] == pytest.approx(0.17968, abs=1e-5)  # t^2 / (20 + t^2)


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


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (3, 3.1824), (10, 2.2281), (19, 2.0930), (100, 1.9840), (5000, 1.9604)],
)
def test_quantiles_are_students(freedom: int, value: float) -> None:
    assert scoring.student_quantile(freedom) == pytest.approx(value, abs=5e-5)
    assert scoring.student_quantile(0) == math.inf


@pytest.mark.parametrize(
    ("freedom", "level", "value"),
    [(1, 0.99, 63.6567), (2, 0.99, 9.9248), (4, 0.999, 8.6103), (9, 0.99, 3.2498), (30, 0.999, 3.6460)],
)
def test_quantiles_of_other_levels_are_students(freedom: int, level: float, value: float) -> None:
    assert scoring.student_quantile(freedom, level) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("clips", [5, 10, 30])
def test_intervals_of_a_higher_level_hold_as_often_as_they_say(clips: int) -> None:
    rng, runs, level = np.random.default_rng(8), 400, 0.995
    names = np.repeat(np.arange(clips), rng.integers(1, 9, clips))
    hits = 0
    for chance in (shares(rng, (0.25, 0.75), 0.4, clips)[names, 0] for _ in range(runs)):
        got = scoring.accuracy_interval(rng.random(names.size) < chance, names.tolist(), level)
        hits += got["low"] <= 0.25 <= got["high"]
    assert hits / runs >= 0.99


def shares(rng: np.random.Generator, means: tuple[float, ...], alike: float, clips: int) -> np.ndarray:
    """[clips, outcomes]: how likely each is on each clip; `alike`: correlation of questions about one."""
    if alike == 0:
        return np.tile(means, (clips, 1))
    return rng.dirichlet(np.maximum(np.array(means) * (1 - alike) / alike, 1e-9), clips)


@pytest.mark.parametrize("clips", [3, 5, 8, 20])
@pytest.mark.parametrize("alike", [0.0, 0.3, 0.8])
def test_intervals_of_few_clips_cover_the_truth(clips: int, alike: float) -> None:
    """Accuracies near 0 % and 100 %, and differences of rare flips, of which a sample often holds none."""
    rng, each, runs = np.random.default_rng(4), 5, 300
    names = np.repeat(np.arange(clips), each).tolist()
    for right in (0.1, 0.5):
        hits = 0
        for chance in (shares(rng, (right, 1 - right), alike, clips) for _ in range(runs)):
            got = scoring.accuracy_interval((rng.random((clips, each)) < chance[:, :1]).ravel(), names)
            hits += got["low"] <= right <= got["high"]
        assert hits / runs >= 0.93
    for gain, loss in ((0.03, 0.0), (0.05, 0.05), (0.3, 0.1)):
        hits = 0
        for chance in (shares(rng, (gain, loss, 1 - gain - loss), alike, clips) for _ in range(runs)):
            draw = rng.random((clips, each))
            gained, either = draw < chance[:, :1], draw < chance[:, :2].sum(axis=1, keepdims=True)
            got = scoring.paired_interval(gained.ravel(), (either & ~gained).ravel(), names)
            hits += got["low"] <= gain - loss <= got["high"]
        assert hits / runs >= 0.93


@pytest.mark.parametrize(
    "sizes",
    [[50] + [1] * 9, [100] + [2] * 19, [10] * 3 + [1] * 10, [40] + [1] * 100, [5, 4, 3]],
    ids=["one has most", "one has nearly all", "three have most", "one of many", "three"],
)
@pytest.mark.parametrize("alike", [0.3, 0.8, 1.0])
def test_intervals_of_clips_with_unequal_numbers_of_questions_cover_the_truth(
    sizes: list[int], alike: float
) -> None:
    rng, runs = np.random.default_rng(6), 200
    names = np.repeat(np.arange(len(sizes)), sizes)
    hits = dict.fromkeys(("accuracy", "difference", "mean"), 0)
    for _ in range(runs):
        if alike < 1:
            chance = shares(rng, (0.3, 0.2, 0.5), alike, len(sizes))[names]
        else:
            chance = np.eye(3)[rng.choice(3, len(sizes), p=(0.3, 0.2, 0.5))][names]
        draw = rng.random(names.size)
        first, second = draw < chance[:, 0], draw < chance[:, :2].sum(axis=1)
        found = scoring.accuracy_interval(second, names.tolist())
        hits["accuracy"] += found["low"] <= 0.5 <= found["high"]
        found = scoring.paired_interval(first, second & ~first, names.tolist())
        hits["difference"] += found["low"] <= 0.1 <= found["high"]
        shared = rng.standard_normal(len(sizes))[names] * math.sqrt(alike)
        values = shared + rng.standard_normal(names.size) * math.sqrt(1 - alike)
        found = scoring.mean_interval(values, names.tolist())
        hits["mean"] += found["low"] <= 0 <= found["high"]
    assert {name: count / runs for name, count in hits.items() if count / runs < 0.93} == {}


def test_clips_of_one_size_count_as_many_as_they_are() -> None:
    x = [0.0, 1.0, 1.0, 1.0, 0.0, 0.5]
    half = scoring.student_quantile(2) * scoring.standard_error(x, list("aabbcc"))
    assert scoring.mean_interval(x, list("aabbcc"))["high"] == pytest.approx(np.mean(x) + half)
    assert scoring.student_quantile(1.5) == pytest.approx((12.7062 + 4.3027) / 2, abs=1e-4)
    # of two clips, one with nine of ten questions: (9 + 1)^2 / (9^2 + 1^2) = 1.2
    bounds = scoring.accuracy_interval([1.0] * 9 + [0.0], ["a"] * 9 + ["b"])
    assert (bounds["low"], bounds["high"]) == (0.0, 1.0)


def test_without_flips_the_interval_has_a_width_that_clips_bound() -> None:
    """Of 20 clips about 4 / 20, whether each is asked about once or five times; one flip widens it."""
    same = [1.0, 0.0] * 50
    names = np.repeat(np.arange(20), 5).tolist()
    none = scoring.paired_interval(same, same, names)
    assert none["high"] == -none["low"] == pytest.approx(0.17968, abs=1e-5)
    one = scoring.paired_interval([1.0, 1.0, *same[2:]], same, names)
    assert one["mean"] == 0.01
    assert one["low"] < 0 < one["high"]
    for width in (none["high"] - none["low"], one["high"] - one["low"]):
        assert 0.1 < width < 0.4


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


def test_clips_that_are_all_alike_have_no_wider_interval_than_clips_that_differ_a_little() -> None:
    """Their error is 0, or what rounding leaves of it: of thirds 1e-17, and of quarters 0."""
    one, names = [1.0, 0.0, 0.0, 0.0], np.repeat(np.arange(10), 4).tolist()
    alike = scoring.accuracy_interval(one * 10, names)
    assert scoring.standard_error(one * 10, names) == 0
    differ = scoring.accuracy_interval([*one * 9, 1.0, 0.5, 0.0, 0.0], names)
    assert alike["high"] - alike["low"] < differ["high"] - differ["low"] < 0.25
    three = scoring.accuracy_interval([1.0, 0.0, 0.0] * 10, np.repeat(np.arange(10), 3).tolist())
    assert three["high"] - three["low"] == pytest.approx(alike["high"] - alike["low"], rel=0.1)


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
