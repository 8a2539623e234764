"""`generate_file`: what cannot be written is refused, one process writes, a broken question fails alone."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker import cli
from fourdthinker.errors import ConfigError, OutputError
from fourdthinker.evaluate import evaluate
from fourdthinker.files import JsonLines
from fourdthinker.frames import FramePolicy
from fourdthinker.generate import generate_file
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.sampler import SamplingConfig
from fourdthinker.thinker import Thinker, question_record
from tests.tiny import tiny_checkpoint

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=8, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "model"
    policy = FramePolicy(max_pixels=56 * 56)
    tiny_checkpoint(path, tied=False, policy=policy, style=PromptStyle(instruction=""))
    return path


@pytest.fixture(scope="module")
def thinker(model: Path) -> Thinker:
    return Thinker.from_pretrained(model, device="cpu")


@pytest.fixture
def broken_z(thinker: Thinker) -> Iterator[None]:
    """The embedding row of "Z" is NaN."""
    (token,) = thinker.encoder.tokenizer("Z", add_special_tokens=False)["input_ids"]
    row = thinker.checkpoint.backbone.embedding_weight.data[token]
    before = row.clone()
    row.fill_(torch.nan)
    yield
    row.copy_(before)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_nan_logits_fail_one_question_and_the_others_go_on(
    thinker: Thinker, broken_z: None, tmp_path: Path
) -> None:
    records = [question_record(None, text, id=text) for text in ("a", "Z", "b")]
    done = generate_file(thinker, records, tmp_path / "out", n=2, config=CONFIG, progress=False)
    assert (done.answered, list(done.failed)) == (2, ["Z"])
    lines = read(tmp_path / "out")
    assert [line["id"] for line in lines] == ["Z", "a", "a", "b", "b"]
    assert "question 'Z'" in lines[0]["error"]
    assert "embedding row of token" in lines[0]["error"]
    alone = tmp_path / "alone"
    generate_file(thinker, records[2:], alone, n=2, config=CONFIG, progress=False)
    assert [line["text"] for line in read(alone)] == [line["text"] for line in lines[3:]]


def test_nan_logits_fail_one_question_of_an_evaluation(thinker: Thinker, broken_z: None) -> None:
    records = [
        Record("rl", text, text, options={"A": "left", "B": "right"}, answer="A") for text in ("a", "Z", "b")
    ]
    result = evaluate(thinker.sampler, thinker.encoder, records, n=2, config=CONFIG, progress=False)
    assert [bool(question.failed) for question in result.questions] == [False, True, False]
    assert "question 'Z'" in result.questions[1].failed
    assert result.summary()["failed"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"media": [("video", "a.mp4"), ("image", "c.png")]},
        {"media": [("image", "a.mp4"), ("video", "b.png")]},
        {"turns": [("user", "Is <video> like <image>?")]},
        {"system": "Be brief."},
    ],
)
def test_a_question_that_changed_is_not_the_one_answered(
    thinker: Thinker, tmp_path: Path, change: dict[str, Any]
) -> None:
    media, turns = [("video", "a.mp4"), ("image", "b.png")], [("user", "<video> or <image>?")]
    record, out = Record("ask", "q", "or ?", media=media, turns=turns), tmp_path / "out"
    for _ in range(2):  # there are no such files, so that the question fails twice
        generate_file(thinker, [record], out, config=CONFIG, progress=False)
    assert [line["media"] for line in read(out)] == [[["video", "a.mp4"], ["image", "b.png"]]]
    with pytest.raises(ConfigError, match="'q' was answered with another question"):
        generate_file(thinker, [replace(record, **change)], out, config=CONFIG, progress=False)


def test_answers_of_other_weights_are_not_reused(thinker: Thinker, tmp_path: Path) -> None:
    """A bfloat16 copy has the same name, and so has a model that was trained further."""
    record, out = question_record(None, "a", id="a"), tmp_path / "out"
    for _ in range(2):
        generate_file(thinker, [record], out, config=CONFIG, progress=False)
    weight = thinker.checkpoint.backbone.embedding_weight.data
    weight[0, 0] += 1.0
    try:
        with pytest.raises(ConfigError, match="'a' was answered with another question, model or setting"):
            generate_file(thinker, [record], out, config=CONFIG, progress=False)
    finally:
        weight[0, 0] -= 1.0


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before any model is loaded."""
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_output_is_looked_at_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["generate", "--checkpoint", "/no/model", "--question", "?", "--out"]
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for out, said in (
        ("/dev/null", "/dev/null is a device, not a regular file; name a file to write"),
        (str(tmp_path), f"{tmp_path} is a folder, not a regular file"),
        (str(tmp_path / "pipe"), "is a named pipe"),
        (str(tmp_path / "file" / "x"), f"{tmp_path / 'file'} is not a folder, and one is needed"),
    ):
        assert said in refused([*ask, out], capsys)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    out = str(tmp_path / "out")
    assert "file is not a folder" in refused([*ask, out, "--latents-out", str(tmp_path / "file")], capsys)
    with JsonLines(out):
        assert "out: another process is writing this file" in refused([*ask, out], capsys)


