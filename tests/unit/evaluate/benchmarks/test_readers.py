"""Readers of benchmarks, on small files of the published forms, and on a published file where it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fourdthinker.cli import main
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate import BENCHMARKS, read_benchmark
from fourdthinker.evaluate.benchmarks.tables import read_rows
from fourdthinker.records import options_of, source_of
from tests.shared import needs, shared

URL = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main/"


def parquet(path: Path, rows: list[dict]) -> None:
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs the extra eval")
    from pyarrow import parquet as writer

    writer.write_table(pa.Table.from_pylist(rows), path)


def table(path: Path, rows: list[dict], separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def video(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return str(path)


DSR = {
    "videoID": "abc", "question": "Which way?", "options": ["A. Front|Left", "B. Behind", "C. Up", "D. Down"],
    "answer": "B", "type": "abs_dir",
}  # fmt: skip


def test_dsr_parquet(tmp_path):
    parquet(
        tmp_path / "benchmark.parquet", [DSR, DSR | {"videoID": "gone", "answer": "D", "type": "non_temp"}]
    )
    there = video(tmp_path / "videos" / "abc.mp4")
    data = read_benchmark("dsr", tmp_path)
    first, second = data.records
    assert first.options == {"A": "Front|Left", "B": "Behind", "C": "Up", "D": "Down"}
    assert (first.id, first.answer, first.type, first.video) == ("abc/1", "B", "abs_dir", there)
    assert second.video == str(tmp_path / "gone.mp4")
    assert data.missing == [second.video]  # it stays among the records, and so in the denominator
    assert data.notes == ["2 questions, where DSR-Bench has 1,450 or 1,484"]


@pytest.mark.parametrize(
    "options", [json.dumps(DSR["options"]), repr(DSR["options"])], ids=["json", "python"]
)
def test_easi_tsv(tmp_path, options):
    row = {"index": 7, "video": "v/abc.mp4", "question": 'Say "why"?\nNow', "options": options, "answer": "C"}
    table(tmp_path / "DSRBench.tsv", [row | {"task_type": "rel_spd"}], "\t")
    [record] = read_benchmark("dsr", tmp_path).records
    assert (record.id, record.answer, record.type) == ("v/abc.mp4/7", "C", "rel_spd")
    assert list(record.options.values()) == ["Front|Left", "Behind", "Up", "Down"]
    assert record.question == 'Say "why"?\nNow'


def vlm4d(number: int, **keys: object) -> dict:
    return {
        "id": f"validation_{number}", "video": f"{URL}videos_real/davis/{number}.mp4",
        "question_type": "multiple-choice", "question": "How often?", "answer": 1,
        "choices": {"A": 1, "B": 2, "C": 3, "D": 0}, **keys,
    }  # fmt: skip


def test_vlm4d(tmp_path):
    letters = {"A": "B", "B": "C", "C": "A", "D": "D"}
    bad = {"A": "not sure", "B": "not moving", "C": "away from the camera", "D": "away from the camera"}
    write(
        tmp_path / "real_mc.json",
        [
            vlm4d(1),
            vlm4d(633, choices=bad, answer="away from the camera"),
            vlm4d(923, choices=letters, answer="A"),  # the text, which is also the letter of another option
        ],
    )
    some = {"A": "left", "B": "right", "C": "No cars are there", "D": "up"}
    write(
        tmp_path / "synthetic_mc.json",
        [vlm4d(1, choices=some, answer="No cars are there"), vlm4d(2, choices=some, answer="right")],
    )
    there = video(tmp_path / "videos_real" / "davis" / "1.mp4")
    data = read_benchmark("vlm4d", tmp_path)
    assert [(r.id, r.type, r.answer) for r in data.records] == [
        ("real/validation_1", "real exo", "A"),
        ("real/validation_923", "real ego", "C"),
        ("synthetic/validation_1", "synthetic false positive", "C"),
        ("synthetic/validation_2", "synthetic directional", "B"),
    ]
    assert data.records[0].options["D"] == "0"
    assert data.records[0].video == there
    assert list(data.left_out) == ["real/validation_633"]


@needs("benchmarks")
def test_vlm4d_as_published():
    data = read_benchmark("vlm4d", shared("benchmarks") / "vlm4d_real.json")
    assert len(data.records) == 1370
    assert list(data.left_out) == ["real/validation_633"]
    assert len({r.video for r in data.records} | {"seasnake"}) >= 600
    assert sum(r.type == "real ego" for r in data.records) == 449
    assert data.notes == []
    raw = {f"real/{row['id']}": row for row in json.loads(data.files[0].read_text())}
    assert all(r.options[r.answer] == str(raw[r.id]["answer"]).strip() for r in data.records)


def test_mllm4d(tmp_path):
    write(tmp_path / "bench.json", [vlm4d(1, video="a.mp4")])
    [record] = read_benchmark("mllm4d", tmp_path).records
    assert (record.id, record.type, record.video) == (
        "validation_1", "multiple-choice", str(tmp_path / "a.mp4"),
    )  # fmt: skip


def test_dyn(tmp_path):
    question = {"question": "Which way?", "options": ["A. left", "B. right"], "answer": "B"}
    for kind in ("cameraqa", "qa", "sceneqa"):
        write(tmp_path / "multi_json" / "davis" / f"the_bear_{kind}.json", [question, question])
    for k in (2, 1):
        video(tmp_path / "frames" / "davis" / "the_bear" / f"frame_000{k}.jpg")
    data = read_benchmark("dyn", tmp_path)
    assert [r.type for r in data.records] == ["camera-object", "inter-object", "object-scene"][:1]
    assert data.left_out["davis/the_bear/qa/1"] == "the same question as davis/the_bear/cameraqa/1"
    assert [Path(f).name for f in data.records[0].frames] == ["frame_0001.jpg", "frame_0002.jpg"]


def test_dyn_as_parquet(tmp_path):
    row = {"dataset": "davis", "question": "Which way?", "options": "['A. left', 'B. right']", "answer": "B"}
    rows = [
        row | {"video_name": "bear", "task": "cameraqa"},
        row | {"video_name": "davis/car.mp4", "task": "qa"},
        row | {"video_name": "gone", "task": "sceneqa"},
        row | {"video_name": "bear", "task": "cameraqa", "question": "And then?"},
    ]
    parquet(tmp_path / "qa_tasks.parquet", rows)
    parquet(tmp_path / "mask_tasks.parquet", [{"dataset": "davis"}])
    frame = video(tmp_path / "frames" / "davis" / "bear" / "frame_0000.jpg")
    car = video(tmp_path / "videos" / "davis" / "car.mp4")
    data = read_benchmark("dyn", tmp_path)
    assert [r.id for r in data.records] == [
        "davis/bear/cameraqa/1", "davis/car/qa/1", "davis/gone/sceneqa/1", "davis/bear/cameraqa/2",
    ]  # fmt: skip
    assert [r.type for r in data.records[:3]] == ["camera-object", "inter-object", "object-scene"]
    assert (data.records[0].frames, data.records[1].video) == ([frame], car)
    assert data.missing == [str(tmp_path / "frames" / "davis" / "gone")]
    assert data.records[0].options == {"A": "left", "B": "right"}
    parquet(tmp_path / "qa_tasks.parquet", [row | {"video_name": "../bear", "task": "qa"}])
    with pytest.raises(RecordError, match=r"row 1: the video is '../bear'; it must be the name"):
        read_benchmark("dyn", tmp_path)


VSI = {"id": 0, "dataset": "scannet", "scene_name": "s1", "question": "How many chairs?"}


def test_vsi(tmp_path):
    parquet(
        tmp_path / "test-00000-of-00001.parquet",
        [
            VSI | {"question_type": "object_counting", "options": None, "ground_truth": "4"},
            VSI
            | {
                "id": 1,
                "question_type": "object_rel_direction_hard",
                "options": ["A. left", "B. right"],
                "ground_truth": "B",
            },
        ],
    )
    number, choice = read_benchmark("vsi", tmp_path).records
    assert (number.options, number.answer) == ({}, "4")
    assert number.question.startswith("How many chairs?\n\nThere are no options")
    assert (choice.options, choice.answer) == ({"A": "left", "B": "right"}, "B")
    assert choice.video == str(tmp_path / "scannet" / "s1.mp4")


def test_vsti(tmp_path):
    row = VSI | {"video_path": "scannet/videos/s1.mp4", "frame_indices": [0, 5]}
    parquet(
        tmp_path / "test.parquet",
        [
            row
            | {
                "question_type": "camera_movement_direction",
                "options": ["A. Forward", "B. Left"],
                "ground_truth": "Left",
                "mc_answer": "B",
            },
            row
            | {
                "id": 1,
                "question_type": "camera_displacement",
                "options": None,
                "ground_truth": "1.5",
                "mc_answer": None,
            },
        ],
    )
    choice, number = read_benchmark("vsti", tmp_path).records
    assert (choice.answer, number.answer) == ("B", "1.5")
    assert choice.video == str(tmp_path / "scannet" / "videos" / "s1.mp4")


def test_sti(tmp_path):
    row = {
        "ID": 3, "Video": "a.mp4", "Candidates": json.dumps(dict(zip("ABCDE", "vwxyz", strict=True))),
        "Question": "How fast?", "Answer": "E", "time_start": 1.5, "time_end": 4.0, "Scene": "indoor",
        "Task": "Speed & Acceleration",
    }  # fmt: skip
    parquet(tmp_path / "qa.parquet", [row])
    video(tmp_path / "video" / "a.mp4")
    [record] = read_benchmark("sti", tmp_path).records
    assert (record.id, record.answer, len(record.options)) == ("3", "E", 5)
    assert record.question == "From 1.5 seconds to 4.0 seconds. How fast?"
    assert record.video.endswith("video/a.mp4")


def test_dsi(tmp_path):
    row = {
        "cate": 1, "relative_path": "x/a.mp4", "video_type": 0, "question": "How does the camera move?",
        "options": "A: left; then up; B: right; C: up; D: down;", "GT": "A", "others": "",
    }  # fmt: skip
    for variant in ("std", "hflip", "reverse", "reverse_hflip"):
        table(tmp_path / "metadatas" / f"{variant}.csv", [row | {"GT": "B" if variant == "hflip" else "A"}])
    data = read_benchmark("dsi", tmp_path)
    assert [r.answer for r in data.records] == ["A", "B", "A", "A"]
    assert data.records[0].options["A"] == "left; then up"
    assert data.records[1].video == str(tmp_path / "videos" / "hflip" / "x" / "a.mp4")
    assert data.twins == {f"{v}/1": "1" for v in ("std", "hflip", "reverse", "reverse_hflip")}
    assert data.records[0].type == "object, moving camera"
    assert {source_of(r) for r in data.records} == {"x/a.mp4"}  # twins are not independent


def test_dsi_rows_that_are_not_twins_are_refused(tmp_path):
    row = {
        "cate": 1, "relative_path": "x/a.mp4", "video_type": 0, "question": "Where to?",
        "options": "A: left; B: right;", "GT": "A", "others": "",
    }  # fmt: skip
    rows = [row, row | {"relative_path": "x/b.mp4", "cate": 2}]

    def files(reverse: list[dict]) -> None:
        for variant in ("std", "hflip", "reverse", "reverse_hflip"):
            table(tmp_path / "metadatas" / f"{variant}.csv", reverse if variant == "reverse" else rows)

    files(rows)
    assert len(read_benchmark("dsi", tmp_path).records) == 8
    files(rows[:1])
    with pytest.raises(RecordError, match=r"not four by four \(std.csv 2, hflip.csv 2, reverse.csv 1,"):
        read_benchmark("dsi", tmp_path)
    files(rows[::-1])
    with pytest.raises(
        RecordError, match=r"reverse.csv: row 1: relative_path is 'x/b.mp4', and 'x/a.mp4' at"
    ):
        read_benchmark("dsi", tmp_path)
    files([row | {"cate": 3}, rows[1]])
    with pytest.raises(RecordError, match=r"reverse.csv: row 1: cate is '3', and '1' at .*std.csv: row 1"):
        read_benchmark("dsi", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "row"),
    [
        ("dsr", "benchmark", DSR),
        ("vsti", "test", VSI | {"question_type": "camera_displacement", "ground_truth": "1.5"}),
        ("vsi", "test", VSI | {"question_type": "object_counting", "ground_truth": "4"}),
    ],
)
def test_all_parts_of_a_table_are_read(tmp_path, name, file, row):
    parts = [tmp_path / "data" / f"{file}-0000{k}-of-00002.parquet" for k in range(2)]
    parts[0].parent.mkdir()
    for k, part in enumerate(parts):
        key = {"videoID": f"v{k}"} if name == "dsr" else {"id": k, "scene_name": f"s{k}"}
        parquet(part, [row | key])
    for path in (tmp_path, parts[1]):
        data = read_benchmark(name, path, tmp_path)
        assert (len(data.records), data.files) == (2, parts)
    parts[0].unlink()
    with pytest.raises(ConfigError, match=f"is one of 2 parts; missing: {file}-00000-of-00002.parquet"):
        read_benchmark(name, tmp_path)


def test_vsti_with_paths_of_the_authors_machine(tmp_path):
    row = VSI | {
        "video_path": "/mnt/data/s1.mp4",
        "question_type": "camera_displacement",
        "ground_truth": "1",
    }
    own = video(tmp_path / "other" / "s1.mp4")
    write(tmp_path / "test.json", [row, row | {"id": 1, "video_path": own}])
    there = video(tmp_path / "videos" / "scannet" / "s1.mp4")
    assert [r.video for r in read_benchmark("vsti", tmp_path).records] == [there, own]


def test_questions_that_are_there_twice(tmp_path):
    write(
        tmp_path / "real_mc.json",
        [
            vlm4d(1),
            vlm4d(2, video=vlm4d(1)["video"]),
            vlm4d(3, answer=3),
            vlm4d(4, video=vlm4d(3)["video"], answer=2),
            vlm4d(5, video=vlm4d(3)["video"], answer=3),
            vlm4d(6),
        ],
    )
    data = read_benchmark("vlm4d", tmp_path)
    assert [r.id for r in data.records] == ["real/validation_1", "real/validation_6"]
    assert data.left_out == {
        "real/validation_2": "the same question as real/validation_1",
        "real/validation_3": "the same question as real/validation_4, with another answer",
        "real/validation_4": "the same question as real/validation_3, with another answer",
        "real/validation_5": "the same question as real/validation_4, with another answer",
    }


def test_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "real_mc.json"
    for row, words in (
        (vlm4d(1, answer=9), "the answer '9' is no option"),
        (vlm4d(1, video="../../etc/passwd"), "leads out of"),
        (vlm4d(1, video="a\0b"), r"'a\\x00b' is no path"),
        (vlm4d(1, video="a\ud800"), "is no path"),
        (vlm4d(1, question="Which\ud800?"), "half of a surrogate pair"),
        (vlm4d(1, choices={"A": 1}), "number of options: 1; give 2 to 26"),
        (vlm4d(1, choices={"B": 1, "A": 2}), "options are lettered B, A; write 2 to 26: A, B"),
        (vlm4d(1, choices="open()"), "no list in JSON or Python"),
        ({"id": "validation_1"}, "no column 'choices'"),
    ):
        write(path, [row])
        with pytest.raises(RecordError, match=words) as error:
            read_benchmark("vlm4d", tmp_path)
        assert "real_mc.json: row 1" in str(error.value)
    write(path, [vlm4d(1), vlm4d(1, question="Another?")])
    with pytest.raises(RecordError, match=r"already used at .*real_mc\.json: row 1"):
        read_benchmark("vlm4d", tmp_path)


def test_two_equal_options(tmp_path):
    same = {"A": "left", "B": " Left ", "C": "up"}
    write(
        tmp_path / "real_mc.json",
        [vlm4d(1, choices=same, answer="left"), vlm4d(2, choices=same, answer="up")],
    )
    data = read_benchmark("vlm4d", tmp_path)
    assert [r.id for r in data.records] == ["real/validation_2"]  # two equal wrong ones harm nobody
    assert "stands under two letters" in data.left_out["real/validation_1"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_missing_is_said(tmp_path, name):
    with pytest.raises(ConfigError, match="needs"):
        read_benchmark(name, tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_benchmark(name, tmp_path / "nowhere")


def test_options_in_the_forms_of_files():
    row = "f: row 1"
    plain = {"A": "x", "B": "y"}
    for given in (["x", "y"], ["A. x", "B. y"], ["(A) x", "(B) y"], '["x", "y"]', "['A: x', 'B: y']", plain):
        assert options_of(row, given) == plain
    assert options_of(row, {"A": 1, "B": 0, "C": None}) == {"A": "1", "B": "0"}  # parquet fills structs
    assert options_of(row, ["x", "y", None, None]) == plain
    assert options_of(row, ["B. x", "A. y"]) == {"A": "B. x", "B": "A. y"}  # no letters of these options
    for given in (
        "x",
        3,
        None,
        [],
        ["x"],
        [str(number) for number in range(27)],
        ["x", " "],
        ["x", None, "y"],
        "[" * 10000,
        "{[]: 1}",
    ):
        with pytest.raises(RecordError):
            options_of(row, given)


def test_a_table_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("index\tvideo\n1\tx\n2\n")
    with pytest.raises(RecordError, match="row 2 has another number of fields"):
        read_rows(path)


def test_list_says_what_is_known(capsys):
    with pytest.raises(SystemExit) as end:
        main(["eval", "--bench", "list"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(f"{b.name}: {b.title}" in said and b.needs in said for b in BENCHMARKS.values())
    assert "validation_633" in said
    with pytest.raises(SystemExit) as end:
        main(["eval", "--bench", "nothing"])
    assert end.value.code == 2
