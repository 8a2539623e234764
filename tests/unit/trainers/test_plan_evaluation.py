"""The plan of an evaluation during training against what runs hold in it, within 15 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench._measure import peak_allocated
from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.backbones.outline import outline, vision_patches
from fourdthinker.frames import FramePolicy
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Sample, Vision
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import DiftTrainer, train_dift
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.plan import Plan, make_plan
from fourdthinker.trainers.plan_trace import make_ready, trace_alone
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import BARE
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.every_update import GRPO
from tests.unit.trainers.test_plan import ANSWER, CACHED, PROMPT, VISION

HELD_OUT = 4
FRAMES = {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}
STATIC = ("weights", "master weights", "optimizer", "reference")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("model")
    made = tiny_checkpoint(hidden=64, layers=3, policy=FramePolicy(**FRAMES))
    save_checkpoint(folder, made)
    values = {"model": str(folder), "max_prompt_tokens": PROMPT}
    return made, BARE | values | {"max_steps": 1, "per_device_eval_batch_size": HELD_OUT, "eval_steps": 1}


def prompt(checkpoint: Checkpoint, *, pixels: bool) -> Prompt:
    """Of the largest length, with a clip in pixels or in features."""
    ids = torch.randint(0, 300, (PROMPT,))
    ids[2 : 2 + VISION] = checkpoint.backbone.vision.video_token_id
    grid = vision_patches(checkpoint.backbone, FramePolicy(**FRAMES))
    vision = Vision(grid, features=torch.randn(VISION, checkpoint.backbone.hidden_size))
    if pixels:
        vision = Vision(grid, torch.randn(int(grid.prod()), 1176))
    record = Record("rl", "r", "?", options={"A": "left", "B": "right"}, answer="A", where="memory")
    return Prompt(ids, torch.arange(PROMPT).expand(3, -1).clone(), PROMPT, vision, record)


def sample(checkpoint: Checkpoint, *, pixels: bool) -> Sample:
    """With an answer of two blocks behind the prompt."""
    asked, latents, length = prompt(checkpoint, pixels=pixels), checkpoint.backbone.latents, PROMPT + ANSWER
    answer = torch.randint(0, 300, (ANSWER,))
    for start in (4, 20):
        answer[start] = latents.start_id
        answer[start + 1 : start + 1 + latents.latent_size] = latents.pad_id
        answer[start + 1 + latents.latent_size] = latents.end_id
    ids = torch.cat([asked.input_ids, answer])
    labels = ids.masked_fill(ids == latents.pad_id, -100)
    labels[:PROMPT] = -100
    return Sample(
        ids,
        torch.arange(length).expand(3, length),
        labels,
        asked.vision,
        latents=torch.randn(2 * latents.latent_size, checkpoint.backbone.hidden_size),
        vision_index=(ids == checkpoint.backbone.vision.video_token_id).nonzero()[:, 0],
        latent_index=(ids == latents.pad_id).nonzero()[:, 0],
    )


def measured(monkeypatch: pytest.MonkeyPatch, kind: type[Any], train: Any) -> int:
    """The most that the evaluation of a run allocates."""
    peaks, evaluate = [], kind.evaluate_batch

    def watched(self: Any, batch: list[Any]) -> Any:
        found = []
        peaks.append(peak_allocated(lambda: found.append(evaluate(self, batch))))
        return found[0]

    monkeypatch.setattr(kind, "evaluate_batch", watched)
    train()
    return max(peaks)


def static(plan: Plan) -> int:
    return sum(plan.parts[name] for name in STATIC)


@pytest.mark.parametrize("cached", [True, False])
def test_evaluation_of_dift(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cached: bool,
) -> None:
    """All held-out samples in one forward, whatever the budget of those that are trained."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    loaded, values = checkpoint
    values = values | {"output_dir": str(tmp_path / "run"), "max_tokens_per_forward": 400}
    planned = make_config(DiftConfig, values | CACHED | {"cache_video": cached, "eval_data": ["none.jsonl"]})
    plan = make_plan(planned, on_cpu=True)
    items = [sample(loaded, pixels=not cached) for _ in range(HELD_OUT)]
    config = make_config(DiftConfig, values)
    peak = measured(
        monkeypatch,
        DiftTrainer,
        lambda: train_dift(config, samples=items[:1], held_out=items),
    )
    assert plan.phases["evaluation"] - static(plan) == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize(("each", "cached"), [(None, False), (3, True)])
