"""Statistics over questions: accuracies with intervals, paired differences, entropies, baselines.

Everything here is deterministic (closed-form intervals, no resampling) and knows nothing of models. One
*question* is one record; *correct* is a matrix [Q, n] of what n samples of each question scored; a
*cluster* is what makes questions dependent (the clip they ask about): intervals are over questions, with
the standard error widened (or narrowed) by the cluster-robust formula when several questions share a clip,
and exactly the usual one when none do, and Student's t of one degree of freedom less than there are clusters.
Where clusters differ in size, their effective number takes the place of their number: (sum n)^2 / sum n^2,
so that ten videos, of which one has nearly all the questions, count as little more than one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fourdthinker.evaluate.numeric import mean_relative_accuracy

LEVEL = 0.95  # of intervals: how often they hold the truth

Array = npt.NDArray[np.float64]


def question_means(correct: npt.ArrayLike) -> Array:
    """Mean over the samples of each question.

    Args:
        correct: [Q, n] or [Q] of bool or float.

    Returns:
        float64 [Q].

    Raises:
        ValueError: another shape, or no samples.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim == 1:
        return values
    if values.ndim != 2 or (values.shape[0] and values.shape[1] == 0):
        raise ValueError(
            f"correct has shape {values.shape}; expected [questions, samples] with at least one sample"
        )
    return values.mean(axis=1)


def standard_error(values: npt.ArrayLike, clusters: Sequence[Any] | None = None) -> float:
    """Standard error of a mean.

    Without clusters sqrt(var(ddof=1) / Q). With G clusters that of the jackknife, sqrt((G-1)/G * sum_g
    (mean without g - mean)^2), which is the same number when every cluster has one member.

    Args:
        values: [Q].
        clusters: what each of the Q values belongs to; None: each to itself.

    Returns:
        The error; nan with fewer than two clusters: one clip says nothing about the spread between clips.

    Raises:
        ValueError: not one cluster for each value.
    """
    x = np.asarray(values, dtype=np.float64)
    rows, sizes = _cluster_rows(x, clusters)
    if sizes.size < 2:
        return math.nan
    moves = np.bincount(rows, x - x.mean()) / (x.size - sizes)
    return float(math.sqrt((1 - 1 / sizes.size) * float(np.square(moves).sum())))


def _cluster_rows(values: Array, clusters: Sequence[Any] | None) -> tuple[npt.NDArray[np.int64], Array]:
    """Of each value the number of its cluster, in the order in which they come; the size of each cluster."""
    if clusters is None:
        return np.arange(values.size), np.ones(values.size)
    if len(clusters) != values.size:
        raise ValueError(f"{len(clusters)} clusters for {values.size} values; give one cluster per question")
    index: dict[Any, int] = {}
    rows = np.array([index.setdefault(c, len(index)) for c in clusters], dtype=np.int64)
    return rows, np.bincount(rows).astype(np.float64)


def _effective(sizes: Array) -> float:
    """How many clusters of one size would be as good: (sum n)^2 / sum n^2."""
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def student_quantile(freedom: float, level: float = LEVEL) -> float:
    """What an interval multiplies an estimated standard error by: a quantile of Student's t.

    Args:
        freedom: degrees of freedom: (effective) clusters less one.
        level: how often the interval holds the truth, of both sides; above 0 and below 1.

    Returns:
        The (1 + level) / 2 quantile; between whole numbers on the line that joins their quantiles, which is a
        little larger; infinity below 1.
    """
    if freedom < 1:
        return math.inf
    whole = math.floor(freedom)
    below = _quantile(whole, level)
    return below + (_quantile(whole + 1, level) - below) * (freedom - whole) if freedom > whole else below


