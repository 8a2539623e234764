"""The largest training forward of a run, traced without values: what of it exists at the same time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.packed import FLEX_FROM
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.kernels import chunk_size
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.samples import Batch
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

BLOCKS = 2  # imagery blocks of an answer


@dataclass(frozen=True)
class Shape:
    """The largest training forward.

    Attributes:
        prompt: tokens of a prompt, those of its pictures included.
        vision: of them those of pictures.
        answer: tokens of an answer.
        prompts: prompts of the forward.
        rows: answers to each that share it; 1 in DIFT.
    """

    prompt: int
    vision: int
    answer: int
    prompts: int
    rows: int

    @property
    def positions(self) -> int:
        """Positions of the forward."""
        return self.prompts * (self.prompt + self.rows * self.answer)


@dataclass(frozen=True)
class Traced:
    """Bytes of a forward and backward pass beside the weights.

    Attributes:
        alone: at the worst moment, with the gradients that it has made until then.
        beside: at the worst moment without its gradients, where all are there from the start or none stays.
        kept: what the forward keeps for the backward pass.
        chunk: a chunk of logits.
    """

    alone: int
    beside: int
    kept: int
    chunk: int


def trace(
    config: TrainConfig, backbone: Backbone, shape: Shape, grid: Tensor, *, on_cpu: bool, element: int | None
) -> Traced:
    """Run a pass on the meta device.

    Args:
        config: the settings.
        backbone: on the meta device; checkpointing is switched on in it.
        shape: of the forward.
        grid: [1, 3], patches of a clip.
        on_cpu: whether it would run on a CPU.
        element: bytes of an element of the gradients; None: as their weights have.
    """
    batch, objective = _batch(config, backbone, shape, grid, on_cpu)
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    elif not (config.deepspeed or config.torch_compile):
        recompute_cheap_layers(backbone)
    backbone.train()
    tokens, vocabulary = shape.prompts * shape.rows * shape.answer, backbone.head_weight.shape[0]
    chunk = 4 * vocabulary * chunk_size(tokens, vocabulary, None, on_cpu=on_cpu)
    if on_cpu and backbone.head_weight.element_size() < 4:
        chunk += 4 * backbone.head_weight.numel()  # the CPU takes logits from a float32 copy of the head
    kept = after = alone = beside = gradients = 0

    def taken(parameter: Tensor) -> None:
        """Drop the gradient, and count it."""
        nonlocal alone, beside, gradients
        alone, beside = max(alone, live.peak + gradients), max(beside, live.peak)
        gradients += parameter.numel() * (element or parameter.element_size())
        parameter.grad = None
        live.peak = live.held

    def measured(model: Backbone, hidden: Tensor, inputs: Batch) -> Any:
        nonlocal kept, after
        kept = live.held
        result = objective(model, hidden, inputs)
        after = live.held
        return result

    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(taken)
    with LiveBytes() as live:
        loss, *_ = backbone(batch, measured)
        loss.backward()
    alone, beside = max(alone, live.peak + gradients), max(beside, live.peak)
    return Traced(max(alone, after + chunk), max(beside, after + chunk), kept, chunk)


def _sequences(config: TrainConfig, shape: Shape, on_cpu: bool) -> tuple[tuple[int, int], bool]:
    """[B, S] of the largest forward, and whether it makes a mask of all pairs of positions.

    Short sequences on a GPU do, of completions that share a prompt, of samples that stand behind each other,
    and of a bottleneck; on a CPU only the last.
    """
    size = shape.prompts, shape.positions // shape.prompts
    if isinstance(config, GrpoConfig):
        parted, barred = config.share_prompt, False
    else:
        assert isinstance(config, DiftConfig)
        parted, barred = not on_cpu and shape.prompts > 1 and config.self_feed < 1, config.latent_bottleneck
        if parted:
            size = 1, shape.positions
    return size, barred if on_cpu else (parted or barred) and size[1] < FLEX_FROM


def _batch(
    config: TrainConfig, backbone: Backbone, shape: Shape, grid: Tensor, on_cpu: bool
) -> tuple[Batch, Callable[..., Any]]:
    """A batch of nothing in the largest shape, on the meta device, and its objective."""
    size, masked = _sequences(config, shape, on_cpu)
    rows, tokens = shape.prompts * shape.rows, shape.prompts * shape.rows * shape.answer

    def ids(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.long, device="meta")

    latents = rows * BLOCKS * backbone.latents.latent_size if config.latents else 0
    batch: Batch = {
        "input_ids": ids(*size),
        "position_ids": ids(3, *size),
        "latent_index": ids(latents),
        "latents": torch.empty(latents, backbone.hidden_size, dtype=backbone.dtype, device="meta"),
        "vision_index": ids(shape.prompts * shape.vision),
    }
    if masked:
        batch["segments"] = ids(*size).int()
        if isinstance(config, DiftConfig) and config.latent_bottleneck:
            batch["bottleneck"] = ids(*size).int()
    if config.freeze_vision:
        width = backbone.hidden_size * (1 + backbone.deepstack_levels)
        batch["vision_features"] = torch.empty(
            shape.prompts * shape.vision, width, dtype=backbone.dtype, device="meta"
        )
    else:
        grids = grid.repeat(shape.prompts, 1)
        batch["vision_index"] = ids(int(grids.prod(-1).sum()) // backbone.vision.merge_size**2)
        patches = int(grids.prod(-1).sum()), backbone.vision.patch_dim
        batch |= {"patches": torch.empty(patches, device="meta"), "grid_thw": grids}
    if isinstance(config, GrpoConfig):
        numbers = torch.empty(rows, shape.answer, device="meta")
        batch |= {"source_index": ids(tokens), "chosen_ids": ids(tokens), "completion_index": ids(tokens)}
        batch |= {"policy_mask": numbers.bool(), "rollout_logprobs": numbers, "advantages": numbers[:, 0]}
        if config.needs_reference:
            batch["ref_logprobs"] = numbers
        return batch, functools.partial(grpo_objective, options=config.loss, num_items=1.0, num_tokens=1.0)
    batch |= {"target": ids(*size), "rows": ids(tokens)}
    return batch, functools.partial(dift_objective, num_tokens=1.0, num_latents=1.0)
