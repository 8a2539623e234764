"""Every command of README and docs does what it says, where the files that it names are tiny ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")
pytest.importorskip("cv2", reason="OpenCV is missing: pip install fourdthinker[synth]")
pytest.importorskip("peft", reason="peft is missing: pip install fourdthinker[train]")

from fourdthinker import cli
from fourdthinker.audit import FEWEST
from fourdthinker.backbones import save_checkpoint
from fourdthinker.demo.data import render_clips
from fourdthinker.demo.settings import DemoSettings, RenderSettings
from fourdthinker.demo.twins import write_twins
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import RELEASED, PromptStyle
from fourdthinker.synth import run
from tests.e2e.test_eval_bench import question
from tests.e2e.test_recipes import documented_trainings
from tests.e2e.training import write_video
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.unit.backbones.test_checkpoint import lora
from tests.unit.cli.test_docs import PAGES, shell_lines
from tests.unit.report.test_report import example_run
from tests.unit.synth.test_run import one_process

# Commands that are not run here, and why. What a name stands before stands for all that begin so.
ELSEWHERE = {
    "make": "its targets run the tests, or what they need, or take 12 minutes (demo: tests/e2e/test_demo.py)",
    "pip install": "needs a package index",
    "ray start": "needs Ray's server; workers: tests/e2e/test_rollout_ray.py",
    "lmms_eval": "needs lmms-eval; tests/unit/integrations/test_lmms_eval.py",
    "python -m bench": "takes minutes to hours; tests/unit/bench/test_commands.py",
    "python -m fourdthinker.integrations": "needs VLMEvalKit; tests/unit/integrations/test_vlmeval.py",
    "fourdthinker push runs/grpo-3b/final me/": "needs an account; tests/unit/integrations/test_hub.py",
    "fourdthinker demo": "takes 12 minutes; tests/e2e/test_demo.py",
    "torchrun --nnodes": "needs four machines; two processes: tests/e2e/test_zero.py and test_fsdp.py",
    "torchrun --nproc_per_node 4": "needs GPUs and Ray; tests/e2e/test_rollout_ray.py",
    "torchrun --nproc_per_node 8 train/dift.py resume_from_checkpoint=auto": "is a part of a command, as ... "
    "says; tests/e2e/test_training_interrupted.py",
}  # fmt: skip
SHORT = {
    "generate": ["--max-new-tokens", "6", "--device", "cpu"],
    "eval": ["--max-new-tokens", "6", "--device", "cpu", "--samples", "1"],
    "latents": ["--max-new-tokens", "6", "--device", "cpu"],
    "synth": ["--limit", "2"],
}


def said_in_sentences() -> Iterator[tuple[str, list[str]]]:
    """Commands between backticks that are whole: with arguments, and without a word that stands for one."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for found in re.findall(r"`(fourdthinker [^`]+)`", text):
            words = shlex.split(found)
            flag_alone = words[-1].startswith("--")
            if not re.search(r"\b[A-Z]{2,}|\.\.\.", found) and len(words) > 2 and not flag_alone:
                yield page.name, words


COMMANDS = [*shell_lines(), *said_in_sentences(), ("README.md", ["fourdthinker", "doctor"])]


def elsewhere(words: list[str]) -> bool:
    return any(" ".join(words).startswith(name) for name in ELSEWHERE)


def pages() -> dict[str, list[list[str]]]:
    """The commands that run here, by page, in their order."""
    found: dict[str, list[list[str]]] = {}
    for page, words in COMMANDS:
        if words[0] == "fourdthinker" and not elsewhere(words):
            found.setdefault(page, []).append(words[1:])
    return found


def test_every_command_is_run_by_a_test() -> None:
    trained = [words for _, words in documented_trainings()]
    left = [w for _, w in COMMANDS if w[0] != "fourdthinker" and not elsewhere(w) and w not in trained]
    assert left == []
    for name in ELSEWHERE:
        assert any(" ".join(w).startswith(name) for _, w in COMMANDS) or name == "python -m bench", name
    assert sum(map(len, pages().values())) > 30


def models(folder: Path) -> None:
    """A checkpoint under each name that the pages use."""
    style, policy = PromptStyle(instruction=""), FramePolicy(max_pixels=56 * 56, max_frames=4)
    for name in ("runs/grpo-3b/final", "runs/dift-3b/final", "runs/demo/rl/final", "MODEL"):
        tiny_checkpoint(folder / name, layers=1, policy=policy, style=style)
    (folder / "runs/lora").mkdir()
    save_checkpoint(folder / "runs/lora/final", lora(tiny_checkpoint(layers=1)))
    plain = {"Qwen2.5-VL-3B-Instruct": "qwen2_5_vl", "Qwen3-VL-4B-Thinking": "qwen3_vl"}
    for name, family in plain.items():
        tokenizer = tiny_tokenizer()
        tiny_model(tokenizer, family=family, layers=1, spare_rows=8).save_pretrained(folder / "Qwen" / name)
        tokenizer.save_pretrained(folder / "Qwen" / name)
    shutil.copytree(folder / "Qwen" / "Qwen3-VL-4B-Thinking", folder / "models" / "MLLM-4D-RFT")
    released = folder / "path" / "to" / "4DThinker-3B" / "4drl"
    tiny_checkpoint(folder / "made" / "ours", layers=1, style=RELEASED)
    assert cli.main(["convert", str(folder / "made" / "ours"), str(released), "--to", "released"]) == 0


def data(folder: Path) -> None:
    """Videos, records and a benchmark under the names of the pages."""
    for name in (
        "clip.mp4",
        "a.mp4",
        "b.mp4",
        "my-videos/a.mp4",
        "my-clips/a.mp4",
        "VLM4D/videos_real/0.mp4",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, 40, frames=16)
    shutil.copy(folder / "b.mp4", folder / "VLM4D" / "videos_real" / "1.mp4")
    bench = [question(k, f"{k % 2}.mp4", answer=("left", "right")[k // 2 % 2]) for k in range(FEWEST + 2)]
    for name in ("VLM4D/real_mc.json", "vlm4d_real.json"):
        (folder / name).write_text(json.dumps(bench), encoding="utf-8")
    asked = [
        {"id": str(k), "Question": f"Where is {k}?", "A": "left", "B": "right", "Correct": "AB"[k // 2 % 2],
         "video_path": f"{'ab'[k % 2]}.mp4"}
        for k in range(FEWEST + 2)
    ]  # fmt: skip
    records = {"my/test.jsonl": asked[:4], "held-out.jsonl": asked[:4]}
    records["questions.jsonl"] = [{"id": "a", "question": "Where?", "video": "a.mp4"}]
    for name, lines in (records | {"data/rl.jsonl": asked}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        for video in ("a.mp4", "b.mp4"):
            if not (folder / name).with_name(video).exists():
                shutil.copy(folder / video, (folder / name).with_name(video))
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    scenes = DemoSettings(render=RenderSettings(train=1, rl=1, test=1))
    for _ in render_clips(scenes, folder / "runs" / "demo" / "render", 1):
        pass
    write_twins(scenes, folder / "runs" / "demo" / "render")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that the commands read; what one page makes is there for the others."""
    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(example_run(folder / "made") / "rl", folder / "runs" / "grpo-3b")
    models(folder)
    data(folder)
    test = ["--data", str(folder / "my/test.jsonl"), *SHORT["eval"], "--baselines"]
    for out, model in (("eval", "grpo-3b"), ("dift-eval", "dift-3b")):
        model, out = str(folder / "runs" / model / "final"), str(folder / "runs" / out)
        assert cli.main(["eval", "--checkpoint", model, *test, "--out", out]) == 0
    held = [
        "--data",
        str(folder / "held-out.jsonl"),
        *SHORT["latents"],
        "--out",
        str(folder / "runs/latents"),
    ]
    assert cli.main(["latents", str(folder / "runs/grpo-3b/final"), *held, "--modes", "zero"]) == 0
    return folder


def made_by(words: list[str]) -> list[str]:
    """What a command writes."""
    flags = {"--out", "-o", "--prune", "--latents-out"}
    return [after for flag, after in pairwise(words) if flag in flags]


@pytest.mark.parametrize("page", sorted(pages()))
def test_commands_of_a_page_run(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "files"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(run, "run_jobs", one_process)  # starting one takes longer than the work
    commands = pages()[page]
    for name in {name for words in commands if words[0] in ("eval", "latents") for name in made_by(words)}:
        shutil.rmtree(folder / name, ignore_errors=True)  # made anew
    for words in commands:
        if words[0] == "audit" and "*" in words[1]:  # the questions of one clip are too few
            shutil.copy(folder / "data" / "rl.jsonl", folder / words[1].replace("*", "more"))
            words = ["audit", *sorted(map(str, folder.glob("data/mine/rl-more.jsonl")))]
        if words[0] == "preview":  # of a clip of 2 seconds there are no records
            assert cli.main(["synth", "scenes:20", "-o", "data/scenes", *SHORT["synth"]]) == 0
            shutil.copytree(folder / "data" / "scenes", folder / words[1], dirs_exist_ok=True)
        if words[:2] == ["eval", "--bench"]:  # `list` prints and ends, as --help does
            with pytest.raises(SystemExit) as stop:
                cli.main(words)
            status = stop.value.code
        else:
            status = cli.main([*words, *SHORT.get(words[0], [])])
        assert status == 0, (words, capsys.readouterr().err[-2000:])
        assert all(Path(name).exists() for name in made_by(words)) or "--dry-run" in words, words
        if "runs/twins" in words:
            assert json.loads(Path("runs/twins/results.json").read_text())["consistency"]["n"] >= 2