@lru_cache(maxsize=4096)
def _quantile(freedom: int, level: float) -> float:
    """By halving the angle atan(t / sqrt(freedom)), of which the probability is a finite series."""
    steps = np.arange(1 + freedom % 2, freedom - 1, 2)
    ratios = steps / (steps + 1)

    def within(angle: float) -> float:
        series = 1 + float(np.cumprod(ratios * math.cos(angle) ** 2).sum())
        if freedom % 2 == 0:
            return math.sin(angle) * series
        more = math.sin(angle) * math.cos(angle) * series if freedom > 1 else 0.0
        return 2 / math.pi * (angle + more)

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def accuracy_interval(
    correct: npt.ArrayLike, clusters: Sequence[Any] | None = None, level: float = LEVEL
) -> dict[str, float]:
    """Accuracy with its interval over questions, of 95 % if nothing else is asked for.

    Wilson's score interval, so that it stays within [0, 1] and keeps a width at 0 % and 100 %, where the
    usual one has none; with Student's t of G-1 degrees of freedom, G the effective number of clusters; at the
    size of a sample of independent questions that would be as sure, p(1-p)/se^2. That size is hardly known
    where few clusters hold a mistake (or a right answer): that of questions which are all alike within a
    cluster, G, has the weight of one of the k that do: 1/size = (k / (p(1-p)/se^2) + 1/G) / (k + 1). Clusters
    of one size are counted for k; of several, k is G times the share of the questions that they hold.

    Args:
        correct: [Q, n] or [Q], within 0 to 1.
        clusters: as for `standard_error`.
        level: how often the interval holds the truth.

    Returns:
        {"mean", "low", "high"}; all nan when Q is 0, bounds 0 and 1 where clusters are effectively fewer than
        two.
    """
    means = question_means(correct)
    if means.size == 0:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    p = float(means.mean())
    rows, sizes = _cluster_rows(means, clusters)
    groups = _effective(sizes)
    if groups < 2:
        return {"mean": p, "low": 0.0, "high": 1.0}
    error, spread = standard_error(means, clusters), p * (1.0 - p)
    held = min(float(sizes[np.unique(rows[odd])].sum()) for odd in (means > 0.0, means < 1.0))
    kinds = groups * held / means.size
    alone = error**2 / spread if spread > 0 else 1 / groups  # se^2/(p(1-p)), which may be 0
    size = (kinds + 1) / (kinds * alone + 1 / groups)
    t = student_quantile(groups - 1, level)
    centre = (p + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * math.sqrt(spread / size + t**2 / (4 * size**2))
    # the bounds equal p at the edges up to rounding; keep low <= mean <= high exactly
    return {"mean": p, "low": min(p, max(0.0, centre - half)), "high": max(p, min(1.0, centre + half))}


def mean_interval(values: npt.ArrayLike, clusters: Sequence[Any] | None = None) -> dict[str, float]:
    """Mean of any quantity with its 95 % interval: Student's t, one degree less than effective clusters.

    Args:
        values: [Q].
        clusters: as for `standard_error`.

    Returns:
        {"mean", "low", "high"}; the bounds are infinite where clusters are effectively fewer than two, all
        nan when Q is 0.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    mean = float(x.mean())
    _, sizes = _cluster_rows(x, clusters)
    t = student_quantile(_effective(sizes) - 1)
    half = t * standard_error(x, clusters) if math.isfinite(t) else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them.

    Args:
        numbers: such as `mean_interval` returns.

    Returns:
        The same, with None for infinity and nan.
    """
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def paired_interval(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Any] | None = None
) -> dict[str, float]:
    """Mean of a - b over the same questions in the same order, with a 95 % interval.

    What a gains on b and what it loses each have the interval of an accuracy (`accuracy_interval`), so that
    few flips, or none, leave a width: no flip in G clusters bounds both to about 4 / G. The distances
    of their bounds are added as squares, less what the correlation of both between clusters takes (Newcombe's
    method for paired proportions).

    Args:
        a: [Q, n] or [Q], within 0 to 1.
        b: [Q, n] or [Q], within 0 to 1.
        clusters: as for `standard_error`.

    Returns:
        {"mean", "low", "high"}; the bounds are infinite with fewer than two clusters, all nan when Q is 0.

    Raises:
        ValueError: other numbers of questions.
    """
    left, right = question_means(a), question_means(b)
    if left.shape != right.shape:
        raise ValueError(
            f"cannot pair {left.size} questions with {right.size}; score both models on the same questions"
        )
    difference = left - right
    rows, sizes = _cluster_rows(difference, clusters)
    if sizes.size < 2:
        return mean_interval(difference, clusters)
    gains, losses = np.maximum(difference, 0.0), np.maximum(-difference, 0.0)
    gain, loss = accuracy_interval(gains, clusters), accuracy_interval(losses, clusters)
    shared = _correlation(rows, gains, losses)
    mean = float(difference.mean())

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * shared * one * other + other**2))

    low = mean - reach(gain["mean"] - gain["low"], loss["high"] - loss["mean"])
    high = mean + reach(gain["high"] - gain["mean"], loss["mean"] - loss["low"])
    return {"mean": mean, "low": max(-1.0, low), "high": min(1.0, high)}


