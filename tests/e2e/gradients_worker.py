"""Started by torchrun: gradients of an update of each trainer, and what every rank sampled, to a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from fourdthinker.samples import Vision
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.driver import process_group
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import prompts, samples
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = {
    "use_cpu": True,
    "max_steps": 1,
    "max_grad_norm": 0,
    "save_steps": 0,
    "logging_steps": 1,
    "report_to": [],
    "overwrite_output_dir": True,
}
GRPO = BASE | {
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 4,
    "max_completion_length": 16,
    "loss": {"beta": 0.1},
}


class KeepGradients(TrainerCallback):
    """Copies the reduced gradients before the optimizer uses them."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        model = getattr(model, "module", model)
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def dift_gradients(
    folder: Path, *, batch: int, accumulation: int, budget: int | None = None
) -> dict[str, torch.Tensor]:
    checkpoint, keep = tiny_checkpoint(hidden=32, layers=1, tied=False), KeepGradients()
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    extra = {"max_tokens_per_forward": budget, "output_dir": str(folder / "dift")}
    config = make_config(DiftConfig, BASE | sizes | extra)
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 8), callbacks=[keep])
    return keep.gradients


def open_tower_gradients(
    folder: Path, family: str, *, batch: int, accumulation: int
) -> dict[str, torch.Tensor]:
    """Of a tower that is trained, on four samples of which one has pictures."""
    checkpoint, keep = tiny_checkpoint(family=family, layers=1, tied=False), KeepGradients()
    items = [sample for sample in samples(checkpoint, 12) if sample.vision is None]
    spec = checkpoint.backbone.vision
    ids = items[1].input_ids
    ids[2:6] = spec.video_token_id
    patches = torch.randn(16, spec.patch_dim, generator=torch.Generator().manual_seed(1))
    items[1].vision = Vision(torch.tensor([[1, 4, 4]]), patches)
    items[1].vision_index = torch.arange(2, 6)
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    extra = {"freeze_vision": False, "output_dir": str(folder / f"tower_{family}")}
    config = make_config(DiftConfig, BASE | sizes | extra)
    train_dift(config, checkpoint=checkpoint, samples=items, callbacks=[keep])
    return keep.gradients


def grpo_gradients(
    folder: Path, *, batch: int, accumulation: int, budget: int | None
) -> dict[str, torch.Tensor]:
    """Any number of ranks samples the same."""
    checkpoint, keep = tiny_checkpoint(hidden=32, layers=1, tied=False), KeepGradients()
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    extra = {"max_tokens_per_forward": budget, "output_dir": str(folder / "grpo")}
    config = make_config(GrpoConfig, GRPO | sizes | extra)
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 8), callbacks=[keep])
    return keep.gradients


def sampled(folder: Path, number: int) -> dict[str, Any]:
    """Which of `number` prompts this rank sampled, and which tokens."""
    seen: dict[str, Any] = {"indices": [], "tokens": []}
    original = GrpoTrainer._roll_out

    def spy(self: GrpoTrainer, indices: list[int], *args: Any) -> Any:
        result = original(self, indices, *args)
        seen["indices"] += indices
        seen["tokens"] += result.rollout.tokens.tolist()
        return result

    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    extra = {"per_device_train_batch_size": 2, "output_dir": str(folder / "sampled"), "max_steps": 2}
    config = make_config(GrpoConfig, GRPO | extra)
    GrpoTrainer._roll_out = spy  # type: ignore[assignment,method-assign]
    try:
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, number))
    finally:
        GrpoTrainer._roll_out = original  # type: ignore[method-assign]
    return seen


def with_a_bad_sample(folder: Path) -> dict[str, Any]:
    """A run in which one rank meets a loss that is not a number: what the weights are at its end."""
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    items = samples(checkpoint, 8)
    items[3].latents = torch.full((4, 32), torch.nan)
    sizes = {"per_device_train_batch_size": 2, "max_steps": 2, "max_grad_norm": 1.0, "warmup_steps": 0}
    config = make_config(
        DiftConfig, BASE | sizes | {"output_dir": str(folder / "bad"), "learning_rate": 1e-3}
    )
    train_dift(config, checkpoint=checkpoint, samples=items)
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


def main(folder: Path) -> None:
    with process_group():
        result: dict[str, Any] = {
            "dift": dift_gradients(folder, batch=2, accumulation=2),
            "dift_budget": dift_gradients(folder, batch=2, accumulation=2, budget=130),
            "grpo": grpo_gradients(folder, batch=2, accumulation=2, budget=70),
            "tower_qwen2_5_vl": open_tower_gradients(folder, "qwen2_5_vl", batch=1, accumulation=2),
            "tower_qwen3_vl": open_tower_gradients(folder, "qwen3_vl", batch=1, accumulation=2),
            "many": sampled(folder, 8),
            "one": sampled(folder, 1),
            "bad": with_a_bad_sample(folder),
        }
        torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
