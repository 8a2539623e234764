"""What a run would need, before anything of it is loaded: `--dry-run`.

The model is made without weights (on torch's meta device), and the largest forward and backward pass that the
settings allow is traced: which tensors exist at the same time follows from the very code that trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.outline import compute_in, outline, vision_patches
from fourdthinker.trainers.deepspeed_config import zero_stage
from fourdthinker.trainers.plan_alone import without_gradient
from fourdthinker.trainers.plan_sizes import (
    bytes_of,
    gathered_sizes,
    several_passes,
    static_sizes,
    step_bytes,
    trained_of,
)
from fourdthinker.trainers.plan_time import Work, work_of
from fourdthinker.trainers.plan_trace import Shape, features, make_ready, trace
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

_TEXT = 200  # tokens of a prompt besides its pictures, where the settings do not bound it
_ANSWER = 512  # tokens of a DIFT answer


@dataclass(frozen=True)
class Plan:
    """What a run needs on each GPU.

    Attributes:
        parameters: of the model.
        trained: of them those that are trained.
        shape: of the largest forward.
        parts: bytes by part.
        phases: bytes that exist at the same time, by phase.
        in_turn: bytes less where layers are gathered one after the other for a phase, by phase.
        cache: bytes that `cache_dir` would hold on disk of a clip and of a picture of imagery.
        work: of an update, on each GPU.
    """

    parameters: int
    trained: int
    shape: Shape
    parts: dict[str, int]
    phases: dict[str, int]
    in_turn: dict[str, int]
    cache: tuple[int, int]
    work: Work

    @property
    def peak(self) -> int:
        """Bytes of the phase that needs most."""
        return max(self.phases.values())

    @property
    def least(self) -> int:
        """The same where memory has no room for whole weights, and layers are gathered in turn."""
        return max(size - self.in_turn.get(name, 0) for name, size in self.phases.items())


def make_plan(config: TrainConfig, *, world_size: int = 1, on_cpu: bool = False) -> Plan:
    """What a run by some settings needs.

    Args:
        config: the settings; `model` is a folder or a hub name, of which the config is read.
        world_size: processes, among which ZeRO divides what it divides.
        on_cpu: whether it trains on the CPU, where chunks of logits are small.

    Raises:
        CheckpointError: the model's config cannot be used.
    """
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    backbone, policy = outline(config.model, config.subfolder, dtype=dtype)
    asked = _asked(config, backbone, vision_patches(backbone, config.frames or policy)[0].tolist())
    shape = _within_budget(config, asked)
    sizes = static_sizes(config, backbone, world_size)
    start = bytes_of(backbone.parameters()) + sizes["reference"]
    if config.bf16 and config.fsdp:
        backbone.to(torch.bfloat16)  # what is gathered; the slices are float32
    gathered = gathered_sizes(config, backbone)
    step = step_bytes(config, backbone, world_size, on_cpu=on_cpu)
    autocast = config.bf16 and backbone.dtype == torch.float32
    casts = compute_in(backbone, torch.bfloat16) if autocast else 0
    if autocast and not on_cpu:  # where the head's chunks are in bfloat16 too
        casts += 2 * backbone.head_weight.numel()
    static = sum(sizes.values()) - sizes["gradients"] - sizes["gradient sums"]
    make_ready(config, backbone, on_cpu=on_cpu)
    kept = _kept_features(config, backbone, shape)
    alone = without_gradient(config, backbone, shape, asked, gathered, on_cpu=on_cpu)
    element = 4 / world_size if config.fsdp else 4 if autocast else None  # of a gradient
    traced = trace(config, backbone, _filled(config, shape, asked), on_cpu=on_cpu, element=element)
    pictures = kept or traced.pictures
    before = _before(config, sizes)
    backward = gathered.backward + (traced.beside + before if before else traced.alone)
    ends = gathered.last + (sizes["gradients"] if config.fsdp else 0)
    passes = max(gathered.forward + traced.forward + before, backward, ends)
    phases = {name: static + kept + casts + size for name, size in alone.phases.items()}
    if traced.tower > 0:
        phases["vision"] = static + gathered.forward + pictures + casts + traced.tower + before
    phases["training"] = static + pictures + casts + passes
    phases["optimizer step"] = static + kept + sizes["gradients"] + step
    if not config.deepspeed:
        phases["optimizer step"] += sizes["master weights"]  # gradients of their type
    if config.fsdp:
        phases["start"] = start
    parts = sizes | alone.parts
    parts["gathered weights"] = parts["gathered weights"] or gathered.backward
    parts |= {"activations": traced.kept, "logits chunk": traced.chunk, "step copies": step}
    parts |= {"vision": pictures + max(traced.tower, parts.get("vision", 0))}
    return Plan(
        parameters=sum(p.numel() for p in backbone.parameters()),
        trained=sum(p.numel() for p in trained_of(backbone)),
        shape=shape,
        parts=parts,
        phases=phases,
        in_turn=alone.in_turn,
        cache=_cache(backbone, asked),
        work=work_of(config, backbone, asked),
    )


def _asked(config: TrainConfig, backbone: Backbone, clip: list[int]) -> Shape:
    """The shape of a micro-batch: prompts with the largest clip that neither frame policy nor limits refuse.

    Args:
        config: the settings.
        backbone: says how long a sequence may be.
        clip: patches of the largest one by the frame policy: time, height, width.
    """
    merge = backbone.vision.merge_size
    answer = config.max_completion_length if isinstance(config, GrpoConfig) else _ANSWER
    prompt = config.max_prompt_tokens or math.prod(clip) // merge**2 + _TEXT
    prompt = max(1, min(prompt, backbone.max_positions - answer))
    time, height, width = _bounded(clip, prompt, merge)
    shape = Shape(
        prompt=prompt,
        vision=time * height * width // merge**2,
        answer=answer,
        prompts=config.per_device_train_batch_size,
        rows=1,
        clip=(time, height, width),
        overlay=(1, clip[1], clip[2]),
    )
    if not isinstance(config, GrpoConfig):
        return shape
    if config.share_prompt:
        return replace(shape, rows=config.num_generations)
    return replace(shape, prompts=shape.prompts * config.num_generations)


def _bounded(clip: list[int], tokens: int, merge: int) -> list[int]:
    """The largest clip of so many tokens at most: fewer frames, or a smaller one."""
    time, height, width = clip
    each = height * width // merge**2
    if each <= tokens:
        return [min(time, tokens // each), height, width]
    side = merge * math.isqrt(tokens)
    return [1, side, side]


def _within_budget(config: TrainConfig, shape: Shape) -> Shape:
    budget, prompt = config.max_tokens_per_forward, shape.prompt
    if budget is None:
        return shape
    each = prompt + shape.rows * shape.answer
    if isinstance(config, DiftConfig):  # micro-batches of an update are cut anew together
        shape = replace(shape, prompts=shape.prompts * config.gradient_accumulation_steps)
    if each <= budget:
        return replace(shape, prompts=min(shape.prompts, budget // each))
    return replace(shape, prompts=1, rows=max(1, (budget - prompt) // shape.answer))


def _filled(config: TrainConfig, shape: Shape, asked: Shape) -> Shape:
    """The same positions where records are of full length; more where shorter ones fill the budget up."""
    budget = config.max_tokens_per_forward
    everything = asked.positions
    if isinstance(config, DiftConfig):
        everything *= config.gradient_accumulation_steps
    if budget is None or min(budget, everything) <= shape.positions:
        return shape
    answer = (min(budget, everything) // shape.prompts - shape.prompt) // shape.rows
    return replace(shape, answer=answer)


def _kept_features(config: TrainConfig, backbone: Backbone, shape: Shape) -> int:
    """Of a frozen tower in 4DRL, from the rollouts to the last update on them; all chunks share them."""
    if not (isinstance(config, GrpoConfig) and config.freeze_vision):
        return 0
    clips = config.per_device_train_batch_size * config.shares * config.gradient_accumulation_steps
    return clips * features(backbone, shape).nbytes


def _before(config: TrainConfig, sizes: dict[str, int]) -> int:
    """Bytes of gradients that are there when a pass begins."""
    if zero_stage(config)[0] >= 2 or several_passes(config):
        return sizes["gradients"] + sizes["gradient sums"]
    return 0


def _cache(backbone: Backbone, shape: Shape) -> tuple[int, int]:
    width, element = backbone.hidden_size, backbone.embedding_weight.element_size()
    clip = shape.vision * width * (1 + backbone.deepstack_levels)
    return clip * element, backbone.latents.latent_size * width * element
