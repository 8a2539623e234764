"""Records: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
import os
import string
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.errors import ConfigError, FourdError, RecordError
from fourdthinker.frames import FramePolicy
from fourdthinker.records import Record, options_in, read_media, read_records, write_records
from tests.clips import make_clip

DIFT: dict[str, Any] = {
    "id": "one",
    "text_input": "Which way?\n\nA. left\nB. right",
    "text_output": "<think>a <output_image> b</think>\n<answer>\nB. right\n</answer>",
    "image_input": ["a.jpg", "b.jpg"],
    "image_output": ["o.png"],
}
RL: dict[str, Any] = {
    "video_path": "v.mp4",
    "Question": "Which way?",
    "A": "left",
    "B": "right",
    "Correct": "B",
}
SFT: dict[str, Any] = {
    "video": "v.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nHow far?"},
        {"from": "gpt", "value": "Two metres."},
    ],
}
RFT: dict[str, Any] = {
    "video": "v.mp4",
    "conversations": [{"from": "user", "value": "<video>\nWhich way?\nA. left\nB. right"}],
    "solution": [{"answer": "B. right", "camera_center": None, "object_center": [[0, 1, 2]]}],
}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A media root with files that exist but are not decoded by most tests."""
    for name in ("a.jpg", "b.jpg", "o.png", "v.mp4", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.mp4").touch()
    return tmp_path


def read(folder: Path, *lines: Any, **options: Any) -> list[Record]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text + "\n", encoding="utf-8")
    return read_records(folder / "data.jsonl", **options)


def test_dift(media: Path) -> None:
    (record,) = read(media, DIFT)
    assert record == Record(
        "dift",
        "one",
        DIFT["text_input"],
        {"A": "left", "B": "right"},
        "B",
        DIFT["text_output"],
        frames=[str(media / "a.jpg"), str(media / "b.jpg")],
        images=[str(media / "o.png")],
        where=f"{media / 'data.jsonl'}:1",
    )


def test_dift_variants(media: Path) -> None:
    video = {k: v for k, v in DIFT.items() if k != "image_input"} | {"video": "v.mp4", "start": 1, "end": 2.5}
    still, folder, none, records = read(
        media,
        DIFT | {"image_input": "a.jpg", "image_output": "o.png"},
        DIFT | {"image_input": "sub"},
        {k: v for k, v in DIFT.items() if k != "image_output"} | {"text_output": "Words."},
        video,
    )
    assert (still.separate, still.frames) == (True, [str(media / "a.jpg")])
    assert (folder.separate, folder.frames) == (False, [str(media / "sub" / "c.jpg")])
    assert (none.images, none.answer) == ([], None)
    assert (records.video, records.start, records.end) == (str(media / "v.mp4"), 1.0, 2.5)


@pytest.mark.parametrize("label", ["B", "b", "(B)", "B.", "B. right", "b) Right", "right", " RIGHT "])
def test_rl_answers(media: Path, label: str) -> None:
    (record,) = read(media, RL | {"Correct": label})
    assert (record.kind, record.answer, record.options) == ("rl", "B", {"A": "left", "B": "right"})
    assert record.id == "data.jsonl:1"


@pytest.mark.parametrize("number", [2, 3, 8, 26])
def test_number_of_options(media: Path, number: int) -> None:
    options = {string.ascii_uppercase[k]: f"text {k}" for k in range(number)}
    plain = {"frame_paths": ["a.jpg"], "Question": "Which?"}
    lettered, nested = read(
        media, plain | options | {"Correct": "B"}, plain | {"options": options, "answer": "text 1"}
    )
    assert lettered.options == nested.options == options
    assert lettered.answer == nested.answer == "B"