def test_evaluation_of_4drl(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    each: int | None,
    cached: bool,
) -> None:
    """The tower needs most, or with features from the cache keys, values and logits."""
    loaded, values = checkpoint
    values = GRPO | values | {"output_dir": str(tmp_path / "run"), "loss": {"beta": 0.0}, "save_steps": 0}
    values |= {"num_generations": 2, "max_completion_length": ANSWER, "num_generations_eval": each}
    planned = values | {"eval_data": ["none.jsonl"], "cache_dir": "none" if cached else None}
    plan = make_plan(make_config(GrpoConfig, planned), on_cpu=True)
    items = [prompt(loaded, pixels=not cached) for _ in range(HELD_OUT)]
    config = make_config(GrpoConfig, values)
    peak = measured(monkeypatch, GrpoTrainer, lambda: train_grpo(config, prompts=items[:1], held_out=items))
    before = plan.cache[0] * (1 + HELD_OUT * cached)  # of the prompt that is trained, and those given
    assert plan.phases["evaluation"] - static(plan) - before == pytest.approx(peak, rel=0.15)


def test_a_run_without_held_out_records_has_no_such_phase(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
) -> None:
    values = {name: checkpoint[1][name] for name in ("model", "max_prompt_tokens")}
    plan = make_plan(make_config(GrpoConfig, values), on_cpu=True)
    assert "evaluation" not in plan.phases.keys() | plan.parts.keys()


def test_only_phases_that_gather_in_turn_need_less_by_it(
    checkpoint: tuple[Checkpoint, dict[str, Any]],
) -> None:
    """Workers are sent whole weights, and DIFT's evaluation never has all of them."""
    values = {name: checkpoint[1][name] for name in ("model", "max_prompt_tokens")}
    values |= {"fsdp": True, "eval_data": ["none.jsonl"]}
    grpo = make_plan(make_config(GrpoConfig, values), world_size=2)
    workers = make_plan(make_config(GrpoConfig, values | {"rollout_workers": 1}), world_size=2)
    dift = make_plan(make_config(DiftConfig, values), world_size=2)
    assert grpo.in_turn["rollouts"] == grpo.in_turn["evaluation"] == workers.in_turn["evaluation"] > 0
    assert (workers.in_turn["rollouts"], dift.in_turn) == (0, {})
    assert dift.phases["evaluation"] <= dift.peak == dift.least


@pytest.mark.parametrize("kind", [DiftConfig, GrpoConfig])
def test_pixels_of_a_batch_are_there_in_its_passes_without_gradient(
    checkpoint: tuple[Checkpoint, dict[str, Any]], kind: type[Any]
) -> None:
    """What a pass holds for them, beside what the forward makes of them."""
    values = {name: checkpoint[1][name] for name in ("model", "max_prompt_tokens")}
    values |= {"freeze_vision": False} | (
        {"self_feed": 1.0} if kind is DiftConfig else {"loss": {"beta": 0.1}}
    )
    config, dift = make_config(kind, values), kind is DiftConfig
    plan = make_plan(config, on_cpu=True)
    outlined = outline(values["model"])[0]
    make_ready(config, outlined, on_cpu=True)
    held, pictures = trace_alone(config, outlined, plan.shape, on_cpu=True, logits=not dift)
    assert pictures >= 400 * checkpoint[0].backbone.vision.patch_dim * 4
    there = plan.phases["own latents" if dift else "other passes"] - static(plan)
    assert there > held + pictures if dift else there == held + pictures  # keys and values, too
