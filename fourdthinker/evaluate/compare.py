"""Two runs on the same questions: how much better one is, and which answers changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import scoring
from fourdthinker.evaluate.numeric import as_compared
from fourdthinker.evaluate.results import AnsweredQuestion, EvalResult, paired_difference
from fourdthinker.files import parse_json, read_regular, whole_lines


@dataclass(frozen=True)
class Flip:
    """A question that one of two runs answers rightly at temperature 0 and the other does not.

    Attributes:
        id, type: of the question.
        right: the right answer.
        a, b: the answers of the runs; None: nothing could be read.
        gained: whether the second run is the one that is right.
    """

    id: str
    type: str
    right: str
    a: str | None
    b: str | None
    gained: bool


@dataclass(frozen=True)
class Comparison:
    """The second run less the first.

    Attributes:
        a, b: names of the runs.
        questions: how many are paired.
        greedy: difference at temperature 0, {"mean", "low", "high"}, interval clustered by video; None where
            one of the runs has no such answers.
        sampled: the same of sampled answers.
        by_type: type -> the greedy difference, else the sampled one.
        flips: questions that became right or wrong at temperature 0, in the order of the first run.
        p: exact two-sided McNemar test of the flips; it takes questions for independent.
        changed: share of the questions whose answer at temperature 0 is another one.
        failed: questions of each run that could not be asked, such as those of a missing video; they count as
            wrong.
    """

    a: str
    b: str
    questions: int
    greedy: dict[str, float] | None
    sampled: dict[str, float] | None
    by_type: dict[str, dict[str, float]]
    flips: tuple[Flip, ...]
    p: float | None
    changed: float | None
    failed: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: bounds are None where all questions are about one video."""
        return {
            **asdict(self),
            "greedy": scoring.finite(self.greedy) if self.greedy else None,
            "sampled": scoring.finite(self.sampled) if self.sampled else None,
            "by_type": {kind: scoring.finite(entry) for kind, entry in self.by_type.items()},
        }