def test_several_videos_and_pictures_or_none(media: Path) -> None:
    plain = without(RL, "video_path")
    lines = [
        RL | {"video_path": ["v.mp4", "v.mp4"], "images": ["b.jpg", "a.jpg"]},
        RL | {"video_path": ["v.mp4"]},
        plain | {"images": "a.jpg"},
        plain,
    ]
    mixed, one, pictures, text = read(media, *lines)
    root = Path(os.path.realpath(media))
    kinds = [("video", "v.mp4"), ("video", "v.mp4"), ("image", "b.jpg"), ("image", "a.jpg")]
    assert mixed.media == [(kind, str(root / name)) for kind, name in kinds]
    assert (one.video, one.media) == (str(root / "v.mp4"), [])
    assert (pictures.frames, pictures.separate) == ([str(root / "a.jpg")], True)
    assert (text.video, text.frames, text.media) == (None, None, [])
    write_records(media / "again.jsonl", [mixed, one, pictures, text])
    again = read_records(media / "again.jsonl", kind="rl")
    for before, after in zip((mixed, one, pictures, text), again, strict=True):
        assert (after.video, after.frames, after.separate) == (before.video, before.frames, before.separate)
        assert after.media == before.media


def test_mllm4d(media: Path) -> None:
    sft, rft, image, text = read(
        media,
        SFT,
        RFT,
        {
            "image": ["a.jpg", "b.jpg"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "<image><image> Same?"},
                {"from": "gpt", "value": "Yes."},
            ],
            "num_tokens": 9,
        },
        {"conversations": [{"from": "user", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]},
    )
    assert (sft.kind, sft.question, sft.text_output) == ("dift", "How far?", "Two metres.")
    assert (rft.kind, rft.question, rft.answer) == ("rl", "Which way?\nA. left\nB. right", "B")
    assert rft.extra["solution"] == RFT["solution"]
    assert (image.separate, image.system, image.question) == (True, "Be brief.", "Same?")
    assert text.video is None
    assert text.frames is None


def test_superset_keys_are_kept(media: Path) -> None:
    extra = {"source": "corpus", "bbox": [0, 0.1, 0.5, 1]}
    (record,) = read(media, DIFT | extra | {"type": "object", "seconds": [0, 0.5], "fps": 2, "answer": "B"})
    assert record.extra == extra
    assert (record.type, record.seconds, record.fps, record.answer) == ("object", [0.0, 0.5], 2.0, "B")
    (record,) = read(media, RL | {"seconds": 3.5})
    assert (record.seconds, record.extra) == (None, {"seconds": 3.5})


def test_keys_under_extra_may_be_any(media: Path) -> None:
    (record,) = read(media, RL | {"extra": {"depth": [1.5, None], "id": "mine"}})
    assert record.extra["extra"] == {"depth": [1.5, None], "id": "mine"}
    write_records(media / "written.jsonl", [record])
    assert read_records(media / "written.jsonl")[0].extra == record.extra
    with pytest.raises(RecordError, match=r"'extra' .*an object, whose keys may be any"):
        read(media, RL | {"extra": [1]})


def test_kind_says_what_records_are_for(media: Path) -> None:
    (record,) = read(media, DIFT, kind="rl")
    assert (record.kind, record.answer) == ("rl", "B")
    with pytest.raises(RecordError, match="missing key 'text_output'"):
        read(media, RL, kind="dift")
    with pytest.raises(RecordError, match="missing key 'answer'"):
        read(media, SFT, kind="rl")
    assert read(media, RFT, kind="rl")[0].kind == "rl"


def test_open_questions_are_reinforced_with_an_answer_or_without(media: Path) -> None:
    asked = {"Question": "What is 2 + 2?"}
    lines = [asked | {"answer": "4"}, asked, asked | {"id": "x", "answer": "B", "extra": {"depth": 2}}]
    records = read(media, *lines, kind="rl")
    assert [(one.kind, one.options, one.answer) for one in records] == [
        ("rl", {}, answer) for answer in ("4", None, "B")
    ]
    write_records(media / "out.jsonl", records)
    assert [one.answer for one in read_records(media / "out.jsonl", kind="rl")] == ["4", None, "B"]
    solved = RFT | {"conversations": [{"from": "human", "value": "<video> How far?"}]}
    (record,) = read(media, solved | {"solution": [{"answer": "2 m"}]}, kind="rl")
    assert (record.options, record.answer) == ({}, "2 m")


