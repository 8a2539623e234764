"""The plan of 4DRL's rollouts and of pictures against what sampler, tower and passes hold, within 15 %."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench._measure import peak_allocated
from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.backbones.outline import vision_patches
from fourdthinker.frames import FramePolicy
from fourdthinker.objectives import policy_logprobs
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts
from fourdthinker.samples import Prompt, Vision
from fourdthinker.settings import make_config
from fourdthinker.trainers.plan import Plan, make_plan
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_plan import ANSWER, PROMPT, VISION, batch_of, dift_passes

PROMPTS, GROUP = 4, 8
FRAMES = {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}
STATIC = ("weights", "master weights", "optimizer", "reference")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any]]:
    made, folder = tiny_checkpoint(hidden=64, layers=3), tmp_path_factory.mktemp("model")
    save_checkpoint(folder, made)
    values = {"model": str(folder), "use_cpu": True, "max_prompt_tokens": PROMPT, "frames": FRAMES}
    return made, values | {"override_policy": True}


def grpo_plan(values: dict[str, Any], **extra: Any) -> Plan:
    own = {"num_generations": GROUP, "max_completion_length": ANSWER, "per_device_train_batch_size": PROMPTS}
    config = make_config(GrpoConfig, values | own | {"loss": {"beta": 0.0}} | extra)
    return make_plan(config, on_cpu=True)


def static(plan: Plan) -> int:
    return sum(plan.parts[name] for name in STATIC)


def clip(checkpoint: Checkpoint) -> Tensor:
    return vision_patches(checkpoint.backbone, FramePolicy(**FRAMES))


def prompts(checkpoint: Checkpoint) -> list[Prompt]:
    grid, made = clip(checkpoint), []
    for _ in range(PROMPTS):
        ids = torch.randint(0, 300, (PROMPT,))
        ids[2 : 2 + VISION] = checkpoint.backbone.vision.video_token_id
        vision = Vision(grid, torch.randn(int(grid.prod()), 1176))
        made.append(Prompt(ids, torch.arange(PROMPT).expand(3, -1).clone(), PROMPT, vision))
    return made


def test_rollouts_hold_what_the_plan_says(checkpoint: tuple[Checkpoint, dict[str, Any]]) -> None:
    """Several clips in a call of the tower; then prefill and logits beside keys and values."""
    loaded, values = checkpoint
    plan, items, backbone = grpo_plan(values), prompts(loaded), loaded.backbone
    with torch.no_grad():
        features = encode_prompts(backbone, items)
        encoding = peak_allocated(lambda: encode_prompts(backbone, items))
    assert plan.parts["vision"] == pytest.approx(encoding, rel=0.15)
    options = SamplingConfig(max_new_tokens=ANSWER, eos_ids=(5,))
    seeds = list(range(PROMPTS * GROUP))
    sampler = LatentSampler(backbone)
    measured = peak_allocated(lambda: sampler.sample(items, GROUP, options, seeds=seeds, features=features))
    assert plan.parts["KV cache"] + plan.parts["sampling"] == pytest.approx(measured, rel=0.15)
    kept = PROMPTS * plan.cache[0]
    most = max(plan.parts["vision"] - kept, plan.parts["KV cache"] + plan.parts["sampling"])
    assert plan.phases["rollouts"] == static(plan) + kept + most


def test_an_open_tower_runs_for_rollouts_too_and_one_with_a_cache_does_not(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
) -> None:
    values = checkpoint[1]
    frozen, trained = grpo_plan(values), grpo_plan(values, freeze_vision=False)
    assert trained.phases["rollouts"] - static(trained) == frozen.phases["rollouts"] - static(frozen)
    cached = grpo_plan(values, cache_dir="none")
    assert cached.parts["vision"] == PROMPTS * cached.cache[0] < frozen.parts["vision"]


def test_other_passes_are_counted_where_there_are_some(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
) -> None:
    loaded, values = checkpoint
    plan = grpo_plan(values, loss={"beta": 0.1})
    backbone = copy.deepcopy(loaded.backbone)
    dift_passes(backbone, {})
    backbone.eval()
    batch = batch_of(backbone, GROUP, PROMPTS, True)
    with torch.no_grad():
        measured = peak_allocated(lambda: backbone(batch, policy_logprobs))
    kept = PROMPTS * plan.cache[0]
    assert plan.phases["other passes"] - static(plan) - kept == pytest.approx(measured, rel=0.15)
    assert "other passes" not in grpo_plan(values).phases
    assert "other passes" in grpo_plan(values, steps_per_generation=2).phases


def test_features_are_there_while_the_optimizer_steps(checkpoint: tuple[Checkpoint, dict[str, Any]]) -> None:
    plan = grpo_plan(checkpoint[1], optim="sgd", gradient_accumulation_steps=2)
    kept = 2 * PROMPTS * plan.cache[0]
    assert plan.phases["optimizer step"] == static(plan) + plan.parts["gradients"] + kept


@pytest.mark.parametrize("frozen", [True, False])
def test_pictures_of_imagery_go_through_the_tower(
    checkpoint: tuple[Checkpoint, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """Two an answer, beside the clip; not where their targets are cached."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    loaded, values = checkpoint
    plan = make_plan(make_config(DiftConfig, values | {"freeze_vision": frozen}), on_cpu=True)
    backbone, grid = copy.deepcopy(loaded.backbone), clip(loaded)
    batch = batch_of(backbone, 1, 1, False)
    del batch["vision_features"], batch["latents"]
    overlays = torch.tensor([[1, *grid[0, 1:].tolist()]] * 2)
    batch["latent_index"] = PROMPT + 8 + torch.arange(2 * backbone.latents.latent_size)
    for name, grids in (("", grid), ("imagery_", overlays)):
        batch |= {f"{name}patches": torch.randn(int(grids.prod(1).sum()), 1176), f"{name}grid_thw": grids}
    step = dift_passes(backbone, batch)
    backbone.freeze_vision(frozen)
    measured = peak_allocated(step)
    given = batch["patches"].nbytes + batch["imagery_patches"].nbytes
    both = max(plan.phases["training"], plan.phases["vision"])
    assert both - static(plan) - given == pytest.approx(measured, rel=0.15)
    assert plan.parts["vision"] >= given
    if frozen:
        cached = make_plan(make_config(DiftConfig, values | {"cache_dir": "none"}), on_cpu=True)
        targets = 2 * cached.cache[1]
        assert (
            plan.phases["training"] - cached.phases["training"] >= batch["imagery_patches"].nbytes - targets
        )


