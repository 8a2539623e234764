"""Files of every form are read, and written back without some of their questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.audit import read_questions, write_without
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.records import read_records, source_of

OPTIONS = {"A": "left", "B": "right", "C": "up"}
DIFT = {
    "id": "d",
    "video": "v/1.mp4",
    "text_input": "Which way?\nA. left\nB. right\nC. up",
    "text_output": "<think>It goes.</think> <answer>B. right</answer>",
    "type": "direction",
}
RL = {
    "id": "r",
    "frame_paths": ["f/2/0.png", "f/2/1.png"],
    "Question": "Which way?",
    **OPTIONS,
    "Correct": "C",
}
PLAIN = {"id": "p", "video": "v/3.mp4", "question": "Which way?", "options": OPTIONS, "answer": "left"}
OPEN = {"id": "o", "video": "v/3.mp4", "question": "What moves?"}
MLLM = {
    "video": "v/4.mp4",
    "conversations": [{"from": "human", "value": "<video>\nWhich way?\nA. left\nB. right\nC. up"}],
    "solution": [{"answer": "B"}],
}
VLM4D = {
    "id": "validation_1",
    "video": "https://host/a.mp4",
    "question_type": "multiple-choice",
    "question": "How many?",
    "choices": {"A": 1, "B": 2, "C": 0},
    "answer": 2,
}
DSR = {"Type": "abs_dir", "Question": "Which way?", **OPTIONS, "Correct": "B"}
DYN = {"question": "Which way?", "options": ["A. left", "B. right", "C. up"], "answer": "B"}


def write(path: Path, value: Any) -> Path:
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_every_record_of_ours_is_read(tmp_path: Path) -> None:
    file = read_questions(write(tmp_path / "a.jsonl", [DIFT, RL, OPEN, PLAIN, MLLM]))
    assert [item.answer for item in file.items] == [1, 2, 0, 1]
    assert [item.index for item in file.items] == [0, 1, 3, 4]
    assert [item.group for item in file.items] == ["v/1.mp4", "f/2", "v/3.mp4", "v/4.mp4"]
    assert [item.type for item in file.items] == ["direction", "", "", ""]
    assert {item.options for item in file.items} == {("left", "right", "up")}
    assert file.items[0].question == "Which way?"
    assert file.open_questions == 1


def test_the_source_is_the_video(tmp_path: Path) -> None:
    file = read_questions(write(tmp_path / "a.jsonl", [{**RL, "source": "movie.mp4"}, RL]))
    assert [item.group for item in file.items] == ["movie.mp4", "f/2"]


@pytest.mark.parametrize(
    "media",
    [
        {"video_path": ["v/1.mp4"]},
        {"video_path": ["v/1.mp4", "v/2.mp4"]},
        {"images": ["f/0.png", "f/1.png"]},
        {"images": "f/0.png"},
        {"video_path": "v/1.mp4", "images": ["f/0.png"]},
        {"frame_paths": ["f/0.png", "f/1.png"]},
        {"video": "v/1.mp4"},
        {"image": ["f/0.png", "f/1.png"]},
        {"image": ["f/0.png"], "video": ["v/1.mp4", "v/2.mp4"]},
    ],
)
def test_groups_are_the_sources_of_records(tmp_path: Path, media: dict[str, Any]) -> None:
    for name in ("v/1.mp4", "v/2.mp4", "f/0.png", "f/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    if {"image", "video"} & set(media):
        counts = [(kind, len([*media[kind]]) if isinstance(media[kind], list) else 1) for kind in media]
        slots = "".join(f"<{kind}>" * count for kind, count in counts)
        turn = {"from": "human", "value": f"{slots}Which way?\nA. left\nB. right\nC. up"}
        line = {**MLLM, "conversations": [turn]}
        del line["video"]
    else:
        line = {"Question": "Which way?", **OPTIONS, "Correct": "C"}
    path = write(tmp_path / "a.jsonl", [line | media])
    (item,), (record,) = read_questions(path).items, read_records(path)
    assert source_of(record).replace(f"{tmp_path.resolve()}/", "") == item.group


@pytest.mark.parametrize(
    ("value", "group", "answer"),
    [([VLM4D], "https://host/a.mp4", 1), ({"yt_1": [DSR]}, "yt_1", 1), ([DYN], None, 1)],
)
def test_benchmarks_are_read(tmp_path: Path, value: object, group: str | None, answer: int) -> None:
    (item,) = read_questions(write(tmp_path / "a.json", value)).items
    assert item.answer == answer
    assert len(item.options) == 3
    assert group is None or item.group == group


def test_parquet_is_read_and_written(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is missing: fourdthinker[eval]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: fourdthinker[eval]")
    row = {
        "videoID": "yt_1",
        "question": "Which way?",
        "options": DYN["options"],
        "answer": "B",
        "type": "abs_dir",
    }
    table = arrow.Table.from_pylist([row, {**row, "videoID": "yt_2"}])
    parquet.write_table(table, tmp_path / "a.parquet")
    file = read_questions(tmp_path / "a.parquet")
    assert [(item.group, item.type, item.answer, item.options[1]) for item in file.items] == [
        ("yt_1", "abs_dir", 1, "right"),
        ("yt_2", "abs_dir", 1, "right"),
    ]
    write_without(file, [0], tmp_path / "b.parquet")
    assert [item.group for item in read_questions(tmp_path / "b.parquet").items] == ["yt_2"]
    (tmp_path / "c.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(RecordError, match="no readable Parquet"):
        read_questions(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    "form",
    [
        {"options": {"A": "left", "B": "right", "C": None, "D": None}},
        {"options": ["left", "right", None]},
        {"A": "left", "B": "right", "C": None, "D": None},
        {"options": None, "choices": {"A": "left", "B": "right"}},
        {"options": '["A. left", "B. right"]'},
        {"options": "['left', 'right']", "conversations": None, "id": None},
    ],
)
def test_options_are_those_that_the_evaluation_asks(tmp_path: Path, form: dict[str, Any]) -> None:
    """Parquet fills structs and columns with None, which is no option: chance is one half."""
    row = {"id": "x", "question": "Which way?", "answer": "B", **form}
    (item,) = read_questions(write(tmp_path / "a.jsonl", [row])).items
    assert (item.options, item.answer) == (("left", "right"), 1)
    assert item.id in ("x", "question 1")


def test_a_parquet_struct_of_nothing_is_an_open_question(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is missing: fourdthinker[eval]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: fourdthinker[eval]")
    rows = [
        {"question": "Which way?", "options": options, "answer": "A"}
        for options in ({"A": "x", "B": "y", "C": "z"}, {"A": "x", "B": "y"}, {"C": None})
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    file = read_questions(tmp_path / "a.parquet")
    assert [item.options for item in file.items] == [("x", "y", "z"), ("x", "y")]
    assert file.open_questions == 1


def test_an_answer_that_is_a_text_wins_over_a_letter(tmp_path: Path) -> None:
    entry = {**VLM4D, "choices": {"A": "B", "B": "A"}, "answer": "A"}
    (item,) = read_questions(write(tmp_path / "a.json", [entry])).items
    assert item.options[item.answer] == "A"


def test_two_options_of_the_right_text_are_both_right(tmp_path: Path) -> None:
    entry = {**VLM4D, "choices": {"A": "left", "B": "up", "C": "left"}, "answer": "left"}
    (item,) = read_questions(write(tmp_path / "a.json", [entry])).items
    assert item.right == (True, False, True)


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("a.jsonl", [DIFT, OPEN, RL], [DIFT, OPEN]),
        ("a.json", [VLM4D, DYN, {**VLM4D, "id": "é"}], [VLM4D, DYN]),
        ("a.json", {"x": [DSR, DSR], "y": [DSR]}, {"x": [DSR, DSR]}),
    ],
)
def test_a_file_is_written_in_its_own_form(tmp_path: Path, name: str, value: object, left: object) -> None:
    file = read_questions(write(tmp_path / name, value))
    out = tmp_path / f"out{Path(name).suffix}"
    write_without(file, [2], out)
    text = out.read_text(encoding="utf-8")
    assert (
        [json.loads(line) for line in text.splitlines()] if name == "a.jsonl" else json.loads(text)
    ) == left
    assert read_questions(out).items == file.items[: len(read_questions(out).items)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{**RL, "Correct": "D"}], r"a\.jsonl:1: the answer 'D' is no option; options are A\. left"),
        ([RL, {**RL, "Correct": None}], r"a\.jsonl:2: no answer; name the right option"),
        ([{"id": "x", **OPTIONS}], r"a\.jsonl:1: no question; its text belongs under"),
        ([{**PLAIN, "options": {"A": "x"}}], "number of options: 1; give 2 to 26"),
        ([{**PLAIN, "options": 3}], "options are 3; give an object"),
        ([{**PLAIN, "options": "left or right"}], "no list in JSON or Python"),
        ([{**MLLM, "conversations": 1}], r"'conversations' is 1; it must be a list of turns"),
        ([{**MLLM, "conversations": [{"from": ["x"]}]}], "holds no turn of the user"),
        ([OPEN], "no question has options"),
        ([[1]], r"a\.jsonl:1: a JSON list, not an object|question 1: a JSON int"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, value: list[object], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_questions(write(tmp_path / "a.jsonl", value))


def test_other_files_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "a.jsonl"
    bad.write_text(json.dumps(RL) + "\n{nonsense\n")
    with pytest.raises(RecordError, match=r"a\.jsonl:2: malformed JSON"):
        read_questions(bad)
    bad.write_text("[" * 200_000)
    with pytest.raises(RecordError, match=r"a\.jsonl:1: malformed JSON \(nested deeper than 100"):
        read_questions(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="not UTF-8 at byte 0"):
        read_questions(bad)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "none.json")
