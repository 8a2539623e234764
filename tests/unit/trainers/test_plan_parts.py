"""The plan of a run: pixels, casts, optimizers by their names, and passes without gradient."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench._measure import peak_allocated
from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.backbones.outline import vision_patches
from fourdthinker.frames import FramePolicy
from fourdthinker.objectives import grpo_objective
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import main
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.operations import Costs, self_fed
from fourdthinker.trainers.plan import make_plan
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_plan import ANSWER, CACHED, PROMPT, batch_of, dift_passes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, str]:
    made, folder = tiny_checkpoint(hidden=64, layers=3), tmp_path_factory.mktemp("model")
    save_checkpoint(folder, made)
    return made, str(folder)


@pytest.mark.parametrize("clips", [1, 4])
def test_a_frozen_tower_over_all_clips_of_a_forward_is_counted(
    checkpoint: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch, clips: int
) -> None:
    """Pixels and not features: within 15 % of what a step holds on top of its batch."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    values: dict[str, Any] = {"model": checkpoint[1], "use_cpu": True, "max_prompt_tokens": PROMPT}
    values |= {"frames": {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}, "override_policy": True}
    values |= {"cache_dir": "none"}  # of imagery
    plan = make_plan(make_config(DiftConfig, values | {"per_device_train_batch_size": clips}), on_cpu=True)
    backbone = copy.deepcopy(checkpoint[0].backbone)
    batch = batch_of(backbone, 1, clips, False)
    del batch["vision_features"]
    grid = vision_patches(backbone, FramePolicy(**values["frames"]))
    batch |= {"grid_thw": grid.repeat(clips, 1)}
    batch["patches"] = torch.randn(clips * int(grid.prod()), backbone.vision.patch_dim)
    step = dift_passes(backbone, batch)
    given = batch["patches"].nbytes
    both = max(plan.phases["training"], plan.phases["vision"])
    static = sum(plan.parts[name] for name in ("weights", "optimizer"))
    assert both - static - given == pytest.approx(peak_allocated(step), rel=0.15)
    cached = make_plan(make_config(DiftConfig, values | {"cache_video": True}))
    assert "vision" not in cached.phases
    assert cached.work.sampling == 0 < plan.work.sampling


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_deepstack_of_qwen3_vl_is_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """Within 15 % of what a step with features for the first decoder layers holds on top of its batch."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    loaded = tiny_checkpoint(family="qwen3_vl", hidden=64, layers=3)
    save_checkpoint(tmp_path, loaded)
    values: dict[str, Any] = {"model": str(tmp_path), "use_cpu": True, "max_prompt_tokens": PROMPT}
    values |= {"frames": {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 32 * 32}, "override_policy": True}
    backbone = loaded.backbone
    assert backbone.deepstack_levels
    step: Any
    if trainer == "dift":
        plan = make_plan(make_config(DiftConfig, values | CACHED), on_cpu=True)
        batch = batch_of(backbone, 1, 1, False)
        step = dift_passes(backbone, batch)
    else:
        more = {"num_generations": 4, "max_completion_length": ANSWER, "loss": {"beta": 0.0}}
        config = make_config(GrpoConfig, values | more)
        plan, batch = make_plan(config, on_cpu=True), batch_of(backbone, 4, 1, True)
        objective = partial(grpo_objective, options=config.loss, num_items=4.0)
        dift_passes(backbone, batch)
        step = lambda: backbone(batch, objective)[0].backward()  # noqa: E731
    static = sum(plan.parts[name] for name in ("weights", "optimizer"))
    given = batch["vision_features"].nbytes
    assert plan.phases["training"] - static - given == pytest.approx(peak_allocated(step), rel=0.15)


def test_layers_by_liger_keep_what_ours_compute_again(
    checkpoint: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it would be used: on a GPU, with `auto` where it is installed."""
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "num_generations": 2}
    values |= {"max_completion_length": ANSWER}

    def kept(liger: Any, *, on_cpu: bool = False, **extra: Any) -> int:
        config = make_config(GrpoConfig, values | extra | {"liger": liger})
        return make_plan(config, on_cpu=on_cpu).parts["activations"]

    backbone = checkpoint[0].backbone
    positions, width = PROMPT + 2 * ANSWER, backbone.hidden_size
    inner = backbone.hf.config.text_config.intermediate_size
    more = 4 * positions * backbone.num_layers * (2 * width + inner)  # outputs of norms, and the product
    assert kept(True) - kept(False) == pytest.approx(more, rel=0.05)
    assert kept(True, gradient_checkpointing=True) < 0.6 * kept(True)
    assert kept("auto", on_cpu=True) == kept(False, on_cpu=True)
    for installed in (False, True):
        monkeypatch.setattr("fourdthinker.backbones.liger.is_installed", lambda there=installed: there)
        assert kept("auto") == kept(installed)