def test_an_evaluation_and_a_report_look_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    judge = ["eval", "--checkpoint", "/no/model", "--data", str(data), "--out"]
    assert "data.jsonl is not a folder" in refused([*judge, str(data)], capsys)
    with JsonLines(run / "answers.jsonl"):
        assert "answers.jsonl: another process is writing" in refused([*judge, str(run)], capsys)
    report = ["report", str(run), "--out"]
    assert f"{run} is a folder, not a regular file" in refused([*report, str(run)], capsys)
    assert ". is a folder" in refused([*report, "."], capsys)
    said = refused([*report, str(tmp_path / "none" / "x.html")], capsys)
    assert f"x.html: the folder {tmp_path / 'none'} does not exist; create it" in said
    (run / "link.html").symlink_to(tmp_path / "page.html")
    assert cli.main([*report, str(run / "link.html")]) == 0
    assert (run / "link.html").is_symlink()
    assert "</html>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("device", ["meta", "foo", "cuda", "cuda:99", "cpu:-1", "mps"])
@pytest.mark.parametrize("command", [["generate", "--question", "?"], ["eval", "--data", "{data}"]])
def test_a_device_that_there_is_not(
    model: Path, tmp_path: Path, device: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    data = tmp_path / "data.jsonl"
    (tmp_path / "a.mp4").write_bytes(b"x")
    data.write_text(
        '{"id": "a", "Question": "?", "A": "x", "B": "y", "Correct": "A", "video_path": "a.mp4"}\n',
        encoding="utf-8",
    )
    words = [word.format(data=data) for word in command] + ["--checkpoint", str(model), "--device", device]
    words += ["--out", str(tmp_path / "out")] if command[0] == "eval" else []
    said = refused(words, capsys)
    assert f"device {device!r}: torch cannot use it; give cpu" in said
    assert len(said.strip().splitlines()[-1]) < 120


def test_a_full_disk_under_the_latents(thinker: Thinker, tmp_path: Path) -> None:
    records = [question_record(None, "a", id="a" * 2000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"\.safetensors: cannot be written \(File too large\)"):
            generate_file(
                thinker, records, tmp_path / "out", config=CONFIG, latents_out=tmp_path / "latents",
                progress=False,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out").read_bytes() == b""
    assert list((tmp_path / "latents").iterdir()) == []


def test_two_processes_on_one_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused by name and writes nothing."""
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps({"id": "0", "question": "q"}) + "\n")
    words = ["generate", "--checkpoint", str(model), "--data", str(data)]
    words += ["--device", "cpu", "--max-new-tokens", "4", "--out", str(out)]
    first = "import sys\nfrom fourdthinker.files import JsonLines\n"
    first += "with JsonLines(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()\n"
    command, pipe = [sys.executable, "-c", first, str(out)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"  # it has the file open
        assert f"{out}: another process is writing this file; wait for it" in refused(words, capsys)
        process.stdin.close()
    assert process.returncode == 0
    assert out.read_bytes() == b""


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_data_are_not_emptied_as_the_rejected_of_an_earlier_run(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "answers.rejected.jsonl"
    text = '{"id": "0", "question": "q"}\n'
    data.write_text(text)
    out = tmp_path / "answers.jsonl" if command == "generate" else tmp_path
    words = [command, "--checkpoint", "/no/model", "--out", str(out), "--data"]
    assert f"{data} is what the command reads" in refused([*words, str(data)], capsys)
    other = tmp_path / "other.jsonl"
    other.write_text(text)
    assert f"{data}:1: no line of a file of rejected records" in refused([*words, str(other)], capsys)
    assert data.read_text() == text
    if command == "generate":
        assert "what the command reads" in refused([*words[:-2], str(other), "--data", str(other)], capsys)
    assert not (tmp_path / "answers.jsonl").exists()  # nor is anything left that was made


def test_two_that_write_one_file_are_refused_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one neither empties the rejected lines of the first, nor loads its model in vain."""
    data, rejected = tmp_path / "data.jsonl", tmp_path / "answers.rejected.jsonl"
    data.write_text('{"id": "0", "question": "q"}\n')
    kept = '{"where": "a:1", "reason": "r", "line": "x"}\n'
    rejected.write_text(kept)
    words = ["--checkpoint", "/no/model", "--data", str(data), "--out"]
    with JsonLines(tmp_path / "answers.jsonl"):
        for command, out in (("generate", tmp_path / "answers.jsonl"), ("eval", tmp_path)):
            assert "answers.jsonl: another process is writing" in refused([command, *words, str(out)], capsys)
    assert rejected.read_text() == kept
    assert "--out and --latents-out both name" in refused(
        ["generate", *words, str(tmp_path / "x"), "--latents-out", str(tmp_path / "x")], capsys
    )


@pytest.mark.parametrize("name", ["lmms_eval", "lmms_eval/eval_samples_data.jsonl/x", "results.json/x"])
def test_every_file_of_an_evaluation_is_looked_at(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_text("{}\n")
    (run / name).parent.mkdir(parents=True)
    (run / name).touch()
    words = ["eval", "--checkpoint", "/no/model", "--data", str(data), "--out", str(run)]
    assert "folder" in refused(words, capsys)
    assert not (run / "answers.jsonl").exists()


def test_the_answers_stay_locked_until_the_results_are_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fourdthinker.integrations import lmms_samples

    (tmp_path / "a.mp4").write_bytes(b"x")
    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"id": "a", "Question": "?", "A": "x", "B": "y", "Correct": "A", "video_path": "a.mp4"}\n'
    )
    said: list[str] = []

    def write(*_: Any) -> None:
        with pytest.raises(OutputError, match="another process is writing") as caught:
            JsonLines(tmp_path / "run" / "answers.jsonl")
        said.append(str(caught.value))

    monkeypatch.setattr(lmms_samples, "write_lmms_samples", write)
    words = ["eval", "--checkpoint", str(model), "--data", str(data), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--device", "cpu", "--samples", "0"]) == 0
    assert said
    JsonLines(tmp_path / "run" / "answers.jsonl").close()


@pytest.mark.parametrize("wrong", [0, 1.5, "2", True, None])
@pytest.mark.parametrize("name", ["n", "batch"])
def test_counts_that_are_none_are_named(thinker: Thinker, tmp_path: Path, name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {wrong!r}; it must be an integer in \[1, 2\^31\)"):
        generate_file(thinker, [], tmp_path / "out", **{"config": CONFIG, name: wrong})
    assert not (tmp_path / "out").exists()