@pytest.mark.parametrize("options", [{}, {"options": {"A": "2 m", "B": "3 m"}}])
def test_a_solution_is_written_so_that_it_is_read_back(media: Path, options: dict[str, Any]) -> None:
    solved: dict[str, Any] = {"conversations": [{"from": "human", "value": "How far?"}], **options}
    solved |= {"solution": [{"answer": "2 m", "camera_center": None, "object_center": [[0, 0, 1]]}]}
    records = read(media, solved, kind="rl")
    write_records(media / "out.jsonl", records)
    for kind in (None, "rl"):
        (again,) = read_records(media / "out.jsonl", kind=kind)
        assert (again.options, again.answer) == (records[0].options, records[0].answer)
        assert again.extra == {"solution": solved["solution"]}
    written = json.loads((media / "out.jsonl").read_text())
    wrong = written | ({"Correct": "B"} if options else {"answer": "3 m"})
    with pytest.raises(RecordError, match=r"'solution' says .*; one of them is wrong"):
        read(media, wrong)
    (bare,) = read(media, without(written, "Correct", "answer"), kind="rl")
    assert bare.answer == records[0].answer


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return SFT | {"conversations": [{"from": role, "value": text} for role, text in pairs]}


BAD: list[tuple[Any, str]] = [
    ('{"id": ', "malformed JSON"),
    ("[" * 5000, "malformed JSON"),
    ('{"id": NaN}', "NaN is no JSON number"),
    ('{"id": 1, "id": 2}', "'id' appears twice"),
    ([DIFT], "a JSON list, not an object"),
    ({"text": "x"}, "missing key 'text_input'"),
    (without(DIFT, "text_output"), "missing key 'text_output'"),
    (without(DIFT, "text_input"), "missing key 'text_input'"),
    (without(DIFT, "image_input"), "missing key 'image_input'"),
    (without(RL, "Correct"), "missing key 'Correct'"),
    (
        without(RL, "A", "B"),
        "missing key 'A'; 'Correct' is an option.* open question write the 'answer'",
    ),
    (without(RL, "A", "B", "Correct") | {"answer": 4}, r"key 'answer' is 4 \(int\)"),
    (without(RL, "A", "B", "Correct") | {"answer": " "}, "key 'answer' is ' '"),
    (DIFT | {"image_outputs": []}, "unknown key 'image_outputs' .* did you mean 'image_output'"),
    (RL | {"xyz": 1}, "unknown key 'xyz' in a 4DRL record; its keys are"),
    (DIFT | {"text_input": 3}, r"key 'text_input' is 3 \(int\); it must be a text"),
    (DIFT | {"text_output": " "}, "key 'text_output' is ' '"),
    (DIFT | {"image_input": [1]}, "key 'image_input'"),
    (DIFT | {"image_input": {}}, "key 'image_input'"),
    (DIFT | {"image_input": []}, "zero frames"),
    (DIFT | {"video": "v.mp4"}, "both 'video' and 'image_input'"),
    (DIFT | {"id": True}, "key 'id'"),
    (DIFT | {"image_input": ["none.jpg"]}, "key 'image_input': 'none.jpg' does not exist"),
    (DIFT | {"image_output": ["none.jpg"]}, "key 'image_output': 'none.jpg' does not exist"),
    (RL | {"video_path": "empty.mp4"}, "'empty.mp4' is empty"),
    (RL | {"video_path": "sub"}, "is not a file"),
    (RL | {"video_path": "a\0b"}, "it must be a path"),
    (RL | {"video_path": []}, "'video_path' is an empty list"),
    (RL | {"video_path": ["v.mp4"], "frame_paths": ["a.jpg"]}, "both 'video_path' and 'frame_paths'"),
    (RL | {"images": ["a.jpg"], "frame_paths": ["a.jpg"]}, "both 'frame_paths' and 'images'"),
    (RL | {"images": []}, "'images' is an empty list"),
    (RL | {"video_path": "../outside.mp4"}, "'../outside.mp4' lies outside media_root"),
    (RL | {"video_path": "sub/../../outside.mp4"}, "lies outside media_root"),
    (RL | {"video_path": "/etc/hostname"}, "lies outside media_root"),
    (RL | {"video_path": "link.mp4"}, "'link.mp4' lies outside media_root"),
    (RL | {"video_path": "linked/outside.mp4"}, "lies outside media_root"),
    (DIFT | {"image_output": []}, "text_output has 1 <output_image> and 'image_output' 0 overlays"),
    (DIFT | {"image_output": ["o.png", "o.png"]}, "2 overlays"),
    (RL | {"Correct": "C"}, "key 'Correct': the answer 'C' is no option; options are A. left, B. right"),
    (RL | {"Correct": "up"}, "the answer 'up' is no option"),
    (RL | {"Correct": "A. right"}, "is no option"),
    (RL | {"Correct": 1}, "key 'Correct' is 1"),
    (RL | {"D": "up"}, "options are lettered A, B, D"),
    (RL | {"B": "Left "}, "two options have the same text"),
    (RL | {"options": {"A": "up", "B": "down"}}, "keep one"),
    (RL | {"Question": "Which?\nA. right\nB. left"}, "make them agree"),
    (without(RL, "A", "B") | {"options": ["left"]}, "an object of letters and texts"),
    (DIFT | {"answer": "A"}, "'answer' is A and text_output answers B"),
    (DIFT | {"text_input": "No options?", "answer": "A"}, "missing key 'options'"),
    (DIFT | {"text_output": "<output_image> <answer>up</answer>"}, "'up' is no option"),
    (DIFT | {"text_input": "x <|im_end|>"}, r"'text_input' holds '<\|im_end\|>'.*remove it"),
    (DIFT | {"text_output": "<|latent_pad|><output_image>"}, "'text_output' holds"),
    (RL | {"A": "<|video_pad|>"}, "holds"),
    (RL | {"Question": "<output_image>?"}, "placeholders belong into text_output only"),
    (json.dumps(RL).replace("Which", "\\ud800"), "half of a surrogate pair"),
    (RL | {"start": 2, "end": 1}, "end must be later than start"),
    (RL | {"start": "2"}, "key 'start' is '2'"),
    (RL | {"start": True}, "key 'start'"),
    (DIFT | {"start": 1}, "cut a video"),
    (RL | {"fps": 0}, "a number above 0"),
    (RL | {"fps": 10**400}, "an integer of 401 digits is beyond"),
    (RL | {"start": -(10**400)}, "an integer of 402 digits is beyond"),
    ('{"id": "a", "fps": 1e999}', "the number 1e999 is beyond the range of a float"),
    (RL | {"video_path": "\ud800.mp4"}, "'video_path' holds half of a surrogate pair"),
    (RL | {"id": "\udfff"}, "'id' holds half of a surrogate pair"),
    (DIFT | {"seconds": [0]}, "one time for each of the 2 frames"),
    (DIFT | {"seconds": [1, 1]}, "increasing"),
    (RL | {"bbox": [0, 0, 1]}, "fractions"),
    (RL | {"bbox": [0.5, 0, 0.2, 1]}, "fractions"),
    (RL | {"bbox": "all"}, "fractions"),
    (RL | {"bbox": [False, 0, True, 1]}, "fractions"),
    (SFT | {"conversations": "hello"}, "key 'conversations' is 'hello'"),
    (SFT | {"conversations": [{"from": "user"}]}, "with texts"),
    (turns(("user", "<video>?")), "no turn of gpt"),
    (turns(("bot", "x")), "from 'bot' is no role"),
    (turns(("gpt", "x"), ("user", "<video>?")), "in this order"),
    (turns(("user", "How far?"), ("gpt", "x")), "0 <video> for 1 files"),
    (turns(("user", "<video><image> How far?"), ("gpt", "x")), "1 <image> for 0 files"),
    (turns(("user", "<video>"), ("gpt", "x")), "no question"),
    (turns(("user", "<video> x"), ("gpt", "<output_image>")), "0 overlays"),
    (RFT | {"solution": []}, "key 'solution'"),
    (RFT | {"solution": [{"answer": 3}]}, "key 'solution'"),
    (RFT | {"solution": [{"answer": "up"}]}, "key 'solution': the answer 'up' is no option"),
    (
        RFT | {"solution": [{"answer": "A", "camera_center": [0, 0, 0]}]},
        "'camera_center' is .*list of points",
    ),
    (RFT | {"solution": [{"answer": "A", "object_center": [[0, "x", 0]]}]}, "'object_center' is .*points"),
    (RFT | {"solution": [{"answer": "A", "object_center": "[0, 0, 0]"}]}, "'object_center' is .*points"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=range(len(BAD)))
def test_refused(media: Path, line: Any, words: str) -> None:
    outside = media.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "outside.mp4").write_bytes(b"x")
    (media.parent / "outside.mp4").write_bytes(b"x")
    (media / "link.mp4").symlink_to(outside / "outside.mp4")
    (media / "linked").symlink_to(outside)
    with pytest.raises(RecordError, match=words) as caught:
        read(media, RL, "", line, RL)
    assert str(caught.value).startswith(f"{media / 'data.jsonl'}:3: ")
    with pytest.raises(RecordError):
        read(media, line)


