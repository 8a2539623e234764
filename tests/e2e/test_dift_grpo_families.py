"""Both trainers on both families, whole and with LoRA: they learn, save complete checkpoints, and resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fourdthinker import cli
from fourdthinker.backbones import FAMILIES, common, init_checkpoint, load_checkpoint, save_checkpoint
from fourdthinker.backbones.adapters import add_lora, merge_adapter
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.model import add_adapter
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import POLICIES, finish, metrics, settings, torchrun, write_data, write_model
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_data(folder / "data", 4)
    for family in FAMILIES:
        write_model(folder / family, family)
    known = load_checkpoint(folder / "qwen3_vl")  # as one that has learnt to open blocks
    with torch.no_grad():
        known.backbone.head_weight[known.backbone.latents.start_id] *= 1.5
    save_checkpoint(folder / "known", known)
    return folder


def dift(data: Path, run: Path, **changes: Any) -> Path:
    values = {
        "data": str(data / "data" / "dift.jsonl"),
        "output_dir": str(run),
        "use_cpu": True,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": 0,
        "report_to": [],
    }
    return train_dift(make_config(DiftConfig, values | changes))


def grpo(data: Path, run: Path, **changes: Any) -> Path:
    values = {
        "data": str(data / "data" / "rl.jsonl"),
        "output_dir": str(run),
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "num_generations": 3,
        "max_completion_length": 12,
        "train_start": True,
        "loss": {"beta": 0.05},
        "learning_rate": 1e-2,
        "rewards": ["tests.e2e.training:length_reward"],
        "reward_weights": [1.0],
        "save_steps": 0,
        "log_rollouts": 0,
        "report_to": [],
    }
    return train_grpo(make_config(GrpoConfig, values | changes))


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """Of a checkpoint, its adapter merged in float32."""
    backbone = load_checkpoint(folder).backbone
    if backbone.model is not backbone.hf:
        backbone, _ = merge_adapter(backbone, torch.float32)
    return backbone.hf.state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_qwen3_vl_from_imagery_to_rollouts(data: Path, tmp_path: Path) -> None:
    """DIFT from features kept on disk gives what DIFT from pictures gives; 4DRL goes on from there."""
    model = str(data / "qwen3_vl")
    first = dift(data, tmp_path / "plain", model=model)
    cached = dift(data, tmp_path / "cached", model=model, cache_dir=str(tmp_path / "cache"), cache_video=True)
    losses = [line["loss"] for line in metrics(tmp_path / "plain")]
    assert losses == pytest.approx([line["loss"] for line in metrics(tmp_path / "cached")], rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    before, after = weights(model), weights(first)
    moved = changed(before, after)
    assert moved
    assert not any("visual" in name for name in moved)
    for name in before:
        torch.testing.assert_close(after[name], weights(cached)[name], atol=1e-4, rtol=1e-4)

    for number, share in enumerate((True, False)):
        run = tmp_path / f"rl{number}"
        final = grpo(data, run, model=str(first), share_prompt=share, gradient_checkpointing=share)
        lines = metrics(run)
        assert all(line["sampler_gap"] < 1e-4 for line in lines)
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert lines[-1]["kl"] > 1e-6
        assert load_checkpoint(final).policy == POLICIES["qwen3_vl"]
    shared, plain = (metrics(tmp_path / f"rl{n}")[0] for n in (0, 1))
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_an_open_tower_learns_through_deepstack(data: Path, tmp_path: Path) -> None:
    model = str(data / "qwen3_vl")
    final = dift(data, tmp_path / "run", model=model, freeze_vision=False, max_steps=1)
    moved = changed(weights(model), weights(final))
    assert any("deepstack_merger_list.1" in name for name in moved)


def hidden_of(backbone: Backbone) -> torch.Tensor:
    ids = torch.arange(12)[None]
    batch = {"input_ids": ids, "position_ids": torch.arange(12).expand(3, 1, -1)}
    with torch.no_grad():
        return backbone(batch, lambda _, hidden, __: hidden)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora(data: Path, tmp_path: Path, family: str) -> None:
    """DIFT and 4DRL: what is saved is whole, its adapter works on the base, and a resumed run is the same."""
    model = str(data / family)
    with pytest.raises(ConfigError, match=r"new .* set lora.train_embeddings=true"):
        dift(data, tmp_path / "new", model=model, lora={})
    first = dift(data, tmp_path / "dift", model=model, lora={"r": 4, "train_embeddings": True}, save_steps=2)
    lines = metrics(tmp_path / "dift")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    moved = changed(weights(model), weights(first))
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved if "layers" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not any("visual" in name or "norm" in name for name in moved)
    assert any("embed_tokens" in name for name in moved)

    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "dift" / "checkpoint-2", broken / "checkpoint-2")
    lora = {"r": 4, "train_embeddings": True}
    again = dift(data, broken, model=model, lora=lora, save_steps=2, resume_from_checkpoint="auto")
    assert not changed(weights(first), weights(again))
    shutil.copytree(tmp_path / "dift" / "checkpoint-2", tmp_path / "other" / "checkpoint-2")
    with pytest.raises(ConfigError, match=r"keeps its settings, but lora is \{'r': 3, .* and was \{'r': 4, "):
        dift(data, tmp_path / "other", model=model, lora=lora | {"r": 3}, resume_from_checkpoint="auto")

    # The rows of the latent tokens are trained now: from here on the adapter alone learns.
    lora = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    for settings_ in ({"lora": lora}, {}):
        with pytest.raises(ConfigError, match=r"model .* has an adapter; merge it .* convert --merge"):
            grpo(data, tmp_path / "rl", model=str(first), **settings_)
    assert cli.main(["convert", "--merge", str(first), str(tmp_path / "merged")]) == 0
    first = tmp_path / "merged"
    final = grpo(data, tmp_path / "rl", model=str(first), lora=lora, save_steps=2)
    lines = metrics(tmp_path / "rl")
    assert all(line["sampler_gap"] < 1e-4 for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6), "without its adapter the model is where it started"
    assert lines[-1]["kl"] > 1e-6
    moved = changed(weights(first), weights(final))
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} == {"q_proj", "down_proj"}
    trained = load_checkpoint(final).backbone
    base = load_checkpoint(first).backbone
    adapted = type(base)(PeftModel.from_pretrained(base.hf, final / "adapter"))
    torch.testing.assert_close(hidden_of(adapted), hidden_of(trained), atol=1e-5, rtol=1e-5)

    broken = tmp_path / "rl_broken"
    shutil.copytree(tmp_path / "rl" / "checkpoint-2", broken / "checkpoint-2")
    again = grpo(data, broken, model=str(first), lora=lora, save_steps=2, resume_from_checkpoint="auto")
    assert not changed(weights(final), weights(again))
    assert metrics(broken)[-1]["kl"] == lines[-1]["kl"]


def test_reference_of_an_adapter_is_that_of_a_copy(data: Path, tmp_path: Path) -> None:
    """Embeddings that train as well need a copied reference; at the first step it is the same one."""
    model, runs = str(data / "known"), []
    for number, extra in enumerate(({}, {"train_embeddings": True})):
        lora = {"r": 2, "target_modules": ["v_proj"]} | extra
        grpo(data, tmp_path / str(number), model=model, lora=lora, max_steps=1, num_iterations=1)
        runs.append(metrics(tmp_path / str(number))[0])
    assert runs[0]["kl"] == pytest.approx(runs[1]["kl"], abs=1e-6)
    assert runs[0]["reward"] == runs[1]["reward"]


def test_an_adapter_begins_by_the_seed(data: Path) -> None:
    def begin(seed: int) -> dict[str, torch.Tensor]:
        backbone = load_checkpoint(data / "known").backbone
        torch.rand(seed)
        add_adapter(make_config(GrpoConfig, {"lora": {"r": 2}, "seed": seed}), backbone)
        return {n: p for n, p in backbone.named_parameters() if "lora_A" in n}

    first, again, other = begin(1), begin(1), begin(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_two_processes_train_one_adapter(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = {"model": str(data / "known"), "data": str(data / "data" / "rl.jsonl"), "output_dir": str(run)}
    values |= {
        "use_cpu": True,
        "max_steps": 2,
        "num_generations": 3,
        "max_completion_length": 8,
        "save_steps": 0,
    }
    values |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "lora": {"r": 2}}
    finish(torchrun(2, "-m", "fourdthinker.trainers.grpo", *settings(values)))
    assert all(line["sampler_gap"] < 1e-4 for line in metrics(run))
    moved = changed(weights(data / "known"), weights(run / "final"))
    assert moved
    assert all("_proj" in name for name in moved)


def test_sharing_checks_itself(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_before(segment: torch.Tensor, *_: Any) -> torch.Tensor:
        size = segment.shape[1]
        return torch.ones(len(segment), 1, size, size, dtype=torch.bool).tril()

    monkeypatch.setattr(common, "packed_mask", all_before)
    with pytest.raises(ConfigError, match=r"share_prompt: .* off by .*; set share_prompt=false"):
        grpo(data, tmp_path / "run", model=str(data / "qwen3_vl"))


def test_settings_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    model = str(data / "qwen3_vl")
    wrong = {"target_modules": ["qkv_proj", "q_proj"]}
    with pytest.raises(ConfigError, match=r"a qwen3_vl has no qkv_proj; its decoder layers have down_proj"):
        grpo(data, tmp_path / "a", model=str(data / "known"), lora=wrong)
    with pytest.raises(ConfigError, match=r"lora.dropout is 0.1; the policy that is trained"):
        grpo(data, tmp_path / "b", model=model, lora={"dropout": 0.1})
    frames = {"fps": 2.0, "max_frames": 4, "max_pixels": 56 * 56}
    with pytest.raises(ConfigError, match=r"factor is 28 \(as for a qwen2_5_vl\).* needs 32, as a qwen3_vl"):
        grpo(data, tmp_path / "c", model=model, frames=frames, override_policy=True)
    checkpoint = tiny_checkpoint(policy=POLICIES["qwen2_5_vl"])
    add_lora(checkpoint.backbone, r=1, alpha=1.0, dropout=0.0, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="has an adapter already"):
        add_lora(checkpoint.backbone, r=1, alpha=1.0, dropout=0.0, target_modules=["q_proj"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_from_the_makers_model(data: Path, tmp_path: Path, family: str) -> None:
    """A base model grows its latent tokens on the way, with an adapter too, and resumes from the base."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, family=family, layers=1, spare_rows=8).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    checkpoint = init_checkpoint(tmp_path / "base")
    assert checkpoint.policy.factor == checkpoint.backbone.vision.factor
    save_checkpoint(tmp_path / "init", checkpoint)
    assert load_checkpoint(tmp_path / "init").policy == checkpoint.policy

    settings = {"model": str(tmp_path / "base"), "latent_size": 4, "frames": POLICIES[family].to_dict()}
    settings |= {"lora": {"r": 2, "train_embeddings": True}, "max_steps": 2, "save_steps": 1}
    final = dift(data, tmp_path / "run", **settings)
    shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "broken" / "checkpoint-1")
    again = dift(data, tmp_path / "broken", **settings, resume_from_checkpoint="auto")
    assert not changed(weights(final), weights(again))
