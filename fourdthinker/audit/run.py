"""The audit itself: solvers cross-validated by video, beside chance; the worst items; pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourdthinker.audit.features import Array
from fourdthinker.audit.question_files import ChoiceQuestion
from fourdthinker.audit.solvers import SOLVERS, Indices, Table, hit, make_table
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.scoring import LEVEL, accuracy_interval

FEWEST = 30  # questions that solvers are tried on: of a type with a line of its own, or of a benchmark


@dataclass(frozen=True)
class SolverLine:
    """One solver on one set of questions.

    Attributes:
        solver: its name.
        type: type of the questions; None: all of the file.
        questions: how many.
        accuracy: share that it gets right; ties between options count in part.
        low, high: bounds of the accuracy. Those of all lines of an audit hold together in 95 % of files.
        chance: accuracy of a uniform guess.
        videos: how many the questions are about.
        enough: whether a solver that is right on every question would beat chance with so many videos.
    """

    solver: str
    type: str | None
    questions: int
    accuracy: float
    low: float
    high: float
    chance: float
    videos: int
    enough: bool

    @property
    def beats_chance(self) -> bool:
        """Whether chance lies below the interval."""
        return self.low > self.chance


@dataclass(frozen=True)
class Audit:
    """What solvers without eyes reach.

    Attributes:
        lines: all solvers on all questions, then on each type of at least FEWEST questions.
        items: the questions.
        bias: float64 [items], probability of the right option less that of a guess, mean of the solvers that
            learn: how much a question gives away.
        folds: parts of the cross-validation.
        groups: videos.
        ambiguous: questions in which another option has the text of the right one.
    """

    lines: tuple[SolverLine, ...]
    items: tuple[ChoiceQuestion, ...]
    bias: Array
    folds: int
    groups: int
    ambiguous: int

    @property
    def leaks(self) -> tuple[SolverLine, ...]:
        """The lines whose solver beats chance."""
        return tuple(line for line in self.lines if line.beats_chance)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Which questions are about too few videos to find even what is given away completely, in words."""
        return tuple(
            f"{'all' if line.type is None else line.type} ({line.questions} questions): "
            f"{line.videos} videos are too few to tell"
            for line in self.lines
            if not line.enough and line.solver == self.lines[0].solver
        )

    def line(self, solver: str, kind: str | None = None) -> SolverLine:
        """The line of a solver on all questions, or on a type of them.

        Args:
            solver: its name.
            kind: the type; None: all questions.

        Returns:
            The line.
        """
        return next(line for line in self.lines if (line.solver, line.type) == (solver, kind))

    def worst(self, number: int) -> list[tuple[ChoiceQuestion, float]]:
        """The items that give most away, with their bias."""
        order = np.argsort(-self.bias, kind="stable")[:number]
        return [(self.items[i], float(self.bias[i])) for i in order]

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "questions": len(self.items),
            "videos": self.groups,
            "folds": self.folds,
            "ambiguous": self.ambiguous,
            "level": LEVEL,
            "doubts": self.doubts,
            "lines": [{**vars(line), "beats_chance": line.beats_chance} for line in self.lines],
            "bias": {item.id: round(float(b), 4) for item, b in zip(self.items, self.bias, strict=True)},
        }


def audit(items: Sequence[ChoiceQuestion], *, folds: int = 10, seed: int = 0) -> Audit:
    """Let every solver answer every question after learning from the questions of other videos.

    Args:
        items: the questions.
        folds: parts that the videos are dealt into; at most one for each video.
        seed: of the dealing.

    Returns:
        Accuracies with intervals, and the bias of each question.

    Raises:
        ConfigError: questions of fewer than two videos, or fewer than two folds.
        ImportError: scikit-learn is missing.
    """
    table = make_table(items)
    groups = int(table.groups.max()) + 1
    if groups < 2:
        raise ConfigError(
            f"all {len(items)} questions are about {items[0].group!r}; solvers are cross-validated by video, "
            "so give questions of at least two"
        )
    if folds < 2:
        raise ConfigError(f"{folds} folds; give at least 2")
    folds = min(folds, groups)
    fold_of = np.random.default_rng(seed).permutation(groups)[table.groups] % folds
    hits, bias = _solve(table, fold_of, folds)
    return Audit(
        lines=tuple(_lines(table, hits)),
        items=table.items,
        bias=bias,
        folds=folds,
        groups=groups,
        ambiguous=sum(sum(item.right) > 1 for item in table.items),
    )