def test_casts_of_autocast_are_held_while_rollouts_are_sampled(checkpoint: tuple[Checkpoint, str]) -> None:
    values: dict[str, Any] = {"model": checkpoint[1], "use_cpu": True, "max_prompt_tokens": PROMPT}
    plan = make_plan(make_config(GrpoConfig, values | {"bf16": True}), on_cpu=True)
    backbone = copy.deepcopy(checkpoint[0].backbone).eval()
    backbone.freeze_vision()
    batch = batch_of(backbone, 1, 1, False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), LiveBytes() as live:
        backbone(batch, lambda *_: None)
        cached = live.held  # until autocast ends
    parts, kept = plan.parts, ("weights", "optimizer", "master weights", "reference")
    held = plan.phases["rollouts"] - sum(parts[name] for name in kept) - plan.cache[0]
    sampled = max(parts["KV cache"] + parts["sampling"], parts["vision"] - plan.cache[0])
    assert held - sampled == pytest.approx(cached, rel=0.05)


def test_the_state_of_the_optimizer_goes_by_its_name(
    checkpoint: tuple[Checkpoint, str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT}
    plain, sgd = (
        make_plan(make_config(DiftConfig, values | {"optim": name})) for name in ("adamw_torch_fused", "sgd")
    )
    assert (plain.parts["optimizer"], sgd.parts["optimizer"]) == (8 * plain.trained, 0)
    assert plain.peak - sgd.peak == 8 * plain.trained
    for name, said in (("adamw_torch", False), ("adafactor", True)):
        main(["--dry-run", f"model={checkpoint[1]}", "data=none.jsonl", f"optim={name}"])
        assert (f"the state of {name} is not known" in capsys.readouterr().out) == said


def test_copies_that_a_step_of_the_optimizer_makes_are_counted(checkpoint: tuple[Checkpoint, str]) -> None:
    """torch's foreach, its default on a GPU, as it allocates on a CPU on request; the fused one nothing."""
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT}
    backbone = copy.deepcopy(checkpoint[0].backbone)
    backbone.freeze_vision()
    for name, options in (("adamw_torch", {"foreach": True}), ("adamw_torch_fused", {"fused": True})):
        trained = [p for p in backbone.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(trained, **options)
        optimizer.step()
        config = make_config(DiftConfig, values | {"optim": name})
        plan, divided = (
            make_plan(config),
            make_plan(make_config(DiftConfig, values | {"optim": name, "fsdp": True}), world_size=2),
        )
        there = sum(plan.parts[part] for part in ("weights", "gradients", "optimizer"))
        allocated = peak_allocated(optimizer.step)
        assert plan.phases["optimizer step"] - there == pytest.approx(allocated, rel=0.02, abs=10_000)
        assert plan.parts["step copies"] == 2 * divided.parts["step copies"]


def test_the_time_has_the_passes_of_self_feed_and_of_entropies(checkpoint: tuple[Checkpoint, str]) -> None:
    """As the metrics count them, of samples whose latents begin with the answer."""
    backbone, values = checkpoint[0].backbone, {"model": checkpoint[1], "max_prompt_tokens": PROMPT}
    costs, size = Costs.of(backbone), backbone.latents.latent_size

    def sampling(kind: Any, **extra: Any) -> float:
        return make_plan(make_config(kind, values | extra)).work.sampling

    length = PROMPT + 512
    sample = SimpleNamespace(input_ids=torch.zeros(length), latent_index=torch.tensor([PROMPT + 1]))
    counts = self_fed([sample], size)  # type: ignore[list-item]
    extra = sampling(DiftConfig, self_feed=1.0) - sampling(DiftConfig)
    assert extra == pytest.approx(costs.inference(counts))
    options = {"num_generations": 4, "loss": {"beta": 0.0}}
    entropies = sampling(GrpoConfig, **options, top_entropy=0.2) - sampling(GrpoConfig, **options)
    reference = sampling(GrpoConfig, **options | {"loss": {"beta": 0.1}}) - sampling(GrpoConfig, **options)
    assert entropies == reference > 0
