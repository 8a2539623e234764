"""Checkpoints in another form compute what they computed before, or are refused; a dry run writes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourdthinker import cli
from fourdthinker.backbones import FAMILIES, load_checkpoint, save_checkpoint
from fourdthinker.backbones.conversion import Conversion, convert_checkpoint, plan_conversion
from fourdthinker.errors import CheckpointError
from fourdthinker.prompt_style import RELEASED
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.unit.backbones.test_checkpoint import lora


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "4drl"
    tiny_checkpoint(folder, layers=1, style=RELEASED)
    (folder / "frame_policy.json").unlink()
    return folder.parent


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    save_checkpoint(folder, lora(tiny_checkpoint(layers=1)))
    return folder


def test_released_to_ours_and_back(released: Path, tmp_path: Path) -> None:
    found = convert_checkpoint(Conversion(str(released), "4drl"), tmp_path / "ours")
    assert (found.lost, found.difference) == (None, 0.0)
    assert (
        json.loads((tmp_path / "ours" / "frame_policy.json").read_text())["style"]["seconds_per_grid"] == 1.0
    )
    convert_checkpoint(Conversion(str(tmp_path / "ours"), form="released"), tmp_path / "back")
    assert not (tmp_path / "back" / "frame_policy.json").exists()
    loaded = load_checkpoint(tmp_path / "back")
    assert loaded.style == RELEASED
    first, last = (load_file(p / "model.safetensors") for p in (released / "4drl", tmp_path / "back"))
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_latent_tokens_are_added(family: str, tmp_path: Path) -> None:
    """The class is the config's, whatever the folder is called; the old ids keep their logits."""
    folder = tmp_path / "qwen2_5_vl-or-qwen3_vl"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, family=family, layers=1, spare_rows=20).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no latent tokens; add them with --latent-size"):
        plan_conversion(Conversion(str(folder)))
    assert convert_checkpoint(Conversion(str(folder), latent_size=3), tmp_path / "new").difference == 0
    loaded = load_checkpoint(tmp_path / "new")
    assert (loaded.backbone.family, loaded.backbone.latents.latent_size) == (family, 3)
    with pytest.raises(CheckpointError, match="has latent tokens already"):
        plan_conversion(Conversion(str(tmp_path / "new"), latent_size=3))


def test_an_adapter_is_merged_and_compared(adapted: Path, tmp_path: Path) -> None:
    found = convert_checkpoint(Conversion(str(adapted), merge=True), tmp_path / "merged")
    assert found.lost is not None
    assert 0 < found.difference < 1e-4
    assert not (tmp_path / "merged" / "adapter").exists()
    kept = convert_checkpoint(Conversion(str(adapted)), tmp_path / "kept")
    assert kept.difference == 0
    assert (tmp_path / "kept" / "adapter").is_dir()
    rounded = convert_checkpoint(
        Conversion(str(adapted), merge=True, dtype=torch.bfloat16), tmp_path / "half"
    )
    assert 1e-4 < rounded.difference < 0.1


@pytest.mark.parametrize(
    ("part", "factor"), [("layers.0.mlp.down_proj.weight", 1.01), ("merger.mlp.2.weight", math.nan)]
)
def test_what_computes_something_else_is_an_error(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, factor: float
) -> None:
    def spoilt(path: Path, checkpoint: Any) -> None:
        save_checkpoint(path, checkpoint)
        weights = load_file(path / "model.safetensors")
        name = next(name for name in weights if name.endswith(part))
        save_file(weights | {name: weights[name] * factor}, path / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr("fourdthinker.backbones.conversion.save_checkpoint", spoilt)
    with pytest.raises(CheckpointError, match="logits or vision features differ from those of"):
        convert_checkpoint(Conversion(str(released), "4drl"), tmp_path / "out")


def test_what_the_released_form_cannot_say(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the released form has no adapter; add --merge"):
        plan_conversion(Conversion(str(adapted), form="released"))
    with pytest.raises(CheckpointError, match="another frame policy or prompt style"):
        plan_conversion(Conversion(str(adapted), form="released", merge=True))
    tiny_checkpoint(tmp_path / "qwen3", layers=1, family="qwen3_vl")
    with pytest.raises(CheckpointError, match=r"that of Qwen2\.5-VL checkpoints"):
        plan_conversion(Conversion(str(tmp_path / "qwen3"), form="released"))
    with pytest.raises(CheckpointError, match="no adapter; there is nothing to merge"):
        plan_conversion(Conversion(str(tmp_path / "qwen3"), merge=True))


def test_a_dry_run_writes_nothing(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(adapted), str(tmp_path / "out"), "--merge", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"reads {adapted}, a qwen2_5_vl in our form"
    assert said[1:4] == [
        "adds the adapter to the weights, in float32", "writes frame_policy.json", "writes float32 weights",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert cli.main(["convert", str(adapted), str(tmp_path / "out"), "--merge"]) == 0
    said = capsys.readouterr().out
    assert "of the adapter was lost to rounding to float32" in said
    assert "logits and vision features of a trial input differ by" in said