def load_result(folder: Path) -> EvalResult:
    """The answers of a run, from the answers.jsonl of its folder.

    Args:
        folder: the `--out` of an evaluation, or the file itself.

    Returns:
        The result, in the order of the file; a question that was tried again counts as it ended, and a line
        that a kill has cut off is left out.

    Raises:
        ConfigError: no such file, not one of an evaluation, or one without a whole line.
    """
    path = folder / "answers.jsonl" if folder.is_dir() else folder
    lines = whole_lines(read_regular(path))
    if not lines:
        raise ConfigError(
            f"{path}: no answers yet, the run has hardly begun; finish it by the command that began it"
        )
    questions: dict[str, AnsweredQuestion] = {}
    number = 1
    try:
        settings = parse_json(lines[0])["settings"]
        name, samples, greedy = settings["name"], settings["n"], settings["greedy"]
        if not (isinstance(name, str) and isinstance(greedy, bool) and type(samples) is int and samples >= 0):
            raise ValueError(f"name {name!r:.60}, n {samples!r:.60} or greedy {greedy!r:.60} is wrong")
        for line in lines[1:]:
            number += 1
            question = AnsweredQuestion.from_dict(parse_json(line))
            if not question.failed and len(question.answers) != samples:
                raise ValueError(f"{len(question.answers)} answers, where the settings say {samples}")
            questions[question.id] = question
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{path}:{number}: not the answers of an evaluation ({error!r}); name its folder"
        ) from error
    return EvalResult(name, tuple(questions.values()), samples, greedy, settings)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test.

    Args:
        gained: questions that only the second run gets right.
        lost: questions that only the first run gets right.

    Returns:
        The probability of a split at least as uneven when both runs are equally good; 1 without any.
    """
    number = gained + lost
    tail = sum(comb(number, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**number)


def compare(a: EvalResult, b: EvalResult) -> Comparison:
    """Pair two runs by the ids of their questions.

    The videos may lie in another folder in each run, but must have the same file names and be shared by the
    same questions.

    Args:
        a: the one, the base.
        b: the other, whose gain is sought.

    Returns:
        Differences b − a with intervals, and the flips.

    Raises:
        ConfigError: a run is not finished, they are not about the same questions, or one has only greedy
            answers and the other none.
    """
    for which, run in (("first", a), ("second", b)):
        expected = run.settings.get("questions", len(run.questions))  # older runs do not say
        if not run.questions or len(run.questions) != expected:
            raise ConfigError(
                f"the {which} run, {run.name!r}, has {len(run.questions)} of {expected or 'its'} questions; "
                "finish it by the command that began it"
            )
    other = {q.id: q for q in b.questions}
    odd = {q.id: differs(q, other.get(q.id)) for q in a.questions}
    odd |= dict.fromkeys(sorted(set(other) - set(odd)), "only in the second")
    odd = {id: why for id, why in odd.items() if why}
    if odd:
        first = ", ".join(f"{id!r}: {why}" for id, why in list(odd.items())[:3])
        raise ConfigError(
            f"{a.name!r} and {b.name!r} answered different questions ({len(odd)}, first {first}); "
            "evaluate both on the same data"
        )
    shared = [(q.cluster, other[q.id].cluster) for q in a.questions]
    if len({x for x, _ in shared}) != len(set(shared)) or len({y for _, y in shared}) != len(set(shared)):
        raise ConfigError(
            f"{a.name!r} and {b.name!r} do not show the same video to the same questions; evaluate both on "
            "the same data"
        )
    greedy = a.greedy and b.greedy
    if not greedy and not (a.n and b.n):
        raise ConfigError(
            f"{a.name!r} and {b.name!r} have no answers of one kind: one was asked at temperature 0 only, "
            "the other sampled only; evaluate both in the same way"
        )
    pairs = [(q, other[q.id]) for q in a.questions]
    flips = tuple(_flips(pairs)) if greedy else ()
    gained = sum(flip.gained for flip in flips)
    kinds = sorted({q.type for q in a.questions})
    return Comparison(
        a=a.name,
        b=b.name,
        questions=len(pairs),
        greedy=paired_difference(b, a, greedy=True) if greedy else None,
        sampled=paired_difference(b, a) if a.n and b.n else None,
        by_type={kind: paired_difference(_only(b, kind), _only(a, kind), greedy=greedy) for kind in kinds},
        flips=flips,
        p=mcnemar(gained, len(flips) - gained) if greedy else None,
        changed=_changed(pairs) if greedy else None,
        failed=(sum(bool(x.failed) for x, _ in pairs), sum(bool(y.failed) for _, y in pairs)),
    )


def differs(a: AnsweredQuestion, b: AnsweredQuestion | None) -> str:
    """What makes two questions of one id two questions.

    Args:
        a: one of them.
        b: the other; None: there is none.

    Returns:
        In words; "" where they are one question.
    """
    if b is None:
        return "only in the first"
    told = {
        "type": (a.type, b.type),
        "question": (a.question, b.question),
        "options": (a.options, b.options),
        "answer": (a.answer, b.answer),
        "video": (_files(a), _files(b)),
        "stretch": tuple((q.shown.get("start"), q.shown.get("end")) for q in (a, b)),
    }
    return ", ".join(f"another {what}" for what, (x, y) in told.items() if x != y)


def _files(question: AnsweredQuestion) -> list[str]:
    """Names of what a question shares with others, without the folder, which may be another elsewhere."""
    return [os.path.basename(path) for path in question.cluster.split("\n")]


def _only(result: EvalResult, kind: str) -> EvalResult:
    questions = tuple(q for q in result.questions if q.type == kind)
    return EvalResult(result.name, questions, result.n, result.greedy)


def _changed(pairs: Sequence[tuple[AnsweredQuestion, AnsweredQuestion]]) -> float:
    """Share of the questions of which the two answers at temperature 0 are not one."""
    others = (as_compared(x.greedy, x.options) != as_compared(y.greedy, y.options) for x, y in pairs)
    return sum(others) / len(pairs)


def _flips(pairs: list[tuple[AnsweredQuestion, AnsweredQuestion]]) -> list[Flip]:
    """Questions of which one run is right, and the other is not; a number is right at a score of 1."""
    out = []
    for x, y in pairs:
        before, after = x.score(x.greedy) == 1.0, y.score(y.greedy) == 1.0
        if before != after:
            out.append(Flip(x.id, x.type, x.answer, x.greedy, y.greedy, after))
    return out
