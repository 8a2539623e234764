"""Records: both forms read back by the readers that train, splits by video, shards, the data card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourdthinker.audit.solvers import SOLVERS
from fourdthinker.records import read_records
from fourdthinker.synth import write
from fourdthinker.synth.clips import write_jpeg
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.write import Made, audited_lines, split_of, write_all, write_card


def make(out: Path, videos: int, each: int = 3) -> list[Made]:
    (out / "media").mkdir(parents=True)
    paths = [f"media/{name}.jpg" for name in ("f0", "f1", "o0", "o1")]
    for path in paths:
        write_jpeg(out / path, np.full((28, 28, 3), 90, np.uint8))
    found = []
    for video in range(videos):
        source = Source(f"v{video}", "", f"d{video}", f"g{video}", f"clip | {video}.mp4", licence="CC0")
        for k in range(each):
            options = {"A": "Pan Left", "B": "Pan Right", "C": "Static"}
            text = "<think> first <output_image> then <output_image> </think>\n<answer>B. Pan Right</answer>"
            found.append(
                Made(
                    source,
                    f"v{video}-{k}",
                    "camera",
                    "How does the camera move?",
                    options,
                    "B",
                    text,
                    paths[:2],
                    [0.0, 1.0],
                    paths[2:],
                    [0.1, 0.2, 0.3, 0.4],
                    {"interval": [0.0, 1.0]},
                )
            )
    return found


def test_both_forms_pass_the_validation_of_the_trainers(tmp_path: Path) -> None:
    made = make(tmp_path, 40)
    counts = write_all(made, SynthSettings(), tmp_path)
    assert sum(row["dift"] for row in counts.values()) == len(made)
    for split, row in counts.items():
        if not row["dift"]:
            continue
        (dift,) = [read_records(path, kind="dift") for path in tmp_path.glob(f"dift-{split}-*.jsonl")]
        (reinforce,) = [read_records(path, kind="rl") for path in tmp_path.glob(f"rl-{split}-*.jsonl")]
        assert len(dift) == len(reinforce) == row["dift"]
        assert dift[0].answer == reinforce[0].answer == "B"
        assert dift[0].type == reinforce[0].type == "camera"
        assert len(dift[0].images) == 2
        assert dift[0].seconds == [0.0, 1.0]
        assert dift[0].question.endswith("A. Pan Left\nB. Pan Right\nC. Static")


def test_a_video_is_in_one_split(tmp_path: Path) -> None:
    made = make(tmp_path, 60)
    write_all(made, SynthSettings(splits={"train": 0.5, "test": 0.5}), tmp_path)
    names = {
        split: {r.id.split("-")[0] for p in tmp_path.glob(f"rl-{split}-*.jsonl") for r in read_records(p)}
        for split in ("train", "test")
    }
    assert not names["train"] & names["test"]
    assert min(map(len, names.values())) > 15


def test_the_split_of_a_video_does_not_depend_on_the_others() -> None:
    shares = {"train": 0.8, "test": 0.2}
    found = [split_of(f"g{k}", 0, shares) for k in range(2000)]
    assert found.count("test") == pytest.approx(400, abs=60)
    assert split_of("g7", 1, {"all": 1.0}) == "all"


def test_shards_and_those_of_an_earlier_run(tmp_path: Path) -> None:
    made = make(tmp_path, 4, each=5)
    settings = SynthSettings(splits={"train": 1.0}, shard_records=8)
    write_all(made, settings, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("dift-*.jsonl")) == [
        f"dift-train-{k:05d}.jsonl" for k in range(3)
    ]
    ids = [r.id for p in sorted(tmp_path.glob("dift-*.jsonl")) for r in read_records(p)]
    assert ids == [one.id for one in made]
    write_all(made[:3], settings, tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_the_data_card(tmp_path: Path) -> None:
    made = make(tmp_path, 3)
    write_card(tmp_path, made, {"train": {"dift": 9, "rl": 9}}, [("ingest", "black | dark", 2)])
    text = (tmp_path / "README.md").read_text()
    assert "| camera | 9 | B 9 | Pan Right 9 |" in text
    assert "| ingest | black \\| dark | 2 |" in text
    assert "- CC0: 3 videos" in text
    assert "Not audited: `fourdthinker synth --audit` does" in text


def test_the_data_card_says_what_is_answered_without_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def audited(items: list[Any]) -> Any:
        asked.append(len(items))
        common = {"questions": len(items), "low": 0.2, "high": 0.4, "chance": 0.25}
        lines = [
            SimpleNamespace(solver=s, type=t, accuracy=0.3, **common)
            for s, t in (("words", None), ("x", "y"))
        ]
        return SimpleNamespace(lines=lines, doubts=[f"all ({len(items)} questions): few"])

    monkeypatch.setattr(write, "audit", audited)
    made = make(tmp_path, 40)
    counts = write_all(made, SynthSettings(), tmp_path)
    lines = audited_lines(tmp_path)
    assert sorted(asked) == sorted(row["rl"] for row in counts.values() if row["rl"] > 3)  # of two videos
    train = counts["train"]["rl"]
    assert lines.count(f"| words | {train} | 30.0 % | 20.0 to 40.0 % | 25.0 % |") == 1
    assert f"- train, all ({train} questions): few" in lines
    write_card(tmp_path, made, counts, (), lines)
    assert "| words |" in (tmp_path / "README.md").read_text()


def test_the_data_card_says_which_videos_are_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")
    for name in ("classifier", "words"):
        monkeypatch.delitem(SOLVERS, name)
    write_all(make(tmp_path / "one", 1), SynthSettings(), tmp_path / "one")
    assert [
        line
        for line in audited_lines(tmp_path / "one")
        if "all (3 questions): 1 video is too few to tell" in line
    ]
    counts = write_all(make(tmp_path / "more", 5), SynthSettings(), tmp_path / "more")
    found = audited_lines(tmp_path / "more")
    split = max(counts, key=lambda name: counts[name]["rl"])
    number = counts[split]["rl"]
    assert f"- {split}, all ({number} questions): {number // 3} videos are too few to tell" in found