def test_skipped_lines_are_kept_with_their_reason(media: Path, caplog: pytest.LogCaptureFixture) -> None:
    rejected = media / "rejected.jsonl"
    bad = ['{"id": ', RL | {"Correct": "C"}]
    records = read(media, RL, *bad, DIFT, on_bad_record="skip", rejected=rejected)
    assert [record.kind for record in records] == ["rl", "dift"]
    kept = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [entry["where"].rpartition(":")[2] for entry in kept] == ["2", "3"]
    assert "malformed JSON" in kept[0]["reason"]
    assert json.loads(kept[1]["line"]) == bad[1]
    assert "'C' is no option" in caplog.text
    with pytest.raises(RecordError, match="all 2 lines were rejected"):
        read(media, *bad, on_bad_record="skip")


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecordError, match="pipe: no records: the file is empty"):
        read_records(tmp_path / "pipe")


def test_a_pipe_that_somebody_writes_to_is_read(tmp_path):
    """As of `--data <(zcat questions.jsonl.gz)`; the writer takes its time."""
    reader, writer = os.pipe()
    line = json.dumps({"id": "a", "question": "What moves?"}).encode() + b"\n"

    def write():
        with os.fdopen(writer, "wb") as file:
            time.sleep(0.2)
            file.write(line)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        (record,) = read_records(f"/dev/fd/{reader}", kind="ask", media_root=tmp_path)
    os.close(reader)
    assert record.question == "What moves?"


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_path_that_cannot_be_is_named(name):
    with pytest.raises(RecordError, match="is no path of a record file"):
        read_records(name)


