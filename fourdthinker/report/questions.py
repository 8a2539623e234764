"""Questions of evaluations, what each run answers, and the runs beside each other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import AnsweredQuestion, EvalResult, compare, load_result
from fourdthinker.evaluate.compare import differs
from fourdthinker.evaluate.table import number, percent
from fourdthinker.files import read_regular, whole_lines
from fourdthinker.report.cards import Card, Deck, Names, ShownRow, shown_options
from fourdthinker.report.completions import Row, shaded_parts
from fourdthinker.report.media import Album, clip_of, pictures_or_trouble
from fourdthinker.report.results import difference_cells
from fourdthinker.report.so_far import in_common, questions_so_far
from fourdthinker.report.tables import Cell, Table, TableRow, csv_url

log = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
_MOST = 200  # questions shown; the table of all of them is kept as CSV
_FRAMES = 4  # of a clip
_SAMPLES = 4  # of a question that are shown beside the answer at temperature 0
_NOTHING = "(none)"  # an answer that could not be read
_CLASSES = 12  # of a confusion matrix; with more different texts it is one of letters


@dataclass(frozen=True)
class Answers:
    """One run: its name on the page, and its answers by the ids of their questions."""

    name: str
    result: EvalResult
    by_id: Mapping[str, AnsweredQuestion]

    @property
    def so_far(self) -> str:
        """See `questions_so_far`."""
        return questions_so_far(self.result)

    def about(self, question: AnsweredQuestion) -> AnsweredQuestion | None:
        """What it has of a question of any run; None: nothing, or another question under the same id."""
        found = self.by_id.get(question.id)
        return None if differs(question, found) else found

    @property
    def title(self) -> str:
        """The name, and how far it is."""
        return f"{self.name} ({self.so_far})" if self.so_far else self.name


def read_answers(runs: Sequence[tuple[str, Path]]) -> list[Answers]:
    """The answers of those of some folders that are evaluations.

    Args:
        runs: names and folders.

    Returns:
        In the same order.

    Raises:
        ConfigError: an answers.jsonl that is not one.
    """
    found = []
    for name, folder in runs:
        answers = folder / ANSWERS
        # Without a whole line while an evaluation loads its model, and where that was killed.
        if answers.exists() and whole_lines(read_regular(answers)):
            result = load_result(folder)
            found.append(Answers(name, result, {q.id: q for q in result.questions}))
    return found


def answer_of(question: AnsweredQuestion) -> str | None:
    """The answer at temperature 0, else the first sample; None where nothing could be read."""
    return question.greedy if question.greedy_text is not None else next(iter(question.answers), None)


def is_right(question: AnsweredQuestion) -> bool:
    """Whether `answer_of` a question scores 1."""
    return question.score(answer_of(question)) == 1.0


def comparison_tables(runs: Sequence[Answers]) -> list[Table]:
    """Every later run less the first one, of all questions and by type; and the questions that flip.

    Where a run is not finished, the questions that both have answers to are compared. Runs that answered
    other questions than the first one are left out, with a warning.
    """
    tables = []
    for other in runs[1:]:
        unfinished = [run.title for run in (runs[0], other) if run.so_far]
        pair = (runs[0].result, other.result)
        try:
            found = compare(*(in_common(*pair) if unfinished else pair))
        except ConfigError as error:
            log.warning("not compared: %s", error)
            continue
        rows = []
        for label, entry in (
            ("temperature 0", found.greedy), ("samples", found.sampled), *found.by_type.items(),
        ):  # fmt: skip
            if entry is not None:
                rows.append(TableRow(label or "(no type)", difference_cells(entry)))
        gained = sum(flip.gained for flip in found.flips)
        caption = f"{other.name} less {runs[0].name}, in percentage points, paired over {found.questions:,} "
        caption += "questions; the intervals are clustered by video."
        if found.p is not None:
            caption += (
                f" {gained} became right and {len(found.flips) - gained} wrong (McNemar p {found.p:.3g}); "
                f"{percent(found.changed)} of the answers are others."
            )
        so_far = ""
        if unfinished:
            so_far = f"{found.questions:,} questions in common"
            caption += f" Not finished: {', '.join(unfinished)}."
        names = ("Difference", "95 % interval", "")
        tables.append(Table(f"compared-{other.name}", caption, names, rows, so_far))
    return tables


def confusion_tables(run: Answers) -> list[Table]:
    """Of each type of question, what is answered where what is right; numbers are left out."""
    tables = []
    for kind in sorted({q.type for q in run.result.questions}):
        asked = [q for q in run.result.questions if q.type == kind and q.options and not q.failed]
        texts = {text for q in asked for text in q.options.values()}
        by_text = len(texts) <= _CLASSES

        def name(question: AnsweredQuestion, letter: str | None, by_text: bool = by_text) -> str:
            if letter is None:
                return _NOTHING
            return question.options.get(letter, letter) if by_text else letter

        pairs = Counter((name(q, q.answer), name(q, answer_of(q))) for q in asked)
        rights = sorted({right for right, _ in pairs})
        said = sorted(
            {answer for _, answer in pairs} | set(rights), key=lambda text: (text == _NOTHING, text)
        )
        rows = []
        for right in rights:
            total = sum(pairs[right, answer] for answer in said)
            cells = [
                Cell(
                    str(pairs[right, answer] or "·"),
                    "diagonal" if answer == right else "" if not pairs[right, answer] else "off",
                    f"{percent(pairs[right, answer] / total)} of {total}",
                )
                for answer in said
            ]
            rows.append(TableRow(right, cells))
        if rows:
            caption = (
                f"{kind or 'Without a type'}: questions by the right answer (lines) and the answer given."
            )
            tables.append(Table(f"confusion-{kind}", caption, said, rows, run.so_far))
    return tables


def question_deck(runs: Sequence[Answers], album: Album, names: Names) -> Deck:
    """The questions with the answers of all runs: first those that flip, then wrong ones, then others."""
    last = runs[-1]
    questions = _questions(runs)

    def flipped(q: AnsweredQuestion) -> bool:
        return len({is_right(found) for run in runs if (found := run.about(q)) is not None}) > 1

    order = sorted(questions, key=lambda q: (not flipped(q), is_right(q)))
    chosen = order[:_MOST]
    anchors = [names.of(f"question {q.id}") for q in chosen]
    cards = [_card(q, anchor, runs, album, flipped(q)) for q, anchor in zip(chosen, anchors, strict=True)]
    said = "Answers at temperature 0, then samples."
    if len(runs) > 1:
        said += f" The runs, from left to right: {', '.join(run.title for run in runs)}."
    elif last.so_far:
        said += f" {last.so_far} so far."
    return Deck(
        "Questions",
        names.of("questions"),
        said,
        cards,
        len(order) - len(chosen),
        ANSWERS,
        _csv(questions, runs),
    )


def _questions(runs: Sequence[Answers]) -> list[AnsweredQuestion]:
    """Each question once, as the last run that has it answered it; those of the last run come first."""
    found: list[AnsweredQuestion] = []
    for index, run in reversed(list(enumerate(runs))):
        later = runs[index + 1 :]
        found += [q for q in run.result.questions if all(other.about(q) is None for other in later)]
    return found


def _csv(questions: Sequence[AnsweredQuestion], runs: Sequence[Answers]) -> str:
    lines = [["id", "type", "right", *(run.title for run in runs)]]
    for q in questions:
        given = [None if (found := run.about(q)) is None else answer_of(found) for run in runs]
        lines.append([q.id, q.type, q.answer, *(answer or "" for answer in given)])
    return csv_url(lines)


def _card(
    question: AnsweredQuestion, anchor: str, runs: Sequence[Answers], album: Album, flipped: bool
) -> Card:
    shown = question.shown
    clip = clip_of(shown.get("media"), number(shown.get("start")), number(shown.get("end")))
    pictures, trouble = pictures_or_trouble(album, clip, _FRAMES)
    rows = [
        row
        for run in runs
        if (found := run.about(question)) is not None
        for row in _rows(found, run.name if len(runs) > 1 else "")
    ]
    scores = {question.score(answer) for answer in question.answers}
    flags = [] if is_right(question) else ["wrong"]
    flags += ["flipped"] if flipped else []
    flags += ["equal"] if len(question.answers) > 1 and len(scores) == 1 else []
    return Card(
        anchor=anchor,
        head=question.id,
        type=question.type,
        flags=flags,
        question=question.question or question.id,
        options=shown_options(question.options, question.answer),
        answer="" if question.options else question.answer,
        pictures=pictures,
        trouble=trouble,
        rows=rows,
        left_out=max(0, len(question.texts) - _SAMPLES),
    )


def _rows(question: AnsweredQuestion, run: str) -> list[ShownRow]:
    """The answer at temperature 0 and some samples of one run."""
    if question.failed:
        return [ShownRow(f"{run} failed".strip(), "loss", shaded_parts(Row(question.failed)))]
    texts = [] if question.greedy_text is None else [("", question.greedy, question.greedy_text)]
    samples = list(zip(question.answers, question.texts, strict=False))[:_SAMPLES]
    texts += [(f"sample {k + 1}", answer, text) for k, (answer, text) in enumerate(samples)]
    rows = []
    for which, answer, text in texts:
        right = question.score(answer) == 1.0
        said = " ".join(filter(None, (run, which, "right" if right else "wrong")))
        details = [f"answer {answer}" if answer is not None else "no answer could be read"]
        if not which and question.letters:
            details += [f"{letter} {share:.2f}" for letter, share in question.letters.items()]
        parts = shaded_parts(Row(text.replace("\0", "\ufffd")))
        rows.append(ShownRow(said, "gain" if right else "loss", parts, details))
    return rows
