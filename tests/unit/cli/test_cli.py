"""The command line: what it prints, where it writes, and how it fails."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from fourdthinker import cli, doctor
from fourdthinker.backbones import load_checkpoint
from fourdthinker.cli import evaluate as evaluate_command
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import AnsweredQuestion, EvalResult
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import read_records
from fourdthinker.sampler import SamplingConfig
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, two short clips, and four questions about them."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_checkpoint(
        folder / "model", policy=FramePolicy(max_pixels=56 * 56), style=PromptStyle(instruction="")
    )
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=4)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            colour = rng.integers(0, 255, 3, dtype=np.uint8)
            for _ in range(8):
                frame = av.VideoFrame.from_ndarray(
                    np.broadcast_to(colour, (64, 64, 3)).copy(), format="rgb24"
                )
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    lines = [
        {
            "id": f"{name}-{k}",
            "video_path": f"{name}.mp4",
            "Question": f"Which way does object {k} move?",
            "A": "left",
            "B": "right",
            "Correct": "AB"[k],
            "type": f"type {k}",
        }
        for name in ("a", "b")
        for k in range(2)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys, contextlib\n"
        "from fourdthinker import cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main(['eval', '--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av', 'rich'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert "--max-new-tokens" in done.stdout


@pytest.mark.parametrize("command", ["demo", "generate", "eval", "report", "init", "push", "doctor"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"fourdthinker {command}" in capsys.readouterr().out


def test_eval_writes_results_and_resumes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "eval",
        "--checkpoint",
        str(folder / "model"),
        "--data",
        str(folder / "data.jsonl"),
        "--out",
        str(tmp_path),
        "--samples",
        "2",
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
        "--baselines",
    ]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "Majority class" in out
    assert "mean over types" in out
    assert out.rstrip().endswith(str(tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"]["n"] == 4
    assert results["model"]["samples"] == 2
    assert results["chance"]["accuracy"] == 0.5
    assert results["settings"]["sampling"]["max_new_tokens"] == 4
    assert results["settings"]["name"] == results["checkpoint"] == str(folder / "model")
    assert results["records_rejected"] == 0
    answers = (tmp_path / "answers.jsonl").read_bytes()
    assert answers.count(b"\n") == 5

    written = (tmp_path / "results.json").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(b"".join(answers.splitlines(keepends=True)[:3]) + b'{"id": "b')
    assert cli.main(command) == 0  # as if it had been killed
    assert (tmp_path / "answers.jsonl").read_bytes() == answers
    assert (tmp_path / "results.json").read_bytes() == written
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "another evaluation" in capsys.readouterr().err

    assert cli.main(["report", str(tmp_path)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "report.html"
    assert "type 1" in page.read_text(encoding="utf-8")


def test_skipped_records_are_counted(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder / "bad.jsonl"
    data.write_text((folder / "data.jsonl").read_text() + '{"id": "x"}\n', encoding="utf-8")
    command = [
        "eval",
        "--checkpoint",
        str(folder / "model"),
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--samples",
        "0",
        "--max-new-tokens",
        "2",
        "--frames",
        "black",
    ]
    (tmp_path / "rejected.jsonl").write_text("of a training run in this folder")
    assert cli.main(command) == 2
    assert cli.main([*command, "--on-bad-record", "skip"]) == 0
    assert (tmp_path / "rejected.jsonl").read_text() == "of a training run in this folder"
    assert "bad.jsonl:5" in (tmp_path / "answers.rejected.jsonl").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["records_rejected"] == 1
    assert results["settings"]["frames_override"] == "black"
    assert "1 records were rejected" in caplog.text


def test_generate_prints_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "generate",
        "--checkpoint",
        str(folder / "model"),
        "--video",
        str(folder / "a.mp4"),
        "--question",
        "Which way does it move?",
        "--options",
        "left",
        "right",
        "--max-new-tokens",
        "6",
    ]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    assert first.strip()
    assert cli.main([*command, "--start", "0.5", "--end", "1.0", "--temperature", "1", "--seed", "7"]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main(command) == 0
    assert capsys.readouterr().out == first  # greedy
    assert cli.main([*command, "--start", "99"]) == 2
    assert "99" in capsys.readouterr().err
    assert cli.main([*command, "--start", "1.0", "--end", "0.5"]) == 2
    assert "0.5" in capsys.readouterr().err


def test_generate_answers_many_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:100])
    out = tmp_path / "answers.jsonl"
    command = ["generate", "--checkpoint", str(folder / "model"), "--max-new-tokens", "4", "--out", str(out)]
    videos = ["--video", str(folder / "a.mp4"), str(folder / "b.mp4"), "--question", "What?", "Where?"]
    assert cli.main([*command, *videos, "--samples", "2", "--preset", "qwen3-vl-thinking"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    first = out.read_bytes()
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == 2 * 2 * 2
    assert {line["question"] for line in lines} == {"What?", "Where?"}
    assert cli.main([*command, *videos, "--samples", "2", "--preset", "qwen3-vl-thinking"]) == 0
    assert out.read_bytes() == first
    assert "4 of 4 questions were answered before" in caplog.text
    assert cli.main([*command, *videos, "--samples", "2"]) == 2  # greedy now
    assert "another" in capsys.readouterr().err

    out.unlink()
    broken = ["--video", str(tmp_path / "broken.mp4"), str(folder / "a.mp4"), "--question", "What?"]
    assert cli.main([*command, *broken, "--latents-out", str(tmp_path / "latents")]) == 1
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert ["error" in line for line in lines] == [True, False]
    assert "broken.mp4" in lines[0]["error"]
    assert Path(lines[1]["latents"]).is_file()

    out.unlink()
    data = ["--data", str(folder / "data.jsonl"), "--batch", "3"]
    assert cli.main([*command, *data]) == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 4


def test_baselines_are_run_beside_the_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--checkpoint", str(folder / "model"), "--data", str(folder / "data.jsonl")]
    command += ["--out", str(tmp_path), "--samples", "0", "--max-new-tokens", "2", "--device", "cpu"]
    assert cli.main(command) == 0  # all of them, since the data allow it
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    for control, key, override, label in (
        ("none", "shown_none", "none", "No frames"),
        ("black", "shown_black", "black", "Black frames"),
        ("other", "shown_other", "other", "Another clip's"),
    ):
        journal = (tmp_path / "baselines" / control / "answers.jsonl").read_text().splitlines()
        assert json.loads(journal[0])["settings"]["frames_override"] == override
        assert (len(journal), results[key]["n"]) == (5, 4)
        share = results["model"]["accuracy"] - results[key]["accuracy"]
        assert results[f"model_minus_{key}"]["mean"] == pytest.approx(share)
        assert label in out
    named = [*command, "--baselines", "none"]
    assert cli.main([*named, "--frames", "black"]) == 2
    assert "--baselines goes without --frames black" in capsys.readouterr().err
    assert cli.main([*named, "--latents", "zero"]) == 2
    assert "--baselines goes without --latents zero" in capsys.readouterr().err
    for given, wanted in (
        (named, ["none"]),
        ([*command, "--baselines"], []),
        ([*command, "--latents", "zero"], []),
    ):
        arguments, records = cli._parser().parse_args(given), read_records(folder / "data.jsonl", kind="rl")
        assert evaluate_command._wanted_controls(arguments, records) == wanted
        one = [replace(record, extra={"source": "one"}) for record in records]
        arguments.baselines, arguments.latents = None, "own"
        assert evaluate_command._wanted_controls(arguments, one) == ["none", "black"]
        arguments.baselines = ["other"]
        with pytest.raises(
            ConfigError, match="--baselines other: it needs two videos or more that are there"
        ):
            evaluate_command._wanted_controls(arguments, one)


def test_questions_that_a_control_leaves_out_are_not_compared(tmp_path: Path) -> None:
    def question(id: str, greedy: str | None, failed: str = "") -> AnsweredQuestion:
        return AnsweredQuestion(id, "", id, {"A": "x", "B": "y"}, "A", greedy=greedy, failed=failed)

    own = EvalResult("m", tuple(question(id, letter) for id, letter in ("aA", "bB", "cA")), 0, True)
    left_out = tuple(question(q.id, "A", "no other clip" if q.id == "c" else "") for q in own.questions)
    found = evaluate_command._controls(
        ["other"], tmp_path, lambda frames_override, journal: EvalResult("m", left_out, 0, True), own
    )
    assert found["shown_other"]["failed"] == 1
    assert found["model_minus_shown_other"]["mean"] == -0.5  # not 0, as if the third were answered wrongly


def test_latents_are_audited(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, data = str(folder / "model"), str(folder / "data.jsonl")
    command = ["latents", model, "--data", data, "--out", str(tmp_path), "--max-new-tokens", "3"]
    assert cli.main([*command, "--modes", "zero", "other-clip", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "latents.json").read_text())
    assert list(found["modes"]) == ["own", "zero", "other-clip"]
    assert found["questions"] == 4
    assert found["without_blocks"] == 1  # a random model opens none: nothing changes
    assert found["modes"]["zero"]["flips"] == 0
    assert "100 % of the answers have no imagery block" in caplog.text
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the latents show" in page
    assert "Which way does object 1 move?" in page
    assert page.count("<use ") == 4 * 8  # eight frames a question
    assert "less own" in capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "own"), str(tmp_path / "zero")]) == 0

    assert cli.main([*command, "--modes", "nothing"]) == 2
    assert cli.main(["generate", "--checkpoint", model, "--question", "a?", "--latents", "zero"]) == 2
    said = capsys.readouterr().err
    assert "latents is 'nothing'; choose one of own, oracle" in said
    assert "--latents zero: name a file for the answers with --out" in said


def test_rejected_questions_are_named_beside_their_answers(folder: Path, tmp_path: Path) -> None:
    data, out = folder / "some.jsonl", tmp_path / "answers.jsonl"
    data.write_text('{"id": "a", "question": "?"}\n{"id": "b"}\n', encoding="utf-8")
    (tmp_path / "rejected.jsonl").write_text("of a training run in this folder")
    command = ["generate", "--checkpoint", "/no", "--data", str(data), "--on-bad-record", "skip"]
    for _ in range(2):
        assert cli.main([*command, "--out", str(out)]) == 2  # no such checkpoint
        (line,) = (tmp_path / "answers.rejected.jsonl").read_text().splitlines()
        assert json.loads(line)["where"] == f"{data}:2"
    assert (tmp_path / "rejected.jsonl").read_text() == "of a training run in this folder"


def test_flags_win_over_presets() -> None:
    from fourdthinker.cli.shared import add_sampling, sampling

    parser = argparse.ArgumentParser()
    add_sampling(parser, temperature=0.0)
    assert sampling(parser.parse_args([])) == SamplingConfig(temperature=0.0)
    words = ["--preset", "qwen3-vl-thinking", "--top-k", "5", "--stop", "a", "b"]
    wanted = SamplingConfig(temperature=1.0, top_p=0.95, top_k=5, stop_strings=("a", "b"))
    assert sampling(parser.parse_args(words)) == wanted


def test_init_gives_a_base_model_its_latent_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    assert cli.main(["init", str(base), str(out), "--latent-size", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert load_checkpoint(out).backbone.latents.latent_size == 3
    assert cli.main(["init", str(base), str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report", "/no/such/run"], "/no/such/run: no such folder"),
        (["report", "{data}"], "{data} is a file, not a folder; give the folder of a run"),
        (["report", "{model}", "--out", "{data}/x.html"], "{data} is not a folder, and one is needed"),
        (
            ["generate", "--checkpoint", "{model}", "--question", "?", "--out", "{data}/x.jsonl"],
            "{data} is not a folder, and one is needed",
        ),
        (["report", "{model}", "--out", "{model}/none/x.html"], "none does not exist; create it (mkdir -p)"),
        (
            ["generate", "--checkpoint", "{model}", "--question", "?", "--out", "{model}/none/x.jsonl"],
            "none does not exist; create it (mkdir -p)",
        ),
        (["eval", "--checkpoint", "/no/model", "--data", "{data}"], "/no/model"),
        (["eval", "--checkpoint", "{model}", "--data", "{data}x"], "data.jsonlx"),
        (
            ["eval", "--checkpoint", "{model}", "--data", "{data}", "--temperature", "-1"],
            "temperature is -1.0",
        ),
        (["generate", "--checkpoint", "{model}", "--video", "/no/v.mp4", "--question", "?"], "/no/v.mp4"),
        (
            [
                "generate",
                "--checkpoint",
                "{model}",
                "--video",
                "{model}",
                "--question",
                "?",
                "--options",
                "a",
            ],
            "1 options",
        ),
        (
            ["generate", "--checkpoint", "{model}", "--question", "?", "--device", "moon"],
            "device 'moon': torch cannot use it; give cpu",
        ),
        (["demo", "--quick", "--out", "{data}"], "{data}"),
        (["demo", "--quick", "--out", "{data}/x"], "{data} is not a folder, and one is needed"),
        (["init", "{model}", "{data}/x/y"], "{data} is not a folder, and one is needed"),
        (["init", "/no/model", "{data}"], "{data} is not a folder, and one is needed"),
        (["convert", "/no/model", "/dev/null", "--merge"], "/dev/null is not a folder, and one is needed"),
        (["convert", "/no/model", "{model}", "--merge"], "{model} is not empty; name a new folder"),
        (["convert", "", "/no/new", "--merge"], "the checkpoint is ''; name a folder, or a model id"),
        (["demo", "--quick", "--out", "a" * 300], "cannot be made (File name too long); name another"),
        (["demo", "--quick", "--out", "{model}"], "{model} holds other things than a demo; name a new"),
        (
            ["generate", "--checkpoint", "{model}", "--question", "?", "--options", "a", " A "],
            "two of the options ['a', ' A '] have the same text",
        ),
        (
            ["generate", "--checkpoint", "{model}", "--question", "?", "--options", "a", " "],
            "options are ['a', ' '] and one is blank",
        ),
        (["generate", "--checkpoint", "{model}"], "either --question or --data"),
        (["generate", "--checkpoint", "{model}", "--question", "?", "--samples", "2"], "--out"),
        (["generate", "--checkpoint", "{model}", "--data", "{data}", "--options", "a", "b"], "--options"),
        (["generate", "--checkpoint", "{model}", "--question", "?", "--eos-id", "99999"], "99999"),
        (["generate", "--checkpoint", "{model}", "--question", "?", "--top-p", "2"], "top_p is 2.0"),
        (["generate", "--checkpoint", "{model}", "--question", "?", "--image", "/no.png"], "/no.png"),
        (["generate", "--checkpoint", "{model}", "--question", "a\udcff"], "'a\\udcff' holds half"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    folder: Path, tmp_path: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w.format(model=folder / "model", data=folder / "data.jsonl") for w in command]
    if words[0] == "eval":
        words += ["--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"fourdthinker {words[0]}: ")
    assert said.format(model=folder / "model", data=folder / "data.jsonl") in captured.err.splitlines()[-1]
    assert "Errno" not in captured.err
    assert "Traceback" not in captured.err
    with pytest.raises((ValueError, OSError), match=r"."):
        cli.main([*words, "-v"])


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--quick", "--out", ""],
        ["report", "run", "--out", ""],
        ["init", "base", ""],
        ["convert", "checkpoint", "", "--merge"],
        ["eval", "--checkpoint", "m", "--data", "d", "--out", ""],
        ["generate", "--checkpoint", "m", "--question", "?", "--out", ""],
        ["generate", "--checkpoint", "m", "--question", "?", "--latents-out", ""],
    ],
)
def test_an_empty_output_is_refused_by_name(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert "out: the path is empty; name what to write" in capsys.readouterr().err.lower()


def test_results_of_something_else_are_not_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of a demo: an evaluation's own have its answers beside them."""
    (tmp_path / "results.json").write_text('{"seeds": {"demo": 0}}')
    command = ["eval", "--checkpoint", str(folder / "model"), "--data", str(folder / "data.jsonl")]
    assert cli.main([*command, "--out", str(tmp_path)]) == 2
    assert "results.json is of something else, since no answers.jsonl is beside it" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"seeds": {"demo": 0}}'


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_probe_names_what_is_no_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("/dev/null")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    assert cli.main(["probe", str(path)]) == 1
    assert f"{path}: is no regular file, not a video" in capsys.readouterr().out


