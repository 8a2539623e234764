"""Models without latent tokens: loaded, sampled and saved as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from fourdthinker import cli
from fourdthinker.backbones import init_checkpoint, load_checkpoint, save_checkpoint
from fourdthinker.backbones.conversion import Conversion, convert_checkpoint, plan_conversion
from fourdthinker.errors import CheckpointError, RecordError
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import LatentSpec
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import collate
from fourdthinker.settings import make_config
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.model import load_model
from fourdthinker.trainers.settings import DiftConfig
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.backbones.test_checkpoint import lora


def write_plain(folder: Path, spare_rows: int = 8) -> Path:
    """A base model as its makers publish it."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=1, spare_rows=spare_rows).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain"))


def test_loaded_on_request_alone(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it knows no latent tokens"):
        load_checkpoint(folder)
    loaded = load_checkpoint(folder, plain=True)
    rows = loaded.backbone.embedding_weight.shape[0]
    assert loaded.backbone.latents.ids == (rows - 3, rows - 2, rows - 1)
    assert loaded.style.instruction == ""
    with pytest.raises(CheckpointError, match=r"\d+ rows for \d+ tokens; .* needs three spare ones"):
        load_checkpoint(write_plain(tmp_path, spare_rows=2), plain=True)
    assert LatentSpec.none(10, 7).ids == (7, 8, 9)
    with pytest.raises(CheckpointError, match="10 rows for 8 tokens"):
        LatentSpec.none(10, 8)


def test_saved_without_a_word_of_latents(folder: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(folder, plain=True)
    save_checkpoint(tmp_path, loaded)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not [key for key in config if "latent" in key or key.endswith("loss_weight")]
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tiny_tokenizer().get_vocab()
    there = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    before = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, there[name]) for name, value in before.items())
    assert load_checkpoint(tmp_path).backbone.latents == loaded.backbone.latents  # it says so itself


def test_samples_text_alone_with_the_log_probs_of_transformers(folder: Path) -> None:
    loaded = load_checkpoint(folder, plain=True)
    prompt = loaded.encoder().prompt(Record("rl", "r", "Which way?"))
    config = SamplingConfig(max_new_tokens=24, eos_ids=(0,), max_blocks=3)
    rollout = LatentSampler(loaded.backbone).sample([prompt], 4, config)
    assert not len(rollout.latents)
    assert not torch.isin(rollout.tokens, torch.tensor(loaded.backbone.latents.ids)).any()
    assert rollout.policy_mask[0, : rollout.lengths[0]].all()
    ids = torch.cat([prompt.input_ids, rollout.tokens[0, : rollout.lengths[0]]])
    with torch.no_grad():
        logits = loaded.backbone.hf(input_ids=ids[None]).logits[0]
    expected = logits.log_softmax(-1)[
        torch.arange(len(prompt.input_ids) - 1, len(ids) - 1), ids[len(prompt.input_ids) :]
    ]
    assert torch.allclose(rollout.logprobs[0, : len(expected)], expected, atol=1e-4)


def test_blocks_have_no_place(folder: Path) -> None:
    encoder = load_checkpoint(folder, plain=True).encoder()
    with pytest.raises(RecordError, match=r"d:1: text_output holds <output_image>, and this model has no"):
        encoder.sample(
            Record("dift", "r", "?", text_output="<output_image>", where="d:1"), None, torch.zeros(1, 32)
        )
    batch = collate([encoder.sample(Record("dift", "r", "?", text_output="Words."))], 0)
    assert not batch["latent_index"].numel()


def test_latent_tokens_change_neither_frame_policy_nor_style(folder: Path, tmp_path: Path) -> None:
    policy = FramePolicy(fps=3, max_frames=5)
    trained = load_checkpoint(folder, plain=True, policy=policy)
    save_checkpoint(tmp_path, trained)
    grown = init_checkpoint(tmp_path, latent_size=2)
    assert grown.backbone.latents.latent_size == 2
    assert (grown.policy, grown.style) == (policy, trained.style)
    with pytest.raises(CheckpointError, match=r"another frame policy: fps \(checkpoint 3"):
        init_checkpoint(tmp_path, policy=FramePolicy(fps=1, max_frames=5))
    assert init_checkpoint(tmp_path, policy=FramePolicy(), override_policy=True).policy == FramePolicy()


def test_an_adapter_is_merged_before_latent_tokens_are_added(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `init`, `convert` and DIFT alike none is dropped without a word."""
    adapted = tmp_path / "adapted"
    save_checkpoint(adapted, lora(load_checkpoint(folder, plain=True)))
    refused = r"adapted has an adapter; .*merge it .* convert --merge"
    for size in (None, 4):
        with pytest.raises(CheckpointError, match=refused):
            init_checkpoint(adapted, latent_size=size)
    assert cli.main(["init", str(adapted), str(tmp_path / "grown")]) == 2
    assert "convert --merge" in capsys.readouterr().err
    assert not (tmp_path / "grown").exists()
    for merge in (False, True):
        with pytest.raises(CheckpointError, match=refused):
            plan_conversion(Conversion(str(adapted), merge=merge, latent_size=4))
    values = {"model": str(adapted), "latent_size": 4, "output_dir": str(tmp_path / "run")}
    config = make_config(DiftConfig, values | {"data": ["a"]})
    with pytest.raises(CheckpointError, match=refused):
        load_model(config, training_arguments(config), None, None)
    convert_checkpoint(Conversion(str(adapted), merge=True), tmp_path / "merged")
    assert init_checkpoint(tmp_path / "merged", latent_size=4).backbone.latents.latent_size == 4
