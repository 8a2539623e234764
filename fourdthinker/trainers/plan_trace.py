"""The largest forwards of a run, traced without values: what of them exists at the same time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fourdthinker.backbones import liger
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.outline import outline_liger
from fourdthinker.backbones.packed import FLEX_FROM
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.kernels import CONVERTED_IDS, chunk_size
from fourdthinker.objectives import dift_objective, grpo_objective, policy_logprobs
from fourdthinker.samples import Batch
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.plan_sizes import bytes_of, in_layers
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

BLOCKS = 2  # imagery blocks of an answer, with a picture each
_PICTURES = ("patches", "imagery_patches", "vision_features", "latents")  # of a batch


@dataclass(frozen=True)
class Shape:
    """The largest training forward.

    Attributes:
        prompt: tokens of a prompt, those of its pictures included.
        vision: of them those of pictures.
        answer: tokens of an answer.
        prompts: prompts of the forward.
        rows: answers to each that share it; 1 in DIFT.
        clip: patches of a prompt's pictures: time, height, width.
        overlay: patches of a picture of imagery, likewise.
    """

    prompt: int
    vision: int
    answer: int
    prompts: int
    rows: int
    clip: tuple[int, int, int]
    overlay: tuple[int, int, int]

    @property
    def positions(self) -> int:
        """Positions of the forward."""
        return self.prompts * (self.prompt + self.rows * self.answer)


@dataclass(frozen=True)
class Traced:
    """Bytes of a forward and backward pass beside the weights.

    Attributes:
        forward: at the worst moment until there is a loss.
        alone: at the worst moment from then on, with the gradients that it has made until then.
        beside: likewise without its gradients, where all are there from the start.
        kept: what the forward keeps for the backward pass.
        chunk: a chunk of logits.
        tower: at the worst moment before the language model begins; 0 where no pixels are seen.
        pictures: of pixels, features and latents that the batch brings along, and that come on top.
    """

    forward: int
    alone: int
    beside: int
    kept: int
    chunk: int
    tower: int
    pictures: int


def make_ready(config: TrainConfig, backbone: Backbone, *, on_cpu: bool) -> None:
    """Let layers keep what the trainer lets them keep."""
    if not on_cpu and (config.liger is True or (config.liger == "auto" and liger.is_installed())):
        outline_liger(backbone)
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    elif not (config.deepspeed or config.torch_compile):
        recompute_cheap_layers(backbone)


def trace(
    config: TrainConfig, backbone: Backbone, shape: Shape, *, on_cpu: bool, element: float | None
) -> Traced:
    """Run a pass on the meta device.

    Args:
        config: the settings.
        backbone: on the meta device, after `make_ready`.
        shape: of the forward.
        on_cpu: whether it would run on a CPU.
        element: bytes that stay of an element of the gradients; None: as many as their weights have.
    """
    packed = isinstance(config, DiftConfig) and not on_cpu and shape.prompts > 1 and config.self_feed < 1
    batch, objective = _batch(config, backbone, shape, on_cpu, packed=packed)
    backbone.train()
    chunk = _chunk(backbone, shape, on_cpu)
    inside = in_layers(backbone)
    kept = after = forward = alone = beside = gradients = tower = 0

    def taken(parameter: Tensor) -> None:
        """Count the gradient, and drop it; FSDP reduces those of decoder layers alone before the end."""
        nonlocal alone, beside, gradients
        alone, beside = max(alone, live.peak + gradients), max(beside, live.peak)
        gradients += int(parameter.numel() * (element or parameter.element_size()))
        if not config.fsdp or id(parameter) in inside:
            parameter.grad = None
        live.peak = live.held

    def begun(*_: Any) -> None:
        nonlocal tower
        tower = live.peak if {"patches", "imagery_patches"} & batch.keys() else 0

    def measured(model: Backbone, hidden: Tensor, inputs: Batch) -> Any:
        nonlocal kept, after
        kept = live.held
        result = objective(model, hidden, inputs)
        after = live.held
        return result

    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(taken)
    backbone.hf.model.language_model.register_forward_pre_hook(begun)
    with LiveBytes() as live:
        loss, *_ = backbone(batch, measured)
        forward, live.peak = max(live.peak, after + chunk), live.held
        loss.backward()
    alone, beside = max(alone, live.peak + gradients), max(beside, live.peak)
    return Traced(forward, alone, beside, kept, chunk, tower, _pictures(batch))


def trace_alone(
    config: TrainConfig, backbone: Backbone, shape: Shape, *, on_cpu: bool, logits: bool = True
) -> tuple[int, int]:
    """A pass without gradient, not packed.

    Args:
        config: the settings.
        backbone: as for `trace`.
        shape: of the forward.
        on_cpu: whether it would run on a CPU.
        logits: whether anything is made of the hidden states.

    Returns:
        Bytes beside the weights and what its batch brings along, and of these pictures.
    """
    batch, objective = _batch(config, backbone, shape, on_cpu, packed=False)
    backbone.eval()
    after = 0

    def measured(model: Backbone, hidden: Tensor, inputs: Batch) -> Any:
        nonlocal after
        made = policy_logprobs if isinstance(config, GrpoConfig) else objective
        result = made(model, hidden, inputs) if logits else hidden
        after = live.held
        return result

    with torch.no_grad(), LiveBytes() as live:
        backbone(batch, measured)
    chunk = _chunk(backbone, shape, on_cpu) if logits else 0
    return max(live.peak, after + chunk), _pictures(batch)


def _pictures(batch: Batch) -> int:
    return bytes_of(tree_leaves([batch[name] for name in _PICTURES if name in batch]))


def _chunk(backbone: Backbone, shape: Shape, on_cpu: bool) -> int:
    tokens, vocabulary = shape.prompts * shape.rows * shape.answer, backbone.head_weight.shape[0]
    chunk = 4 * vocabulary * chunk_size(tokens, vocabulary, None, on_cpu=on_cpu)
    if on_cpu and backbone.head_weight.element_size() < 4:
        chunk += 4 * min(CONVERTED_IDS, vocabulary) * backbone.head_weight.shape[1]
    return chunk


def _sequences(config: TrainConfig, shape: Shape, on_cpu: bool, packed: bool) -> tuple[tuple[int, int], bool]:
    """[B, S] of a forward, and whether it makes a mask of all pairs of positions.

    Short sequences on a GPU do, of completions that share a prompt, of samples that stand behind each other
    (`packed`), and of a bottleneck; on a CPU only the last.
    """
    size = shape.prompts, shape.positions // shape.prompts
    if isinstance(config, GrpoConfig):
        parted, barred = config.share_prompt, False
    else:
        assert isinstance(config, DiftConfig)
        parted, barred = packed, config.latent_bottleneck
        if parted:
            size = 1, shape.positions
    return size, barred if on_cpu else (parted or barred) and size[1] < FLEX_FROM


def _batch(
    config: TrainConfig, backbone: Backbone, shape: Shape, on_cpu: bool, *, packed: bool
) -> tuple[Batch, Callable[..., Any]]:
    """A batch of nothing in some shape, on the meta device, and its objective."""
    size, masked = _sequences(config, shape, on_cpu, packed)
    rows, tokens = shape.prompts * shape.rows, shape.prompts * shape.rows * shape.answer
    latents = rows * BLOCKS * backbone.latents.latent_size if config.latents else 0
    batch: Batch = {
        "input_ids": _ids(*size),
        "position_ids": _ids(3, *size),
        "latent_index": _ids(latents),
        "latents": torch.empty(latents, backbone.hidden_size, dtype=backbone.dtype, device="meta"),
        "vision_index": _ids(shape.prompts * shape.vision),
    }
    if masked:
        batch["segments"] = _ids(*size).int()
        if isinstance(config, DiftConfig) and config.latent_bottleneck:
            batch["bottleneck"] = _ids(*size).int()
    batch |= _shown(config, backbone, shape)
    if isinstance(config, GrpoConfig):
        numbers = torch.empty(rows, shape.answer, device="meta")
        batch |= {"source_index": _ids(tokens), "chosen_ids": _ids(tokens), "completion_index": _ids(tokens)}
        batch |= {"policy_mask": numbers.bool(), "rollout_logprobs": numbers, "advantages": numbers[:, 0]}
        if config.needs_reference:
            batch["ref_logprobs"] = numbers
        return batch, functools.partial(grpo_objective, options=config.loss, num_items=1.0, num_tokens=1.0)
    if not has_targets(config):
        del batch["latents"]
        patches, grids = pixels(backbone, shape.overlay, rows * BLOCKS)
        batch |= {"imagery_patches": patches, "imagery_grid_thw": grids}
    batch |= {"target": _ids(*size), "rows": _ids(tokens)}
    return batch, functools.partial(dift_objective, num_tokens=1.0, num_latents=1.0)


def _shown(config: TrainConfig, backbone: Backbone, shape: Shape) -> Batch:
    """Pixels where the tower runs in the training forward, else the features of each clip."""
    if config.freeze_vision and (isinstance(config, GrpoConfig) or has_clips(config)):
        return {"vision_features": [features(backbone, shape) for _ in range(shape.prompts)]}
    patches, grids = pixels(backbone, shape.clip, shape.prompts)
    return {"patches": patches, "grid_thw": grids}


def has_clips(config: TrainConfig) -> bool:
    """Whether the features of clips are in `cache_dir`, so that the tower does not see these."""
    return config.cache_dir is not None and (isinstance(config, GrpoConfig) or config.cache_video)  # type: ignore[attr-defined]


def has_targets(config: TrainConfig) -> bool:
    """Whether the tower does not see pictures of imagery: there are none, or their targets are cached."""
    return isinstance(config, GrpoConfig) or not config.latents or config.cache_dir is not None


def features(backbone: Backbone, shape: Shape) -> Tensor:
    """Of nothing, what the tower gives of a clip: [M, (1 + D) * H]."""
    width = backbone.hidden_size * (1 + backbone.deepstack_levels)
    return torch.empty(shape.vision, width, dtype=backbone.dtype, device="meta")


def pixels(backbone: Backbone, grid: tuple[int, int, int], count: int) -> tuple[Tensor, Tensor]:
    """Of nothing, the patches of so many pictures [P, patch_dim], and their grids [n, 3] on the host."""
    grids = torch.tensor([grid]).repeat(count, 1)
    return torch.empty(int(grids.prod(-1).sum()), backbone.vision.patch_dim, device="meta"), grids


def _ids(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.long, device="meta")
