"""DIFT beyond the published recipe: the norm of latents, and training on the model's own."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint, load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import Sample
from fourdthinker.settings import make_config
from fourdthinker.trainers import dift
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import BARE, metrics, prompts, samples, unexplained
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_packing import OftenStart

BASE: dict[str, Any] = BARE | {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
}


def larger(checkpoint: Checkpoint, number: int = 12) -> list[Sample]:
    """Samples whose targets are larger than hidden states after the final norm."""
    made = samples(checkpoint, number)
    for sample in made:
        assert sample.latents is not None
        sample.latents = 1.5 * sample.latents
    return made


def train(folder: Path, **extra: Any) -> Path:
    checkpoint = tiny_checkpoint(layers=1)
    config = make_config(DiftConfig, BASE | {"output_dir": str(folder)} | extra)
    return train_dift(config, checkpoint=checkpoint, samples=larger(checkpoint))


def test_the_norm_is_learnt_and_saved_and_given_to_what_is_fed_back(tmp_path: Path) -> None:
    final = train(tmp_path / "run", latent_norm=1.0, max_steps=60, learning_rate=1e-2)
    lines = metrics(tmp_path / "run")
    assert abs(lines[-1]["latent_log_norm"]) < 0.3 * abs(lines[0]["latent_log_norm"])
    assert unexplained(lines[-1]) == set()
    loaded = load_checkpoint(final)
    norm = loaded.backbone.latents.latent_norm
    logs = [s.latents.norm(dim=-1).log() for s in larger(loaded) if s.latents is not None]
    assert norm == pytest.approx(math.exp(torch.cat(logs).mean().item()), rel=0.02)
    rollout = LatentSampler(loaded.backbone).sample(
        prompts(loaded, 3),
        4,
        SamplingConfig(max_new_tokens=30, max_blocks=3, seed=0),
        logits_processor=[OftenStart()],
    )
    assert rollout.latents.shape[0] >= 4
    torch.testing.assert_close(
        rollout.latents.norm(dim=-1), torch.full((rollout.latents.shape[0],), norm), rtol=1e-4, atol=0
    )


def test_without_it_nothing_is_rescaled_or_saved(tmp_path: Path) -> None:
    final = train(tmp_path / "run", max_steps=2)
    assert load_checkpoint(final).backbone.latents.latent_norm is None
    assert "latent_norm" not in (final / "config.json").read_text()
    assert "latent_log_norm" not in metrics(tmp_path / "run")[0]


def test_the_running_norm_goes_on_with_the_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", latent_norm=0.5, max_steps=6)
    train(tmp_path / "broken", latent_norm=0.5, max_steps=3, save_steps=3)
    resumed = train(
        tmp_path / "broken", latent_norm=0.5, max_steps=6, save_steps=3, resume_from_checkpoint="auto"
    )
    one, two = (load_checkpoint(folder).backbone.latents.latent_norm for folder in (whole, resumed))
    assert one == pytest.approx(two, rel=1e-6)


def test_own_latents_are_fed_in_the_last_updates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[bool] = []
    items = larger(tiny_checkpoint(layers=1))
    original = dift.dift_objective

    def spy(backbone: Any, hidden: torch.Tensor, batch: Any, **options: Any) -> Any:
        fed.append("fed_latents" in batch)
        known = torch.cat([item.latents for item in items if item.latents is not None])
        assert torch.isin(batch["latents"], known).all(), "the targets are still the tower's"
        if fed[-1]:
            assert not torch.isin(batch["fed_latents"], known).any()
        return original(backbone, hidden, batch, **options)

    monkeypatch.setattr(dift, "dift_objective", spy)
    train(tmp_path / "run", self_feed=0.25, max_steps=8)
    assert fed == [False] * 6 + [True] * 2


def test_a_run_with_a_bottleneck_and_cells_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"latent_bottleneck": True, "latent_pooling": "grid", "self_feed": 0.5}
    settings |= {"max_steps": 4, "save_steps": 2}
    whole, killed = train(tmp_path / "whole", **settings), tmp_path / "killed"
    shutil.copytree(whole.parent, killed)
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(killed / name)
    settings["resume_from_checkpoint"] = "auto"
    with pytest.raises(ConfigError, match="latent_bottleneck"):
        train(killed, **settings | {"latent_bottleneck": False})
    one, two = load_checkpoint(whole), load_checkpoint(train(killed, **settings))
    assert one.backbone.latents.compress_strategy == two.backbone.latents.compress_strategy == "grid"
    for mine, other in zip(one.backbone.parameters(), two.backbone.parameters(), strict=True):
        assert torch.equal(mine, other)
    plain = train(tmp_path / "plain", max_steps=1)
    assert load_checkpoint(plain).backbone.latents.compress_strategy == "average"
    assert abs(metrics(tmp_path / "plain")[0]["ce"] - metrics(tmp_path / "whole")[0]["ce"]) > 1e-4


def test_another_k_than_that_of_the_checkpoint_that_is_passed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"latent_size is 3, and the checkpoint that was passed .* has 4"):
        train(tmp_path / "run", latent_size=3)


def test_a_bottleneck_needs_an_attention_that_takes_its_mask(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    checkpoint.backbone.hf.model.language_model.config._attn_implementation = "flash_attention_2"
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "latent_bottleneck": True})
    with pytest.raises(ConfigError, match=r"latent_bottleneck needs sdpa or eager .* has flash_att"):
        train_dift(config, checkpoint=checkpoint, samples=larger(checkpoint))
