"""JSON nested without end, in every file that a command reads: one line that names the file, and status 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fourdthinker import cli
from fourdthinker.errors import FourdError
from fourdthinker.evaluate.journal import Journal
from fourdthinker.files import JsonLines
from fourdthinker.generate import _answered
from fourdthinker.synth.geometry.nerfstudio import read_nerfstudio
from fourdthinker.trainers.deepspeed_config import zero_stage
from fourdthinker.trainers.replay import load_replay
from fourdthinker.trainers.run_folder import resumed_updates
from fourdthinker.trainers.run_state import RunState

NESTED = "[" * 20_000
SAID = "nested deeper than 100 levels"
COMMANDS = {
    "synth, manifest": ("m.jsonl", ["synth", "{file}", "-o", "{folder}/out"]),
    "synth, settings": ("settings.json", ["synth", "scenes:1", "-o", "{folder}"]),
    "synth, YAML": ("c.yaml", ["synth", "scenes:1", "-o", "{folder}/out", "--config", "{file}"]),
    "preview, records": ("dift-train.jsonl", ["preview", "{folder}"]),
    "audit, JSONL": ("a.jsonl", ["audit", "{file}"]),
    "audit, JSON": ("a.json", ["audit", "{file}"]),
    "compare": ("answers.jsonl", ["compare", "{folder}", "{folder}"]),
    "eval, records": ("a.jsonl", ["eval", "--checkpoint", "m", "--data", "{file}", "--out", "{folder}/out"]),
    "eval, benchmark": (
        "a.jsonl",
        ["eval", "--checkpoint", "m", "--bench", "vsi", "--data", "{file}", "--out", "{folder}/out"],
    ),
    "generate, records": ("a.jsonl", ["generate", "--checkpoint", "m", "--data", "{file}"]),
    "convert": ("config.json", ["convert", "{folder}", "{folder}/out", "--merge"]),
    "report": ("results.json", ["report", "{folder}"]),
}


@pytest.mark.parametrize(("name", "command"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_names_the_file(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(NESTED)
    assert cli.main([word.format(file=file, folder=tmp_path) for word in command]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert name in last
    assert SAID in last or (name in ("config.json", "c.yaml") and "recursion" in last)  # other readers


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "{folder}", "{folder}", "--out"],
        ["audit", "{file}", "--out"],
        ["audit", "{file}", "--prune"],
    ],
)
def test_what_is_read_is_not_replaced(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("what the user has")
    (tmp_path / "link").symlink_to(file)
    words = [word.format(file=file, folder=tmp_path) for word in command]
    assert cli.main([*words, str(tmp_path / "link")]) == 2
    assert "link is what the command reads; name another file to write" in capsys.readouterr().err
    assert file.read_text() == "what the user has"


READERS: dict[str, Callable[[Path], Any]] = {
    "answers.jsonl": lambda folder: Journal(folder / "answers.jsonl", {}),
    "out.jsonl": lambda folder: _answered(JsonLines(folder / "out.jsonl"), {}, 1),
    "transforms.json": lambda folder: read_nerfstudio(folder / "transforms.json", names=["a"], times=[0.0]),
    "run.json": RunState.read,
    "trainer_state.json": resumed_updates,
    "zero.json": lambda folder: zero_stage(SimpleNamespace(deepspeed=str(folder / "zero.json"))),  # type: ignore
}


def test_rollouts_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"micro_batches": NESTED, "settings": "{}"})
    with pytest.raises(FourdError, match=rf"{path}: the rollouts cannot be read .{SAID}"):
        load_replay(path, {}, list, list, pad_id=0, share=True, device=torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "read"), READERS.items(), ids=READERS)
def test_a_reader_names_the_file(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(NESTED + "\n")
    with pytest.raises(FourdError, match=rf"{name}.*{SAID}"):
        read(tmp_path)