def test_no_clip_is_larger_than_prompts_may_be(checkpoint: tuple[Checkpoint, dict[str, Any]]) -> None:
    """By the settings, or by the context of the model: whole frames, then smaller ones."""
    loaded, values = checkpoint
    sizes = {}
    for limit, vision in ((PROMPT, 100), (60, 50), (20, 16)):  # frames of 25 tokens, two of them a time
        plan = make_plan(make_config(DiftConfig, values | {"max_prompt_tokens": limit}), on_cpu=True)
        assert (plan.shape.prompt, plan.shape.vision) == (limit, vision)
        sizes[limit] = plan.parts["vision"], plan.work.sampling
    for first, second in ((PROMPT, 60), (60, 20)):
        assert all(a > b for a, b in zip(sizes[first], sizes[second], strict=True))
    long = {"fps": 1.0, "max_frames": 2000, "max_pixels": 25 * 28 * 28}
    free = make_config(DiftConfig, values | {"max_prompt_tokens": None, "frames": long})
    assert make_plan(free).shape.prompt == loaded.backbone.max_positions - 512


@pytest.mark.parametrize(("optim", "decay"), [("sgd", 0.0), ("sgd", 0.01), ("adamw_torch", 0.01)])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_step_of_the_optimizer_allocates_what_the_plan_says(
    checkpoint: tuple[Checkpoint, dict[str, Any]], optim: str, decay: float, on_cpu: bool
) -> None:
    """torch's foreach, its default on a GPU, as it allocates on a CPU on request; without it a weight's."""
    loaded, values = checkpoint
    values = values | {"optim": optim, "weight_decay": decay}
    plan = make_plan(make_config(DiftConfig, values), on_cpu=on_cpu)
    backbone = copy.deepcopy(loaded.backbone)
    backbone.freeze_vision()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    kind: Any = torch.optim.SGD if optim == "sgd" else torch.optim.AdamW
    optimizer = kind(trained, lr=0.1, weight_decay=decay, foreach=not on_cpu)
    optimizer.step()
    assert plan.parts["step copies"] == pytest.approx(peak_allocated(optimizer.step), rel=0.02, abs=100)
    there = static(plan) + plan.parts["gradients"]
    assert plan.phases["optimizer step"] == there + plan.parts["step copies"]


def test_float32_weights_under_zero(checkpoint: tuple[Checkpoint, dict[str, Any]], tmp_path: Path) -> None:
    """The reference stays as it was loaded, and the optimizer of ZeRO has copies in any case."""
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    values = checkpoint[1] | {"deepspeed": str(tmp_path / "zero.json"), "loss": {"beta": 0.1}}
    wide, narrow = (make_plan(make_config(GrpoConfig, values | {"bf16": bf16})) for bf16 in (False, True))
    assert wide.parts["reference"] == narrow.parts["reference"] == 4 * wide.trained
    assert wide.parts["master weights"] == narrow.parts["master weights"] == 4 * wide.trained
