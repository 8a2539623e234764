"""Runs beside each other: which questions flip, what is confused with what, what is compared, as CSV too."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import AnsweredQuestion
from fourdthinker.report import write_report
from fourdthinker.report.cards import Names
from fourdthinker.report.media import Album
from fourdthinker.report.questions import (
    Answers,
    comparison_tables,
    confusion_tables,
    question_deck,
    read_answers,
)
from fourdthinker.report.tables import csv_url
from tests.unit.report.test_report import parsed

OPTIONS = {"A": "left", "B": "right"}


def question(
    number: int, greedy: str | None, answers: tuple[str | None, ...] = (), **keys: object
) -> AnsweredQuestion:
    values = {"options": OPTIONS, "answer": "AB"[number % 2], "type": "side"} | keys
    texts = tuple(f"<answer>{a}</answer>" for a in answers)
    return AnsweredQuestion(
        f"q{number}", cluster=f"v{number}", answers=answers, texts=texts, greedy=greedy,
        greedy_text=f"<answer>{greedy}</answer>", question=f"Where is {number}?", **values,
    )  # type: ignore[arg-type]  # fmt: skip


def written(folder: Path, questions: list[AnsweredQuestion], samples: int) -> Path:
    folder.mkdir(parents=True)
    settings = {"settings": {"name": folder.name, "n": samples, "greedy": True}}
    lines = [settings, *map(asdict, questions)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Right answers are A, B, A, B; the second run mends the first question and spoils the second."""
    before = [question(0, "B", ("B", "A")), question(1, "B", ("B", "B")), question(2, None, ("A", None))]
    after = [question(0, "A", ("A", "A")), question(1, "A", ("A", "B")), question(2, None, ("B", "B"))]
    more = [question(3, "7", ("7", "7"), options={}, answer="7", type="count")]
    return [written(tmp_path / "before", before + more, 2), written(tmp_path / "after", after + more, 2)]


def answers(runs: list[Path]) -> list[Answers]:
    return read_answers([(run.name, run) for run in runs])


def test_flags_and_order(runs: list[Path], tmp_path: Path) -> None:
    deck = question_deck(answers(runs), Album(tmp_path), Names())
    found = {card.head: card.flags for card in deck.cards}
    assert found == {
        "q1": ["wrong", "flipped"],
        "q0": ["flipped", "equal"],
        "q2": ["wrong", "equal"],
        "q3": ["equal"],
    }
    assert list(found) == ["q1", "q0", "q2", "q3"]
    assert [name for name, _ in deck.flags] == ["wrong", "flipped", "equal"]
    assert deck.types == ["count", "side"]
    first = deck.cards[1].rows
    assert [row.chip for row in first] == [
        "before wrong", "before sample 1 wrong", "before sample 2 right",
        "after right", "after sample 1 right", "after sample 2 right",
    ]  # fmt: skip


