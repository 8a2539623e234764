"""Checkpoints in another form compute what they computed before, or are refused; a dry run writes nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourdthinker import cli
from fourdthinker.backbones import FAMILIES, load_checkpoint, save_checkpoint
from fourdthinker.backbones.conversion import Conversion, convert_checkpoint, plan_conversion
from fourdthinker.backbones.trial import trial_outputs, worst_difference
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


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[Path], None]) -> None:
    """Let what is written be changed before it is loaded."""

    def save(path: Path, checkpoint: Any) -> None:
        save_checkpoint(path, checkpoint)
        spoilt(path)

    monkeypatch.setattr("fourdthinker.backbones.conversion.save_checkpoint", save)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("part", "factor", "where"),
    [
        ("layers.0.mlp.down_proj.weight", 1.01, "logits"),
        ("layers.0.mlp.down_proj.weight", -5, "logits"),
        ("merger.mlp.2.weight", math.nan, "vision features"),
    ],
)
def test_what_computes_something_else_is_an_error(
    released: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    factor: float,
    where: str,
    dtype: torch.dtype | None,
) -> None:
    """Whatever the dtype that is written: rounding explains no other difference than its own."""

    def spoilt(path: Path) -> None:
        weights = load_file(path / "model.safetensors")
        name = next(name for name in weights if name.endswith(part))
        save_file(weights | {name: weights[name] * factor}, path / "model.safetensors", {"format": "pt"})

    spoil(monkeypatch, spoilt)
    with pytest.raises(CheckpointError, match=f"its {where}.* differ from those of"):
        convert_checkpoint(Conversion(str(released), "4drl", dtype=dtype), tmp_path / "out")


def test_rounding_alone_is_no_error(released: Path, adapted: Path, tmp_path: Path) -> None:
    for source, subfolder in ((released, "4drl"), (adapted, None)):
        found = convert_checkpoint(
            Conversion(str(source), subfolder, dtype=torch.bfloat16), tmp_path / source.name
        )
        assert 0 < found.difference < 0.1


@pytest.mark.parametrize(("held", "named"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_of_another_dtype_than_config_names_are_written_in_that(
    released: Path, tmp_path: Path, held: str, named: str
) -> None:
    """As transformers loads them; the plan says so, and the source rounded alike is what is expected."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(released / "4drl", source)
    weights = {
        name: part.to(getattr(torch, held)) for name, part in load_file(source / "model.safetensors").items()
    }
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("torch_dtype", None)
        part["dtype"] = named
    (source / "config.json").write_text(json.dumps(config))
    plan = plan_conversion(Conversion(str(source)))
    assert f"writes {named} weights, from {held}, as config.json says" in plan
    found = convert_checkpoint(Conversion(str(source)), out)
    written = load_file(out / "model.safetensors")
    assert {str(part.dtype) for part in written.values()} == {f"torch.{named}"}
    assert all(torch.equal(part, weights[name].to(part.dtype)) for name, part in written.items())
    assert (found.difference > 0) == (held == "float32")
    assert "keeps the dtype of the weights" in plan_conversion(Conversion(str(out)))


def test_a_plan_ascribes_no_dtype_to_a_config_that_names_none(released: Path, tmp_path: Path) -> None:
    """Weights of two dtypes are written in one of them, which is nothing that config.json says."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(released / "4drl", source)
    weights = load_file(source / "model.safetensors")
    last = max(weights)
    weights[last] = weights[last].bfloat16()
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("torch_dtype", None)
        part.pop("dtype", None)
    (source / "config.json").write_text(json.dumps(config))
    assert "writes float32 weights, from float32 and bfloat16" in plan_conversion(Conversion(str(source)))
    convert_checkpoint(Conversion(str(source)), out)
    assert {str(part.dtype) for part in load_file(out / "model.safetensors").values()} == {"torch.float32"}


def test_an_adapter_is_added_to_weights_that_nothing_has_rounded(adapted: Path, tmp_path: Path) -> None:
    """Files in float32, which config.json calls bfloat16."""
    source = tmp_path / "source"
    shutil.copytree(adapted, source)
    text = (source / "config.json").read_text()
    assert '"float32"' in text
    (source / "config.json").write_text(text.replace('"float32"', '"bfloat16"'))
    assert convert_checkpoint(Conversion(str(source), merge=True), tmp_path / "out").difference < 1e-4


def test_a_dry_run_names_weights_that_cannot_be_read(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released / "4drl", tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        plan_conversion(Conversion(str(tmp_path / "source")))


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("chat_template.jinja", "assistant", "helper", "chat template"),
        ("generation_config.json", '"eos_token_id": [', '"top_k": 3, "eos_token_id": [', "generation config"),
        (
            "tokenizer_config.json",
            '"eos_token": "<|im_end|>"',
            '"eos_token": "<|endoftext|>"',
            "special tokens",
        ),
        ("config.json", '"latent_size": 4', '"latent_size": 3', "latent"),
        ("frame_policy.json", '"fps": 1.0', '"fps": 2.0', "frame policy"),
    ],
)
def test_what_is_beside_the_weights_is_compared(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, what: str
) -> None:
    def spoilt(path: Path) -> None:
        text = (path / file).read_text(encoding="utf-8")
        assert old in text
        (path / file).write_text(text.replace(old, new), encoding="utf-8")

    spoil(monkeypatch, spoilt)
    with pytest.raises(CheckpointError, match=f"its {what}.* is not that of"):
        convert_checkpoint(Conversion(str(adapted), merge=True), tmp_path / "out")


def test_the_trial_thinks_a_block(released: Path) -> None:
    """A hidden state is fed back as the sampler does, so that `latent_norm` and the markers' rows count."""
    checkpoint = load_checkpoint(released / "4drl")
    first = trial_outputs(checkpoint)
    assert first["logits of a latent block"].shape[0] == checkpoint.backbone.latents.latent_size + 2
    checkpoint.backbone.latents = replace(checkpoint.backbone.latents, latent_norm=0.01)
    name, difference = worst_difference(trial_outputs(checkpoint), first)
    assert name == "logits of a latent block"
    assert difference > 1e-3


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
        "adds the adapter to the weights, in float32",
        "writes frame_policy.json",
        "keeps the dtype of the weights",
    ]
    assert not (tmp_path / "out").exists()
    assert cli.main(["convert", str(adapted), str(tmp_path / "out"), "--merge"]) == 0
    said = capsys.readouterr().out
    assert "of the adapter was lost to rounding to float32" in said
    assert "logits and vision features of a trial input differ by" in said