def _correlation(rows: npt.NDArray[np.int64], left: Array, right: Array) -> float:
    """Of the totals of clusters; 0 where one of them does not vary."""
    a = np.bincount(rows, left - left.mean()).astype(np.float64)
    b = np.bincount(rows, right - right.mean()).astype(np.float64)
    scale = math.sqrt(float(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def answer_entropy(answers: Sequence[Hashable]) -> float:
    """Entropy of the distribution of the parsed answers of one question.

    Args:
        answers: of its samples; None, where nothing could be parsed, is a class too.

    Returns:
        The entropy in nats; nan without answers.
    """
    if not answers:
        return math.nan
    shares = np.array(list(Counter(answers).values()), dtype=np.float64) / len(answers)
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no minus zero


def macro_average(by_type: Mapping[str, Mapping[str, float]], key: str = "accuracy") -> float:
    """Unweighted mean over types of questions.

    Args:
        by_type: type -> its numbers.
        key: which of the numbers.

    Returns:
        The mean; nan without types.
    """
    return float(np.mean([entry[key] for entry in by_type.values()])) if by_type else math.nan


def chance_level(option_counts: Sequence[int]) -> float:
    """Accuracy of a uniform guess.

    Args:
        option_counts: how many options each question has; 0: nothing can be guessed.

    Returns:
        The mean of 1/options; nan without questions.
    """
    if not option_counts:
        return math.nan
    return float(np.mean([1.0 / n if n else 0.0 for n in option_counts]))


def adjusted_accuracy(accuracy: float, chance: float) -> float:
    """Chance-adjusted accuracy: 0 at chance, 1 at all right, negative below chance.

    Args:
        accuracy: of the model.
        chance: of a uniform guess on the same questions.

    Returns:
        (accuracy - chance) / (1 - chance), which over questions of n options each is (hits - sum 1/n) /
        (N - sum 1/n); nan where a guess is always right.
    """
    return (accuracy - chance) / (1.0 - chance) if chance < 1.0 else math.nan


def best_constant(targets: Sequence[str]) -> Array:
    """Mean relative accuracy that the best constant number reaches, chosen on these very targets.

    Args:
        targets: the right numbers.

    Returns:
        float64 [len(targets)], of each question. The constant is one of at most 33 quantiles of the targets.
    """
    ordered = sorted(targets, key=float)
    picks = sorted({round(k * (len(ordered) - 1) / 32) for k in range(33)}) if ordered else []
    tables = {
        ordered[pick]: np.array([mean_relative_accuracy(ordered[pick], t) for t in targets]) for pick in picks
    }
    return max(tables.values(), key=lambda marks: float(marks.sum()), default=np.zeros(0))


def majority_correct(
    answers: Sequence[str | None], options: Sequence[Mapping[str, str]], types: Sequence[str | None]
) -> Array:
    """Which questions the best constant answer of each type gets right.

    The constant may be a letter ("always B") or an option's text ("always left"); of both the better is taken
    for each type. Where there are no options it is a number, scored by its mean relative accuracy. It is
    chosen on these very questions, so it is the strictest baseline that sees no pixel.

    Args:
        answers: the right letter, or number, of each question.
        options: letter -> text of each question; {} for a number.
        types: the type of each question.

    Returns:
        float64 [Q]: 1 or 0, or the mean relative accuracy.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(answers) == len(options) == len(types):
        raise ValueError(
            f"{len(answers)} answers, {len(options)} option sets, {len(types)} types; lengths must agree"
        )
    members: dict[str | None, list[int]] = defaultdict(list)
    for i, kind in enumerate(types):
        members[kind].append(i)
    correct = np.zeros(len(answers))
    for all_rows in members.values():
        rows = [i for i in all_rows if options[i]]
        numeric = [i for i in all_rows if not options[i] and answers[i] is not None]
        correct[numeric] = best_constant([str(answers[i]) for i in numeric])
        votes: Counter[tuple[str, str]] = Counter()
        for i in rows:
            letter = answers[i]
            if letter is None:
                continue
            votes[("letter", letter)] += 1
            if letter in options[i]:
                votes[("text", options[i][letter])] += 1
        if not votes:
            continue
        # ties are broken by name, not by order of arrival
        kind, constant = min(votes, key=lambda vote: (-votes[vote], vote))
        for i in rows:
            letter = answers[i]
            if letter is not None:
                correct[i] = (letter if kind == "letter" else options[i].get(letter)) == constant
    return correct
