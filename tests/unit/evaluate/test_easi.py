"""Letters read as EASI does, votes, and the best of k samples."""

from __future__ import annotations

from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from fourdthinker.evaluate import AnsweredQuestion, EvalResult, several_samples
from fourdthinker.evaluate.easi import easi_letter
from fourdthinker.evaluate.several import best_of, vote_score

# Worked out by hand from the rules of VLMEvalKit's `can_match_option`.
REPLIES = {
    "<answer>b. left</answer>": "B",
    "<answer>A</answer> no, <answer>C</answer>": "A",  # the first block, where ours takes the last
    "<answer>H</answer>": "H",
    "<answer>It is (C)</answer>": "I",  # what begins the block counts, whatever follows
    "<answer>so it is (C)</answer>": "C",
    "<answer>left</answer>": None,
    "so B</think> done": "B",
    "<think>A or B</think>\nD": "B",  # a letter right before </think> comes first
    "<think>A or B.</think>\nD": "D",
    "<think>A or B": None,
    "**C**": "C",
    "D) right of it": "D",
    "I choose B.": "B",
    "B\nOption C: left": "B",
    "A or B": None,
    "the answer is a dog": "A",
    "The answer is C because A is wrong": "C",
    "A cube": "A",
    "answer: B": "B",
    "最终答案：D": "D",
    "\u200bB\u200b": "B",
    "no letter here": None,
    "": None,
    "x" * 900 + "\n(E)": "E",
}


@pytest.mark.parametrize(("reply", "letter"), REPLIES.items())
def test_letters_of_easi(reply, letter):
    assert easi_letter(reply) == letter


def question(*answers: str | None, texts: tuple[str, ...] = (), options: bool = True) -> AnsweredQuestion:
    shown = {"A": "x", "B": "y"} if options else {}
    return AnsweredQuestion("q", "", "c", shown, "A" if options else "10", answers=answers, texts=texts)


def test_what_the_form_costs():
    first = question(None, "A", texts=("The answer is A", "<answer>A</answer>"))
    gone = AnsweredQuestion("g", "", "d", {"A": "x", "B": "y"}, "A", failed="missing")
    found = EvalResult("m", (first, gone), 2, False).easi()
    assert found["easi"]["accuracy"] == pytest.approx(0.5)
    assert found["format_share"]["mean"] == pytest.approx(0.25)


def test_votes():
    assert vote_score(question("A", "A", "B")) == 1.0
    assert vote_score(question("A", "B", None)) == 0.5  # as many for each
    assert vote_score(question(None, None)) == 0.0
    assert vote_score(question("1000", "9", "10", options=False)) == 1.0  # numbers: the median, as numbers


def test_the_best_of_k_is_the_mean_over_all_draws():
    rng = np.random.default_rng(0)
    for marks in (rng.integers(0, 2, 6).tolist(), rng.integers(0, 11, 7).tolist()):
        for k in range(1, len(marks) + 1):
            assert best_of(marks, k) == pytest.approx(mean(max(draw) for draw in combinations(marks, k)))
    found = several_samples(EvalResult("m", (question("A", "B", "B", "B", "B"),), 5, False))
    assert list(found) == ["vote", "pass_at_2", "pass_at_4", "pass_at_5"]
    assert found["pass_at_2"]["accuracy"] == pytest.approx(0.4)
    assert several_samples(EvalResult("m", (question("A"),), 1, False)) == {}
