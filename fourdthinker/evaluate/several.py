"""What several samples of a question give together: a vote, and the best of k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb

from fourdthinker.evaluate import scoring
from fourdthinker.evaluate.results import AnsweredQuestion, EvalResult


def vote_score(question: AnsweredQuestion) -> float:
    """The score of the answer that most samples give.

    Args:
        question: with its samples.

    Returns:
        `AnsweredQuestion.score` of that answer, the mean over answers with equally many votes; of numbers
        that of their lower median. Samples without an answer do not vote; 0 where all are such.
    """
    said = [answer for answer in question.answers if answer is not None]
    if question.failed or not said:
        return 0.0
    if not question.options:
        return question.score(sorted(said, key=Fraction)[(len(said) - 1) // 2])
    votes = Counter(said)
    first = [answer for answer, number in votes.items() if number == max(votes.values())]
    return sum(map(question.score, first)) / len(first)


def best_of(marks: Sequence[float], k: int) -> float:
    """Expected best score of k samples drawn from those of a question, without bias (pass@k).

    Args:
        marks: score of each of the n samples.
        k: 1 to n.

    Returns:
        1 - C(n - c, k) / C(n, k) where c samples score 1 and the others 0.
    """
    ordered = sorted(marks)
    return sum(mark * comb(i, k - 1) for i, mark in enumerate(ordered)) / comb(len(ordered), k)


def several_samples(result: EvalResult) -> dict[str, dict[str, float]]:
    """The vote, and pass@k for k = 2, 4, 8, ... and n.

    Args:
        result: with n >= 2 samples a question.

    Returns:
        {"vote": ..., "pass_at_2": ...}, each {accuracy, low, high, n}, intervals clustered by video; {} for
        fewer samples.
    """
    if result.n < 2:
        return {}
    values = {"vote": [vote_score(question) for question in result.questions]}
    powers = [1 << bit for bit in range(1, result.n.bit_length()) if 1 << bit < result.n]
    for k in (*powers, result.n):
        values[f"pass_at_{k}"] = [best_of(row, k) for row in result.marks.tolist()]
    out = {}
    for name, scores in values.items():
        bounds = scoring.accuracy_interval(scores, result.clusters)
        out[name] = {
            "accuracy": bounds["mean"],
            "low": bounds["low"],
            "high": bounds["high"],
            "n": len(scores),
        }
    return out