def test_demo_passes_its_arguments_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def run(out: Path, *, quick: bool, seed: int) -> None:
        seen.append((out, quick, seed))
        if seed == 3:
            raise RuntimeError("training ended with status 1")
        if seed == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("fourdthinker.demo.run_demo", run)
    assert cli.main(["demo", "--quick", "--out", "somewhere", "--seed", "5"]) == 0
    assert cli.main(["demo"]) == 0
    assert seen == [(Path("somewhere"), True, 5), (Path("runs/demo"), False, 0)]
    assert cli.main(["demo", "--seed", "3"]) == 2
    assert "training ended with status 1" in capsys.readouterr().err
    assert cli.main(["demo", "--seed", "4"]) == 130


def test_doctor_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0  # the environment the tests run in has all that is needed
    lines = capsys.readouterr().out.splitlines()
    assert {line[:8].strip() for line in lines} <= {"ok", "note"}
    for name in (
        "Python",
        "torch",
        "triton",
        "transformers",
        "CUDA" if "CUDA" in str(lines) else "cuda:0",
        "_video",
        "FFmpeg",
        "decoders",
        "peft",
    ):
        assert any(line[8:].startswith(name) for line in lines), name

    versions = {"torch": "2.4.0+cu121", "transformers": "9.0", "numpy": None, "peft": None, "triton": None}
    original = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, original(name)))
    monkeypatch.setattr(doctor, "_decodes", lambda av, name: name == "h264")
    monkeypatch.setitem(sys.modules, "fourdthinker._video", None)
    assert cli.main(["doctor"]) == 1
    found = {f.name: f for f in doctor.examine()}
    assert found["torch"].status == "missing"
    assert "too old" in found["torch"].text
    assert found["torch"].remedy == "pip install 'torch>=2.11'"
    assert found["transformers"].status == "note"
    assert "newer than tested" in found["transformers"].text
    assert found["numpy"].status == "missing"
    assert found["triton"].status == "note"
    assert found["peft"].status == "note"
    assert found["decoders"].text == "no hevc, vp9, av1"
    assert found["_video"].status == "note"
    assert "compiler" in found["_video"].remedy


def test_doctor_survives_a_broken_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    def _device() -> None:
        raise OSError("libcudart is of another world")

    monkeypatch.setattr(doctor, "_device", _device)
    found = {f.name: f for f in doctor.examine()}
    assert (found["FFmpeg"].status, found["FFmpeg"].remedy) == ("missing", "pip install av")
    assert (found["device"].status, found["device"].text) == (
        "missing",
        "OSError: libcudart is of another world",
    )
    assert found["Python"].status == "ok"


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.13.0+cpu", (2, 13)), ("5.17", (5, 17)), ("3.7.1rc2", (3, 7, 1)), ("dev", ())]
)
def test_versions_are_compared_by_number(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor.version(text) == numbers