def test_files_that_hold_no_records(media: Path) -> None:
    (media / "none.jsonl").write_text("\n \n")
    with pytest.raises(RecordError, match=r"none\.jsonl: no records: the file is empty"):
        read_records(media / "none.jsonl")
    with pytest.raises(RecordError, match=r"missing\.jsonl: the record file cannot be read"):
        read_records(media / "missing.jsonl")
    (media / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(RecordError, match=r"latin\.jsonl:1: malformed JSON .not UTF-8 at byte 8"):
        read_records(media / "latin.jsonl")
    with pytest.raises(ConfigError, match="on_bad_record is 'ignore'"):
        read(media, RL, on_bad_record="ignore")
    with pytest.raises(ConfigError, match="kind is 'sft'"):
        read(media, RL, kind="sft")
    with pytest.raises(ConfigError, match=r"media_root .* is no folder"):
        read(media, RL, media_root=media / "nowhere")


def test_byte_order_mark_and_media_root(media: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("elsewhere") / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RL).encode() + b"\r\n")
    assert read_records(path, media_root=media)[0].video == str(media / "v.mp4")
    with pytest.raises(RecordError, match="does not exist in media_root"):
        read_records(path)
    absolute = RL | {"video_path": str(media / "v.mp4")}
    assert read(media, absolute)[0].video == str(media / "v.mp4")


def test_a_check_makes_lines_bad(media: Path) -> None:
    """As the trainers check media: of all valid records at once."""
    seen: list[list[str]] = []

    def check(records: list[Record]) -> list[str | None]:
        seen.append([record.where[-1] for record in records])
        return [f"{r.where}: v.mp4 is broken" if r.id == "broken" else None for r in records]

    broken, wrong = RL | {"id": "broken"}, RL | {"Correct": "Z"}
    assert len(read(media, RL, RL, check=check)) == 2
    with pytest.raises(RecordError, match=r"data\.jsonl:2: v\.mp4 is broken"):
        read(media, RL, broken, check=check)
    with pytest.raises(RecordError, match="all 1 lines were rejected"):
        read(media, broken, check=check, on_bad_record="skip")
    rejected = media / "rejected.jsonl"
    kept = read(media, broken, wrong, RL, check=check, on_bad_record="skip", rejected=rejected)
    assert [record.where[-1] for record in kept] == ["3"]
    assert seen[-1] == ["1", "3"]
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert sorted(line["where"][-1] for line in lines) == ["1", "2"]
    assert sorted(json.loads(line["line"]).get("id", "") for line in lines) == ["", "broken"]


