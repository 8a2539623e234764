"""`fourdthinker eval --bench`: a benchmark in its published form, with missing videos, and its priors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")

from fourdthinker import cli
from fourdthinker.audit import FEWEST
from fourdthinker.cli.evaluate import _priors
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from tests.tiny import tiny_checkpoint

QUESTIONS = 32


def question(number: int, video: str, **keys: object) -> dict[str, object]:
    choices = {"A": "left", "B": "right"}
    address = f"https://host/datasets/x/resolve/main/videos_real/{video}"
    name = f"validation_{number}"
    line = {"id": name, "video": address, "question_type": "multiple-choice", "choices": choices}
    return {**line, "question": f"Which way does car {number} go?", "answer": "left", **keys}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, and VLM4D's file: two videos, a missing one, a question without one right option."""
    folder = tmp_path_factory.mktemp("bench")
    style = PromptStyle(instruction="")
    tiny_checkpoint(folder / "model", policy=FramePolicy(max_pixels=56 * 56), style=style)
    videos = folder / "data" / "videos_real"
    videos.mkdir(parents=True)
    for number in range(2):
        with av.open(str(videos / f"{number}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=4)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for grey in range(4):
                picture = np.full((64, 64, 3), 60 * grey, dtype=np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode(None))
    lines = [question(number, f"{number % 2}.mp4") for number in range(QUESTIONS)]
    lines.append(question(QUESTIONS, "gone.mp4"))
    lines.append(question(QUESTIONS + 1, "0.mp4", choices={"A": "left", "B": "left"}))
    (folder / "data" / "real_mc.json").write_text(json.dumps(lines), encoding="utf-8")
    return folder


def run(folder: Path, out: Path, *more: str) -> dict[str, Any]:
    command = ["eval", "--bench", "vlm4d", "--checkpoint", str(folder / "model"), "--data"]
    command += [str(folder / "data"), "--out", str(out), "--samples", "0", "--max-new-tokens", "2"]
    assert cli.main([*command, "--device", "cpu", *more]) == 0
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_a_missing_video_counts_as_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(folder, tmp_path)
    assert (results["model"]["n"], results["model"]["failed"]) == (QUESTIONS + 1, 1)
    assert results["answered"]["n"] == QUESTIONS
    assert results["model"]["accuracy"] * (QUESTIONS + 1) == pytest.approx(
        results["answered"]["accuracy"] * QUESTIONS
    )
    for control in ("none", "black", "other"):  # over the same questions as the model
        shown = results[f"shown_{control}"]
        assert (shown["n"], shown["failed"], shown["answered"]["n"]) == (QUESTIONS + 1, 1, QUESTIONS)
        assert results[f"model_minus_shown_{control}"]["mean"] == pytest.approx(
            results["answered"]["accuracy"] - shown["answered"]["accuracy"]
        )
    bench = results["benchmark"]
    assert bench["missing_media"] == [str(folder / "data" / "videos_real" / "gone.mp4")]
    assert list(bench["left_out"]) == [f"real/validation_{QUESTIONS + 1}"]
    assert bench["tasks"]["real"]["n"] == QUESTIONS + 1
    assert results["option_prior"]["accuracy"] == 1.0  # "left" is always right
    said = capsys.readouterr().out
    assert "1 questions left out, 1 media missing" in said
    assert "Option-text prior" in said


def test_latents_of_a_benchmark(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["latents", str(folder / "model"), "--bench", "vlm4d", "--data", str(folder / "data")]
    command += ["--modes", "zero", "--max-new-tokens", "2", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "latents.json").read_text())
    assert (found["questions"], found["asked"]) == (QUESTIONS + 1, QUESTIONS)
    assert list(found["modes"]) == ["own", "zero"]
    for row in found["modes"].values():
        assert (row["n"], row["answered"]["n"]) == (QUESTIONS + 1, QUESTIONS)
        assert row["accuracy"] * row["n"] == pytest.approx(row["answered"]["accuracy"] * QUESTIONS)
    assert list(found["failed"]) == [f"real/validation_{QUESTIONS}"]
    assert "zero" in capsys.readouterr().out


def test_without_any_video_the_results_are_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    results = run(folder, tmp_path / "out", "--media-root", str(tmp_path / "empty"))
    assert results["model"]["failed"] == results["model"]["n"] == QUESTIONS + 1
    assert (results["answered"]["n"], results["answered"]["accuracy"]) == (0, None)
    assert len(results["benchmark"]["missing_media"]) == 3


def test_the_prior_learns_nothing_from_other_clips_of_the_video() -> None:
    def record(number: int, videos: int) -> Record:
        video = f"v{number % videos}"
        options = {"A": f"right of {video}", "B": f"wrong {number}"}
        return Record(
            "rl", str(number), "Which?", options, "AB"[number // 8 % 2], frames=[f"{number}.png"],
            extra={"source": video},
        )  # fmt: skip

    records = [record(number, 8) for number in range(FEWEST + 2)]
    for line in records:
        if line.answer == "B":  # the letter says nothing
            line.options = {"A": line.options["B"], "B": line.options["A"]}
    assert _priors(records)["option_prior"]["accuracy"] == 0.5
    assert _priors(records[: FEWEST - 1]) == {}
    assert _priors([record(number, 1) for number in range(FEWEST)]) == {}
