"""Steps without a finite loss, metrics, and the run folder, on samples in memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from fourdthinker.errors import OutputError
from fourdthinker.records import Record
from fourdthinker.settings import make_config
from fourdthinker.trainers.beginning import _cut_lines
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.settings_files import load_config
from fourdthinker.trainers.update import NonFiniteLossError
from fourdthinker.trainers.vision_cache import tower_fingerprint
from tests.e2e.training import BARE, metrics, samples
from tests.full_disk import largest_file
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = BARE | {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
}


def test_a_step_without_a_finite_loss_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    items = samples(checkpoint, 6)
    items[4].latents = torch.full_like(items[4].latents, torch.nan)  # type: ignore[arg-type]
    items[4].record = Record("dift", "broken", "?", where="data.jsonl:5")
    with caplog.at_level(logging.WARNING):
        train_dift(
            make_config(DiftConfig, BASE | {"output_dir": str(tmp_path)}),
            checkpoint=checkpoint,
            samples=items,
        )
    lines = metrics(tmp_path)
    assert [line["bad_steps"] for line in lines][-1] == 1
    (bad,) = [line for line in lines if line["loss"] == 0]
    assert "ce" not in bad
    assert "'broken' (data.jsonl:5)" in caplog.text
    assert all(torch.isfinite(p).all() for p in checkpoint.backbone.parameters())
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    items = samples(checkpoint, 2)
    items[0].latents = torch.full_like(items[0].latents, torch.inf)  # type: ignore[arg-type]
    before = {name: p.clone() for name, p in checkpoint.backbone.named_parameters()}
    # The first half of the update is good and must not be applied either.
    values = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    config = make_config(DiftConfig, BASE | values | {"output_dir": str(tmp_path)})
    train_dift(config, checkpoint=checkpoint, samples=items)
    assert metrics(tmp_path)[0]["bad_steps"] == 1
    assert all(torch.equal(before[name], p) for name, p in checkpoint.backbone.named_parameters())


def test_too_many_of_them_end_the_run(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    items = samples(checkpoint, 6)
    for item in items:
        item.latents = torch.full_like(item.latents, torch.nan)  # type: ignore[arg-type]
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "max_bad_steps": 1})
    with pytest.raises(
        NonFiniteLossError, match=r"step 2: non-finite loss, in item \d, item \d; 2 such steps"
    ):
        train_dift(config, checkpoint=checkpoint, samples=items)


def test_a_gradient_that_is_not_finite_is_a_bad_step_too(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    checkpoint.backbone.embedding_weight.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: p.clone() for name, p in checkpoint.backbone.named_parameters()}
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "max_steps": 1})
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))
    assert metrics(tmp_path)[0]["bad_steps"] == 1
    assert all(torch.equal(before[name], p) for name, p in checkpoint.backbone.named_parameters())


def test_metrics_are_means_over_tokens_since_the_last_line(tmp_path: Path) -> None:
    runs = {}
    for every in (1, 3):
        checkpoint = tiny_checkpoint(hidden=32, layers=1)
        values = {"logging_steps": every, "output_dir": str(tmp_path / str(every)), "max_steps": 3}
        config = make_config(DiftConfig, BASE | values | {"learning_rate": 0.0})
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 6))
        runs[every] = metrics(tmp_path / str(every))
    (coarse,) = runs[3]
    # Without learning, the mean over three steps is the mean over their tokens, whatever the steps' sizes.
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    items = samples(checkpoint, 6)
    still = BASE | {"per_device_train_batch_size": 6, "learning_rate": 0.0}
    config = make_config(DiftConfig, still | {"output_dir": str(tmp_path / "all")})
    train_dift(config, checkpoint=checkpoint, samples=items)
    (whole,) = metrics(tmp_path / "all")
    for name in ("ce", "cosine", "latent_cos", "latent_cos_3"):
        assert coarse[name] == pytest.approx(whole[name], rel=1e-5)
        assert [line[name] for line in runs[1]] != [whole[name]] * 3


def test_no_log_line_is_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trainer's last line has its run time and no loss."""
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "max_steps": 1})
    with caplog.at_level(logging.INFO, "fourdthinker"):
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step ")]
    assert [line.split(" ")[2] for line in lines] == ["loss", "train_runtime"]


def test_a_disk_that_is_full_for_the_optimizer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, save = tiny_checkpoint(hidden=32, layers=1), Trainer._save_optimizer_and_scheduler

    def save_on_a_full_disk(self: Trainer, folder: str) -> None:
        with largest_file(1000):
            save(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", save_on_a_full_disk)
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path / "run"), "save_steps": 1})
    with pytest.raises(OutputError, match=r"run/checkpoint-1: cannot be written \("):
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))


def test_settings_that_somebody_wrote_are_renamed(tmp_path: Path) -> None:
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "max_steps": 1})
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    (tmp_path / "config.yaml").write_text("# by hand\nmax_steps: 1\n")
    for _ in range(2):  # of a run that was killed early, those of the same settings stay
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))
        assert (tmp_path / "former-config.yaml").read_text() == "# by hand\nmax_steps: 1\n"
        assert load_config(DiftConfig, tmp_path / "config.yaml") == config
        (tmp_path / "metrics.jsonl").unlink()
    assert len(list(tmp_path.glob("*config.yaml"))) == 2


def test_lines_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 2, "lo')
    _cut_lines(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    _cut_lines(tmp_path / "none", 2)


def test_fingerprint_is_of_the_towers_weights() -> None:
    one, same, other = (tiny_checkpoint(layers=1, seed=s).backbone for s in (0, 0, 1))
    assert tower_fingerprint(one) == tower_fingerprint(same) != tower_fingerprint(other)
    with torch.no_grad():
        next(iter(same.visual.parameters())).view(-1)[3] += 1e-6
        one.embedding_weight[0] += 1
    assert tower_fingerprint(one) != tower_fingerprint(same)