def _solve(table: Table, fold_of: Indices, folds: int) -> tuple[dict[str, Array], Array]:
    """Of each solver, whether it is right on each question; and the bias of each question."""
    number = len(table.items)
    hits = {name: np.zeros(number) for name in SOLVERS}
    bias = np.zeros(number)
    learners = sum(learns for _, learns in SOLVERS.values())
    for fold in range(folds):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        for name, (solver, learns) in SOLVERS.items():
            for i, scores in zip(test, solver(table, train, test), strict=True):
                hits[name][i] = hit(table.items[i], scores)
                if learns:
                    right = np.asarray(table.items[i].right)
                    bias[i] += (scores[right].sum() / scores.sum() - right.mean()) / learners
    return hits, bias


def _lines(table: Table, hits: dict[str, Array]) -> list[SolverLine]:
    types = np.array([item.type for item in table.items])
    chance = np.array([np.mean(item.right) for item in table.items])
    sets: list[tuple[str | None, Indices]] = [(None, np.arange(len(types)))]
    found = sorted(set(types))
    if len(found) > 1:
        sets += [(str(kind), np.flatnonzero(types == kind)) for kind in found]
        sets = [(kind, chosen) for kind, chosen in sets if kind is None or len(chosen) >= FEWEST]
    level = 1 - (1 - LEVEL) / (len(sets) * len(hits))  # each line's, for all to hold together
    return [
        _line(name, kind, values[chosen], chance[chosen], table.groups[chosen], level)
        for kind, chosen in sets
        for name, values in hits.items()
    ]


def _line(
    name: str, kind: str | None, hits: Array, chance: Array, groups: Indices, level: float
) -> SolverLine:
    low, high = _bounds(hits, chance, groups, level)
    guess = float(chance.mean())
    return SolverLine(
        solver=name,
        type=kind,
        questions=len(hits),
        accuracy=float(hits.mean()),
        low=low,
        high=high,
        chance=guess,
        videos=len(set(groups.tolist())),
        enough=_bounds(np.ones_like(hits), chance, groups, level)[0] > guess,
    )


def _bounds(hits: Array, chance: Array, groups: Indices, level: float) -> tuple[float, float]:
    """Of the accuracy; half of the error that `level` leaves is that of Student's interval.

    The other half is that of an exact bound: of independent values in [0, 1] with expectations of mean p, the
    mean reaches a > p with probability exp(-n KL(a || p)) at most (Chernoff, Hoeffding). The values are the
    shares of each video that are right. How far the least p lies above the mean chance of a video, the
    accuracy lies above chance at least.
    """
    error = (1 - level) / 2
    student = accuracy_interval(hits, groups.tolist(), 1 - error)
    videos = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(videos)
    shares, guesses = (np.bincount(videos, values) / sizes for values in (hits, chance))
    sure = _least_mean(float(shares.mean()), len(sizes), error) - float(guesses.mean())
    low = min(float(chance.mean()) + sure, student["mean"])
    return max(low, student["low"]), student["high"]


def _least_mean(reached: float, number: int, error: float) -> float:
    """The least expectation of which the mean of `number` values reaches this without exceeding the error."""

    def likely(mean: float) -> bool:
        divergence = sum(
            share * math.log(share / other)
            for share, other in ((reached, mean), (1 - reached, 1 - mean))
            if share > 0
        )
        return number * divergence <= -math.log(error)

    low, high = 0.0, reached
    for _ in range(50 if reached > 0 else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if likely(middle) else (middle, high)
    return low


def prune(
    items: Sequence[ChoiceQuestion], *, folds: int = 10, seed: int = 0, keep: float = 0.5
) -> tuple[Audit, list[ChoiceQuestion]]:
    """Take the items that give most away out, until no solver beats chance.

    Each round audits what is left with other folds, and takes out half as many items as the best solver is
    right on beyond chance.

    Args:
        items: the questions.
        folds: as for `audit`.
        seed: as for `audit`; each round adds one.
        keep: share of the items that must be left.

    Returns:
        The audit of what is left, and the items taken out, in the order in which they were.

    Raises:
        ConfigError: solvers still beat chance when only that share would be left; or as `audit`.
    """
    left, rounds = list(items), 0
    dropped: list[ChoiceQuestion] = []
    while True:
        found = audit(left, folds=folds, seed=seed + rounds)
        if not found.leaks:
            return found, dropped
        excess = max((line.accuracy - line.chance) * line.questions for line in found.leaks)
        number = max(1, math.ceil(excess / 2))
        if len(left) - number < keep * len(items):
            best = max(found.leaks, key=lambda line: line.accuracy - line.chance)
            raise ConfigError(
                f"with {len(left)} of {len(items)} items left, {best.solver!r} still reaches "
                f"{best.accuracy:.1%} where chance is {best.chance:.1%}: the options give the answers away, "
                "so write other options (docs/audit.md)"
            )
        worst = [item for item, _ in found.worst(number)]
        dropped += worst
        gone = {item.index for item in worst}
        left = [item for item in left if item.index not in gone]
        rounds += 1