def test_read_media(media: Path) -> None:
    make_clip(media / "good.mp4", [0, 500, 1000])
    frames = read_media(read(media, RL | {"video_path": "good.mp4", "start": 0.5})[0], FramePolicy(fps=2))
    assert frames is not None
    assert frames.seconds == [0.5, 1.0]
    assert read_media(Record("dift", "x", "?"), FramePolicy()) is None


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Q?\nA. one\nB. two", {"A": "one", "B": "two"}),
        ("Q?\n  A) one two \n\nB) three", {"A": "one two", "B": "three"}),
        ("Q?\nA. one", {}),
        ("Q?\nA. one\nC. two", {}),
        ("A. one B. two", {}),
        ("", {}),
    ],
)
def test_options_in(text: str, options: dict[str, str]) -> None:
    assert options_in(text) == options


words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), min_size=1, max_size=20).filter(
    str.strip
)
choices = st.lists(
    words, min_size=2, max_size=8, unique_by=lambda text: " ".join(text.split()).casefold()
).filter(lambda texts: all(text.split() for text in texts))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), options=choices, question=words, dift=st.booleans(), clip=st.booleans())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,
    options: list[str],
    question: str,
    dift: bool,
    clip: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round"
    folder.mkdir(exist_ok=True)
    for name in ("v.mp4", "a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"x")
    lettered = {"ABCDEFGH"[k]: text for k, text in enumerate(options)}
    record = Record("dift" if dift else "rl", data.draw(words), f"Q {question}".replace("\n", " "), lettered)
    record.answer = data.draw(st.sampled_from(sorted(lettered)))
    record.type = data.draw(st.none() | words)
    record.system = data.draw(st.none() | words)
    record.extra = data.draw(st.sampled_from([{}, {"source": "corpus", "bbox": [0.1, 0.2, 0.3, 1.0]}]))
    if clip:
        record.video, record.start = str(folder / "v.mp4"), data.draw(st.none() | st.floats(0, 9))
    else:
        record.frames, record.seconds = [str(folder / n) for n in ("a.jpg", "b.jpg")], [0.0, 0.4]
    if dift:
        record.text_output = data.draw(words) + "<output_image>" + data.draw(words)
        record.images = [str(folder / "a.jpg")]
    if options_in(record.question):
        return
    write_records(folder / "data.jsonl", [record, record])
    again = read_records(folder / "data.jsonl")
    for number, found in enumerate(again, 1):
        assert found.where == f"{folder / 'data.jsonl'}:{number}"
        found.where = record.where
        assert found == record


def test_writing_is_all_or_nothing(media: Path) -> None:
    record = read(media, RL)[0]
    write_records(media / "out.jsonl", [record])
    assert json.loads((media / "out.jsonl").read_text())["video_path"] == "v.mp4"
    bad = Record("rl", "x", "Which?", options=record.options, frames=record.frames)
    with pytest.raises(RecordError, match="has options and no answer"):
        write_records(media / "out.jsonl", [record, bad])
    assert len(read_records(media / "out.jsonl")) == 1
    assert not list(media.glob(".out*"))
    with pytest.raises(FourdError, match="separate pictures"):
        write_records(media / "out.jsonl", [Record("dift", "x", "?", frames=["a", "b"], separate=True)])
    (media / "sub" / "far.jsonl").parent.mkdir(exist_ok=True)
    write_records(media / "sub" / "far.jsonl", [record])
    assert read_records(media / "sub" / "far.jsonl", media_root=media)[0].video == record.video


def test_a_later_reading_leaves_out_what_the_first_did(media: Path) -> None:
    lines = [json.dumps(RL | {"id": str(i)}) for i in range(3)]
    (media / "later.jsonl").write_text("\n".join(lines))
    (media / RL["video_path"]).unlink()
    kept = read_records(media / "later.jsonl", left_out=[lines[1]])
    assert [record.id for record in kept] == ["0", "2"]
    with pytest.raises(RecordError, match="does not exist"):
        read_records(media / "later.jsonl")
