"""Conversations: turns, and which clip or picture stands where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import RecordError
from fourdthinker.records import Record, read_records, write_records


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "o.png", "v.mp4", "w.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def line(*texts: str, **keys: Any) -> dict[str, Any]:
    """A record whose turns are the user's and the assistant's by turns."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns} | keys


def read(folder: Path, data: dict[str, Any], **options: Any) -> Record:
    (folder / "data.jsonl").write_text(json.dumps(data) + "\n")
    (record,) = read_records(folder / "data.jsonl", **options)
    return record


def test_turns_in_order_and_the_first_as_question_and_answer(media: Path) -> None:
    data = line("<video>\nHow far?", "Two metres.", " And now? ", "Three.", video="v.mp4")
    data["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    record = read(media, data, kind="dift")
    assert (record.kind, record.system, record.question) == ("dift", "Be brief.", "How far?")
    assert record.text_output == "Two metres."
    assert record.turns == [
        ("user", "<video>\nHow far?"), ("assistant", "Two metres."), ("user", " And now? "),
        ("assistant", "Three."),
    ]  # fmt: skip
    assert (record.video, record.media, record.media_paths) == (str(media / "v.mp4"), [], [record.video])


def test_clips_and_pictures_take_the_placeholders_of_their_kind(media: Path) -> None:
    data = line(
        "<image> first, then <video>", "Yes.", "<video> Like <image>?", "No.",
        video=["w.mp4", "v.mp4"], image=["b.jpg", "a.jpg"],
    )  # fmt: skip
    record = read(media, data)
    names = [(kind, Path(path).name) for kind, path in record.media]
    assert names == [("image", "b.jpg"), ("video", "w.mp4"), ("video", "v.mp4"), ("image", "a.jpg")]
    assert (record.video, record.frames, record.question) == (None, None, "first, then")
    assert record.media_paths == [path for _, path in record.media]
    images = read(media, line("Is <image> like <image>?", "Yes.", image=["a.jpg", "b.jpg"]))
    assert (images.separate, [Path(p).name for p in images.frames or ()]) == (True, ["a.jpg", "b.jpg"])
    assert images.question == "Is like ?"


def test_a_question_to_reinforce_keeps_its_turn_where_pictures_stand_within(media: Path) -> None:
    solution = {"solution": [{"answer": "one"}]}
    before = read(media, line("<video> <video>\nWhich?", video=["v.mp4", "w.mp4"], **solution), kind="rl")
    within = read(media, line("In <video> which?", video="v.mp4", **solution), kind="rl")
    plain = read(media, line("<video>\nWhich?", video="v.mp4", **solution), kind="rl")
    assert [len(record.turns) for record in (before, within, plain)] == [1, 1, 0]
    assert [kind for kind, _ in before.media] == ["video", "video"]
    assert within.video == plain.video == str(media / "v.mp4")


def test_blocks_may_stand_in_every_answer(media: Path) -> None:
    data = line("Hm?", "<output_image> so.", "And?", "Then <output_image>.", image_output=["o.png", "a.jpg"])
    assert [Path(path).name for path in read(media, data).images] == ["o.png", "a.jpg"]


@pytest.mark.parametrize(
    "data",
    [
        line("<video>\nHow far?", "Two.", "And?", "<output_image> 3.", video="v.mp4", image_output="o.png"),
        line("<image> then <video>", "Yes.", video="v.mp4", image="a.jpg", system="Brief.", type="order"),
        line("Hello?", "Hello.", num_tokens=9.0),
        line("<image>Which?\nA. up\nB. down", "<answer>A</answer>", image=["a.jpg"], id="x"),
        line("<image>Which?\nA. up\nB. down", "It is up.", image=["a.jpg"], answer="A"),
        line("<image> Which?\nA. up\nB. <image>", image=["a.jpg", "b.jpg"], solution=[{"answer": "A"}]),
        line("<image><image>?", "x", image=["a.jpg", "b.jpg"], seconds=[0.5, 1.5], fps=2.0),
    ],
)
def test_what_is_written_is_read_back(media: Path, data: dict[str, Any]) -> None:
    record = read(media, data)
    write_records(media / "written.jsonl", [record])
    (back,) = read_records(media / "written.jsonl")
    record.where = back.where
    assert back == record


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (line("Hm?", "x", "y"), "no turn of gpt after the user's last"),
        (line("Hm?", "x", "y", solution=[{"answer": "z"}]), "one record a question"),
        (line("Hm?", " "), "no turn of gpt may be blank"),
        (line("Hm?", "x", "<image>", "y", image="a.jpg"), "holds no question"),
        (line("Hm?", "<image>"), "<video> or <image> in a turn of assistant"),
        (line("<image> <video>?", "x", image="a.jpg"), "1 <video> for 0 files"),
        (line("<video>?", "x", video=["v.mp4", "w.mp4"]), "1 <video> for 2 files"),
        (line("Hm?", "x", video=[]), "'video' is an empty list"),
        (line("Hm?", "<output_image>"), "conversations has 1 <output_image> and 'image_output' 0 overlays"),
        (line("<video><video>?", "x", video=["v.mp4", "w.mp4"], start=1), "cut a video"),
        (line("Hm?", "x", "And?", "y", options={"A": "x", "B": "y"}), "this conversation asks several"),
        (line("Hm?", "x", "And?", "y", answer="x"), "this conversation asks several"),
        (line("Hm?", "x", answer="x"), "an answer needs options"),
        (line("Hm?\nA. x\nB. y", solution=[{"answer": "A"}], answer="B"), "B and 'solution' says A"),
        (line("Hm?", solution=[{"answer": "A"}], answer="B"), "an answer needs options"),
    ],
)
def test_refused(media: Path, data: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError, match=words):
        read(media, data)


def test_several_turns_are_no_question(media: Path) -> None:
    with pytest.raises(RecordError, match="several turns is for fine-tuning alone"):
        read(media, line("Hm?", "x", "And?", "y"), kind="ask")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": ["a.jpg", "b.jpg"]}, "d:1: frames of a clip have no place in a conversation"),
        ({"options": {"A": "x", "B": "y"}, "answer": "A"}, "d:1: options and answer have no place"),
    ],
)
def test_what_a_conversation_cannot_hold_is_not_written(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    turns = [("user", "Hm?"), ("assistant", "x"), ("user", "And?"), ("assistant", "y")]
    with pytest.raises(RecordError, match=words):
        write_records(tmp_path / "d.jsonl", [Record("dift", "r", "Hm?", turns=turns, where="d:1", **change)])
