"""What an evaluation returns: one `AnsweredQuestion` per record, and the numbers made from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fourdthinker.answers import parse_answer
from fourdthinker.evaluate import scoring
from fourdthinker.evaluate.easi import easi_letter
from fourdthinker.evaluate.numeric import as_compared, mean_relative_accuracy, parse_number

if TYPE_CHECKING:
    from fourdthinker.records import Record

_Count = Annotated[int, Field(ge=0, le=2**31)]
_BOUNDS = ("mean", "low", "high")


@dataclass(frozen=True)
class AnsweredQuestion:
    """One record as answered by one model.

    id, type: the record's (type "" when it has none). cluster: what it shares with other questions, the
    original video. options: letter -> text, {} where the answer is a number. answer: the right letter or
    number. answers: the parsed letter or number of each of the n samples, None where nothing could be parsed.
    greedy: the same at temperature 0. texts,
    greedy_text: the decoded completions. lengths: tokens of the samples. truncated: samples that met the
    length limit. failed: why there are no answers at all (the clip could not be read, the logits were NaN),
    "" otherwise; a failed question counts as answered wrongly. times_from: how the times of its clip were
    learnt (`frames.Frames`). letters: letter -> its probability among the letters where the answer at
    temperature 0 names one, None where it was not wanted or the answer names none. question: its text. shown:
    media, [kind, path] of each file that is shown, and start and end of a video; {} for text alone.
    """

    id: str
    type: str
    cluster: str
    options: dict[str, str]
    answer: str
    answers: tuple[str | None, ...] = ()
    greedy: str | None = None
    texts: tuple[str, ...] = ()
    greedy_text: str | None = None
    lengths: tuple[_Count, ...] = ()
    truncated: _Count = 0
    failed: str = ""
    times_from: str = "container"
    letters: dict[str, float] | None = None
    question: str = ""
    shown: dict[str, Any] = field(default_factory=dict)

    def score(self, answer: str | None) -> float:
        """What an answer scores: 1 or 0; a number its mean relative accuracy; 0 if the question failed."""
        if self.failed:
            return 0.0
        return float(answer == self.answer) if self.options else mean_relative_accuracy(answer, self.answer)

    @property
    def chance(self) -> float:
        """What a uniform guess scores; 0 for a number."""
        return 1.0 / len(self.options) if self.options else 0.0

    def read_anew(self) -> AnsweredQuestion:
        """With what the present readers find in the completions, which may be older than they are."""
        answers, greedy = self.answers, self.greedy
        if self.texts:
            answers = tuple(read_answer(text, self.options) for text in self.texts)
        if self.greedy_text is not None:
            greedy = read_answer(self.greedy_text, self.options)
        return replace(
            self, answers=answers, greedy=greedy, letters=self.letters if greedy == self.greedy else None
        )

    def to_dict(self) -> dict[str, Any]:
        """For a line of the journal; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AnsweredQuestion:
        """Of a line that `to_dict` gave; lists become tuples.

        Raises:
            TypeError: other keys.
            ValueError: a value that `to_dict` cannot give; says which.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        question = cls(**given)
        for name, adapter in _adapters().items():
            try:
                adapter.validate_python(getattr(question, name))
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = "".join(f"[{part!r}]" for part in problem["loc"])
                raise ValueError(f"{name}{where} is {problem['input']!r:.60}: {problem['msg']}") from None
        for answer in () if question.options else (question.answer, question.greedy, *question.answers):
            if answer is not None and parse_number(f"<answer>{answer}</answer>") != answer:
                raise ValueError(f"{answer!r:.60} answers a question without options and is no number")
        return question


def read_answer(text: str, options: Mapping[str, str]) -> str | None:
    """The letter or number that a completion answers with.

    Args:
        text: a decoded completion.
        options: letter -> text; {} where the answer is a number.

    Returns:
        As `parse_answer` or `parse_number`.
    """
    return parse_answer(text, options) if options else parse_number(text)


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(AnsweredQuestion, include_extras=True)
    return {name: TypeAdapter(hint, config=ConfigDict(strict=True)) for name, hint in hints.items()}


@dataclass(frozen=True)
class EvalResult:
    """Answers of one model to a list of questions, in the order of the records.

    n: samples a question (0: greedy only). greedy: whether temperature 0 was run too. settings: all that
    determines the numbers. seconds: wall time, summed over the parts of a run that was resumed.
    """

    name: str
    questions: tuple[AnsweredQuestion, ...]
    n: int
    greedy: bool
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def marks(self) -> npt.NDArray[np.float64]:
        """[Q, n]: `AnsweredQuestion.score` of every sample."""
        rows = [[q.score(a) for a in q.answers] if not q.failed else [0.0] * self.n for q in self.questions]
        return np.array(rows, dtype=np.float64).reshape(len(self.questions), self.n)

    @property
    def greedy_marks(self) -> npt.NDArray[np.float64]:
        """[Q]: `AnsweredQuestion.score` at temperature 0."""
        return np.array([q.score(q.greedy) for q in self.questions], dtype=np.float64)

    @property
    def clusters(self) -> list[str]:
        """The original video of each question: questions about one are not independent."""
        return [q.cluster for q in self.questions]

    @property
    def answered(self) -> EvalResult:
        """The same without the questions that failed."""
        return replace(self, questions=tuple(q for q in self.questions if not q.failed))

    @property
    def entropies(self) -> npt.NDArray[np.float64]:
        """Entropy in nats of the parsed answers of each question that was answered."""
        return np.array(
            [
                scoring.answer_entropy([as_compared(answer, q.options) for answer in q.answers])
                for q in self.questions
                if not q.failed and q.answers
            ]
        )

    def scores(self, *, greedy: bool = False) -> npt.NDArray[np.float64]:
        """[Q]: share of right samples of each question, or right/wrong at temperature 0.

        The greedy ones are also what is returned for n = 0, where there are no samples.
        """
        if greedy and not self.greedy:
            raise ValueError(f"result {self.name!r} has no greedy answers; evaluate with greedy=True")
        if greedy or self.n == 0:
            return self.greedy_marks
        return scoring.question_means(self.marks)

    def summary(self) -> dict[str, Any]:
        """The numbers of one model, ready for JSON.

        accuracy, low, high: sampled accuracy (greedy when n = 0) and its 95 % interval; n: questions;
        samples: samples a question; greedy, greedy_low, greedy_high (None when not run); entropy: mean
        answer entropy in nats; failed: questions without an answer, all in the denominator; parsed: share
        of completions with an answer; truncated: share of samples that met the length limit; length: mean
        tokens of a sample; times_not_from_container: clips whose times were sorted or counted from a rate;
        macro: mean over types; by_type: {type: {accuracy, low, high, greedy, n}}; answered: the same numbers
        over the questions that did not fail, with macro and by_type, None without any. adjusted, in each:
        accuracy less that of a uniform guess, over what a guess leaves to be had: 0 at chance, 1 at best.
        """
        rows = [i for i, q in enumerate(self.questions) if not q.failed]
        answered = [self.questions[i] for i in rows]
        drawn = [a for q in answered for a in (q.answers if self.n else (q.greedy,))]
        lengths = [length for q in answered for length in q.lengths]
        entropies = self.entropies
        return {
            **self._split(range(len(self.questions))),
            "samples": self.n,
            "entropy": float(entropies.mean()) if entropies.size else None,
            "failed": len(self.questions) - len(answered),
            "parsed": float(np.mean([a is not None for a in drawn])) if drawn else None,
            "truncated": sum(q.truncated for q in answered) / len(lengths) if lengths else None,
            "length": float(np.mean(lengths)) if lengths else None,
            "times_not_from_container": len(
                {q.cluster for q in self.questions if q.times_from != "container"}
            ),
            "answered": self._split(rows),
        }

    def easi(self) -> dict[str, Any]:
        """The accuracy with letters read as EASI does (`easi_letter`); numbers keep their score.

        Returns:
            easi: {accuracy, low, high, n} of the samples (at temperature 0 where there are none);
            format_share: {mean, low, high} of that less the accuracy: what the form of the answers costs;
            bounds are None where all questions are about one video.
        """
        sampled = self.n > 0
        rows = []
        for q, strict in zip(self.questions, self.scores(), strict=True):
            texts = q.texts if sampled else (q.greedy_text or "",)
            lenient = bool(q.options) and not q.failed
            rows.append(float(np.mean([easi_letter(t) == q.answer for t in texts])) if lenient else strict)
        bounds = scoring.accuracy_interval(rows, self.clusters)
        numbers = {"accuracy": bounds["mean"], "low": bounds["low"], "high": bounds["high"], "n": len(rows)}
        share = scoring.paired_interval(rows, self.scores(), self.clusters)
        return {"easi": numbers, "format_share": scoring.finite(share)}

    def by_task(self, tasks: Mapping[str, str]) -> dict[str, Any]:
        """The numbers of the tasks that types of questions are grouped into.

        Args:
            tasks: type -> task; a type that is not in it is its own task.

        Returns:
            tasks: {task: {accuracy, low, high, greedy, n over its questions, and type_mean, the mean accuracy
            of its types}}; task_mean: the mean of the type_mean of all tasks, None without questions.
        """
        types = list(dict.fromkeys(q.type for q in self.questions))
        scores = self.scores()
        out: dict[str, Any] = {}
        for task in dict.fromkeys(tasks.get(kind, kind) for kind in (*tasks, *types)):
            members = [kind for kind in types if tasks.get(kind, kind) == task]
            rows = {k: [i for i, q in enumerate(self.questions) if q.type == k] for k in members}
            if members:
                numbers = self._accuracies(sorted(i for found in rows.values() for i in found))
                out[task] = {
                    **numbers,
                    "type_mean": float(np.mean([scores[r].mean() for r in rows.values()])),
                }
        return {"tasks": out, "task_mean": scoring.macro_average(out, "type_mean") if out else None}

    def consistency(self, twins: Mapping[str, str]) -> dict[str, Any]:
        """Whether questions that are one question under symmetry are all answered rightly.

        Args:
            twins: id -> name of its set; a question that is not in it is left out, and so is a set of which
                a question was not asked.

        Returns:
            accuracy, low, high: share of the sets whose questions are all right (sampled: mean of the product
            over the samples of the same number), videos as clusters, None without any set; n: sets.
        """
        marks = self.marks if self.n else self.greedy_marks[:, None]
        sets: dict[str, list[int]] = {}
        for i, question in enumerate(self.questions):
            if question.id in twins:
                sets.setdefault(twins[question.id], []).append(i)
        sizes = Counter(twins.values())
        full = [rows for name, rows in sets.items() if len(rows) == sizes[name]]
        all_right = [float((marks[rows] == 1.0).all(axis=0).mean()) for rows in full]
        clusters = [self.questions[rows[0]].cluster for rows in full]
        bounds = scoring.accuracy_interval(all_right, clusters) if full else dict.fromkeys(_BOUNDS)
        return {"accuracy": bounds["mean"], "low": bounds["low"], "high": bounds["high"], "n": len(full)}

    def _split(self, rows: Sequence[int]) -> dict[str, Any]:
        """The accuracies of these questions, of each type of them, and the mean over types."""
        kinds = sorted({self.questions[i].type for i in rows})
        by_type = {k: self._accuracies([i for i in rows if self.questions[i].type == k]) for k in kinds}
        macro = scoring.macro_average(by_type) if by_type else None
        return {**self._accuracies(rows), "macro": macro, "by_type": by_type}

    def _accuracies(self, rows: Sequence[int]) -> dict[str, Any]:
        index = np.fromiter(rows, dtype=np.int64)
        if not len(index):  # no question was answered; JSON has no NaN
            keys = ("accuracy", "low", "high", "adjusted", "greedy", "greedy_low", "greedy_high")
            return {**dict.fromkeys(keys), "n": 0}
        clusters = [self.questions[i].cluster for i in index]
        accuracy = scoring.accuracy_interval(self.scores()[index], clusters)
        out: dict[str, Any] = {"accuracy": accuracy["mean"], "low": accuracy["low"], "high": accuracy["high"]}
        out["adjusted"] = scoring.adjusted_accuracy(
            accuracy["mean"], float(np.mean([self.questions[i].chance for i in index]))
        )
        greedy = scoring.accuracy_interval(self.greedy_marks[index], clusters) if self.greedy else None
        for key, bound in (("greedy", "mean"), ("greedy_low", "low"), ("greedy_high", "high")):
            out[key] = greedy[bound] if greedy else None
        out["n"] = len(index)
        return out


def paired_difference(a: EvalResult, b: EvalResult, *, greedy: bool = False) -> dict[str, float]:
    """How much more accurate one model is than another, on the same questions.

    Args:
        a: the one; questions are paired by id, whatever their order.
        b: the other, whose accuracy is subtracted.
        greedy: whether answers at temperature 0 are compared, not sampled ones.

    Returns:
        {"mean", "low", "high"}: the difference and its 95 % interval, clips as clusters.

    Raises:
        ValueError: the two results are not about the same questions.
    """
    order = {q.id: i for i, q in enumerate(b.questions)}
    missing = [q.id for q in a.questions if q.id not in order]
    if missing or len(a.questions) != len(b.questions):
        odd = missing or sorted(set(order) - {q.id for q in a.questions})
        raise ValueError(
            f"{a.name!r} and {b.name!r} answered different questions ({len(odd)} unpaired, first {odd[:3]}); "
            "evaluate both on the same records"
        )
    rows = np.array([order[q.id] for q in a.questions], dtype=np.int64)
    return scoring.paired_interval(a.scores(greedy=greedy), b.scores(greedy=greedy)[rows], a.clusters)


def baselines(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What can be reached without seeing anything.

    Args:
        records: questions with options and answers.

    Returns:
        {"chance": ..., "majority": ...}, each in the form of `EvalResult.summary`. chance: a uniform guess
        (exact, so low = high). majority: the best constant answer of each type, chosen on these records
        themselves, with its interval over questions.
    """
    from fourdthinker.records import source_of

    kinds = [r.type or "" for r in records]
    guess = [scoring.chance_level([len(r.options)]) for r in records]
    right = scoring.majority_correct([r.answer for r in records], [r.options for r in records], kinds)
    clusters = [source_of(r) for r in records]

    def numbers(rows: list[int], majority: bool) -> dict[str, Any]:
        if majority:
            bounds = scoring.accuracy_interval(right[rows], [clusters[i] for i in rows])
        else:
            level = float(np.mean([guess[i] for i in rows])) if rows else math.nan
            bounds = {"mean": level, "low": level, "high": level}
        return {
            "accuracy": bounds["mean"], "low": bounds["low"], "high": bounds["high"],
            "greedy": bounds["mean"], "n": len(rows),
        }  # fmt: skip

    out: dict[str, dict[str, Any]] = {}
    for name, majority in (("chance", False), ("majority", True)):
        by_type = {
            kind: numbers([i for i, k in enumerate(kinds) if k == kind], majority)
            for kind in sorted(set(kinds))
        }
        macro = scoring.macro_average(by_type)
        out[name] = {**numbers(list(range(len(records))), majority), "macro": macro, "by_type": by_type}
    return out