def test_runs_are_compared_by_pairs(runs: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    (table,) = comparison_tables(answers(runs))
    assert "1 became right and 1 wrong (McNemar p 1)" in table.caption
    assert [(row.label, row.cells[0].text) for row in table.rows] == [
        ("temperature 0", "+0.0"), ("samples", "−12.5"), ("count", "+0.0"), ("side", "+0.0"),
    ]  # fmt: skip
    other = written(runs[0].parent / "other", [question(9, "A")], 0)
    assert comparison_tables(answers([runs[0], other])) == []
    assert "different questions" in caplog.text


def test_what_is_not_finished_says_so(runs: list[Path], tmp_path: Path) -> None:
    """A run of ten questions of which three are answered, beside one that is finished."""
    path = runs[1] / "answers.jsonl"
    header, *lines = path.read_text().splitlines()
    settings = json.loads(header)
    settings["settings"]["questions"] = 10
    path.write_text("\n".join([json.dumps(settings), *lines[:3]]) + "\n")
    found = answers(runs)
    assert [run.so_far for run in found] == ["", "3 of 10 questions"]
    (table,) = comparison_tables(found)
    assert "paired over 3 questions" in table.caption
    assert "Not finished: after (3 of 10 questions)." in table.caption
    assert lines_of(table.csv)[0][0] == "3 questions in common"
    (confusion,) = confusion_tables(found[1])
    assert lines_of(confusion.csv)[0][0] == "3 of 10 questions"
    deck = question_deck(found, Album(tmp_path), Names())
    assert lines_of(deck.csv)[0][3:] == ["before", "after (3 of 10 questions)"]
    page = write_report(*runs).read_text()
    assert "<b>Not finished:</b> after, 3 of 10 questions are answered." in page
    assert page.count("<b>3 of 10 questions so far.</b>") == 1
    assert "Not finished:" not in write_report(runs[0]).read_text()


@pytest.mark.parametrize("written", [b"", b'{"settings": {"na'])
def test_a_run_that_was_killed_before_its_first_line_has_no_answers(runs: list[Path], written: bytes) -> None:
    (runs[1] / "answers.jsonl").write_bytes(written)
    assert [run.name for run in read_answers([(run.name, run) for run in runs])] == [runs[0].name]


def test_questions_of_one_id_that_differ_have_cards_and_answers_of_their_own(
    runs: list[Path], tmp_path: Path
) -> None:
    """An id that two runs ask different things under, and questions that the last run has not come to."""
    colours = {"A": "red", "B": "blue"}
    other = written(tmp_path / "other", [question(1, "A", options=colours), question(0, "A")], 0)
    begun = written(tmp_path / "begun", [], 0)
    deck = question_deck(answers([runs[0], other, begun]), Album(tmp_path), Names())
    shown = sorted(
        (card.head, card.options[0][1], [row.chip for row in card.rows]) for card in deck.cards[:3]
    )
    first = ["before wrong", "before sample 1 wrong", "before sample 2 right", "other right"]
    assert shown[0] == ("q0", "left", first)
    assert [(head, option) for head, option, _ in shown[1:]] == [("q1", "red"), ("q2", "left")]
    rows = [(card.head, sorted({row.chip.split()[0] for row in card.rows})) for card in deck.cards]
    assert sorted(rows)[:3] == [("q0", ["before", "other"]), ("q1", ["before"]), ("q1", ["other"])]
    assert sorted(rows)[3:] == [("q2", ["before"]), ("q3", ["before"])]
    assert [line[3:] for line in lines_of(deck.csv) if line[0] == "q1"] == [["", "A", ""], ["B", "", ""]]
    assert next(card.flags for card in deck.cards if card.head == "q0")[:1] == ["flipped"]


def test_an_audit_that_was_ended_says_what_is_there(tmp_path: Path) -> None:
    """Killed before latents.json: nothing, then some modes."""
    audit = tmp_path / "audit"
    audit.mkdir()
    with pytest.raises(ConfigError, match="give the folder of a run that has begun to write"):
        write_report(audit)
    path = written(audit / "own", [question(0, "A")], 0) / "answers.jsonl"
    header, line = path.read_text().splitlines()
    settings = json.loads(header)
    settings["settings"]["questions"] = 10
    path.write_text(f"{json.dumps(settings)}\n{line}\n")
    written(audit / "zero", [question(0, "B")], 0)
    (audit / "noise").mkdir()
    (audit / "noise" / "answers.jsonl").write_text('{"settings": {"na')  # killed in its first line
    told = f"not finished, .*own 1 of 10 questions, zero all questions; .*{audit}/own {audit}/zero$"
    with pytest.raises(ConfigError, match=told):
        write_report(audit)
    assert "own → zero" in write_report(audit / "own", audit / "zero").read_text()


def test_runs_that_are_not_finished_and_share_no_question_are_not_compared(
    runs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = runs[1] / "answers.jsonl"
    header = json.loads(path.read_text().splitlines()[0])
    header["settings"]["questions"] = 10
    path.write_text(json.dumps(header) + "\n")
    assert comparison_tables(answers(runs)) == []
    assert "not compared: " in caplog.text
    assert "0 of 10 questions are answered" in write_report(*runs).read_text()


def test_confusion_is_by_text_or_by_letter(runs: list[Path]) -> None:
    (table,) = confusion_tables(answers(runs)[0])  # numbers have none
    assert list(table.columns) == ["left", "right", "(none)"]
    assert [(row.label, [cell.text for cell in row.cells]) for row in table.rows] == [
        ("left", ["·", "1", "1"]), ("right", ["·", "1", "·"]),
    ]  # fmt: skip
    assert [cell.kind for cell in table.rows[1].cells] == ["", "diagonal", ""]
    assert table.rows[0].cells[1].title == "50.0\u00a0% of 2"
    many = [question(n, "A", options={"A": f"a{n}", "B": f"b{n}"}) for n in range(8)]
    run = written(runs[0].parent / "many", many, 0)
    assert list(confusion_tables(answers([run])[0])[0].columns) == ["A", "B"]


def lines_of(url: str) -> list[list[str]]:
    text = base64.b64decode(url.partition(";base64,")[2]).decode("utf-8")
    return list(csv.reader(io.StringIO(text)))


def test_tables_are_csv_that_computes_nothing(runs: list[Path], tmp_path: Path) -> None:
    deck = question_deck(answers(runs), Album(tmp_path), Names())
    assert lines_of(deck.csv)[:3] == [
        ["id", "type", "right", "before", "after"], ["q0", "side", "A", "B", "A"],
        ["q1", "side", "B", "B", "A"],
    ]  # fmt: skip
    cells = ["=1+1", "@x", "−3.5", "+4.0", "-x", '"a", b', "73.5\u00a0%"]
    assert lines_of(csv_url([cells])) == [["'=1+1", "'@x", "-3.5", "+4.0", "'-x", '"a", b', "73.5 %"]]


def test_links_are_names_and_none_is_there_twice() -> None:
    names = Names()
    assert [names.of(text) for text in ("a b", "a-b", 'x"><script>', "日本", "")] == [
        "a-b",
        "a-b-2",
        "x-script",
        "card",
        "card-2",
    ]


def test_the_page_of_two_runs(runs: list[Path]) -> None:
    path = write_report(*runs)
    assert path == runs[1] / "report.html"
    page = parsed(path)
    for wanted in (
        "before → after",
        "Paired differences",
        "Confusion · after",
        "Where is 0?",
        "All answers as CSV",
    ):
        assert wanted in page.text, wanted


def test_a_failed_question_says_why(tmp_path: Path) -> None:
    failed = AnsweredQuestion("q0", "side", "v", OPTIONS, "A", failed="clip.mp4: no such file")
    run = written(tmp_path / "run", [failed], 2)
    (card,) = question_deck(answers([run]), Album(tmp_path), Names()).cards
    assert [part.text for part in card.rows[0].parts] == ["clip.mp4: no such file"]
    assert card.flags == ["wrong"]
