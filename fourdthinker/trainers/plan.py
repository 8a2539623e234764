"""What a run would need, before anything of it is loaded: `--dry-run`.

The model is made without weights (on torch's meta device), and the largest forward and backward pass that the
settings allow is traced: which tensors exist at the same time follows from the very code that trains.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones.adapters import add_lora
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.outline import compute_in, outline, vision_patches
from fourdthinker.backbones.packed import FLEX_FROM
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.kernels import chunk_size
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.samples import Batch
from fourdthinker.trainers.deepspeed_config import zero_stage
from fourdthinker.trainers.learning_rates import freeze_parts
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.plan_time import DECODING, DEVICES, PASSES, Device, Work, work_of
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

_TEXT = 200  # tokens of a prompt besides its pictures, where the settings do not bound it
_ANSWER = 512  # tokens of a DIFT answer
_BLOCKS = 2  # imagery blocks in it
_WITHOUT_GRADIENT = ("rollouts", "own latents")  # phases for which whole weights are gathered


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
class Plan:
    """What a run needs on each GPU.

    Attributes:
        parameters: of the model.
        trained: of them those that are trained.
        shape: of the largest forward.
        parts: bytes by part.
        phases: bytes that exist at the same time, by phase.
        in_turn: bytes less where layers are gathered one after the other for passes without gradient.
        cache: bytes that `cache_dir` would hold on disk of a clip and of a picture of imagery.
        work: of an update, on each GPU.
    """

    parameters: int
    trained: int
    shape: Shape
    parts: dict[str, int]
    phases: dict[str, int]
    in_turn: int
    cache: tuple[int, int]
    work: Work

    @property
    def peak(self) -> int:
        """Bytes of the phase that needs most."""
        return max(self.phases.values())

    @property
    def least(self) -> int:
        """The same where memory has no room for whole weights, and layers are gathered in turn."""
        return max(size - self.in_turn * (name in _WITHOUT_GRADIENT) for name, size in self.phases.items())


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
    grid = vision_patches(backbone, config.frames or policy)
    asked = _asked(config, int(grid.prod()) // backbone.vision.merge_size**2)
    shape = _within_budget(config, asked)
    if config.bf16 and config.deepspeed:
        backbone.to(torch.bfloat16)  # as its engine does, which keeps float32 copies
    sizes = _static(config, backbone, world_size)
    undivided = _bytes(backbone.parameters()) + sizes["reference"]
    if config.bf16 and config.fsdp:
        backbone.to(torch.bfloat16)  # what is gathered; the slices are float32
    unit, everything, in_turn = _gathered(config, backbone)
    autocast = config.bf16 and backbone.dtype == torch.float32
    casts = compute_in(backbone, torch.bfloat16) if autocast else 0
    if autocast and not on_cpu:  # where the head's chunks are in bfloat16 too
        casts += 2 * backbone.head_weight.numel()
    features, vision = _vision(config, backbone, grid)
    traced, kept, chunk = _traced(config, backbone, shape, grid, on_cpu)
    feeds_itself = isinstance(config, DiftConfig) and config.self_feed > 0
    gathered = everything if feeds_itself or isinstance(config, GrpoConfig) else unit
    parts = sizes | {"gathered weights": gathered, "activations": kept, "logits chunk": chunk}
    parts |= {"vision": features + vision}
    static = sum(sizes[name] for name in ("weights", "master weights", "optimizer", "reference"))
    gradients = sizes["gradients"]
    whole = _bytes(p for p in backbone.parameters() if p.requires_grad)  # the gradients within the trace
    held = gradients if autocast or config.fsdp else min(gradients, whole)
    phases = {"training": static + unit + traced + features + casts - whole + held}
    phases["optimizer step"] = static + gradients + (sizes["master weights"] if not config.deepspeed else 0)
    if config.fsdp:
        phases["start"] = undivided
    if feeds_itself and everything:
        phases["own latents"] = static + everything + features
    if isinstance(config, GrpoConfig) and not config.rollout_workers:
        parts["KV cache"] = _kv(config, backbone, shape)
        phases["rollouts"] = static + everything + parts["KV cache"] + features + vision
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    width, element = backbone.hidden_size, backbone.embedding_weight.element_size()
    clip = int(grid.prod()) // backbone.vision.merge_size**2 * width * (1 + backbone.deepstack_levels)
    work = work_of(
        config,
        backbone,
        prompt=asked.prompt,
        answer=asked.answer,
        rows=asked.rows,
        sequences=asked.prompts,
        patches=int(grid.prod()),
    )
    cache = clip * element, backbone.latents.latent_size * width * element
    return Plan(sum(p.numel() for p in parameters), trained, shape, parts, phases, in_turn, cache, work)


def _asked(config: TrainConfig, vision: int) -> Shape:
    prompt = config.max_prompt_tokens or vision + _TEXT
    vision = min(vision, prompt)
    if not isinstance(config, GrpoConfig):
        shape = Shape(prompt, vision, _ANSWER, config.per_device_train_batch_size, 1)
    else:
        rows, prompts = config.num_generations, config.per_device_train_batch_size
        shape = Shape(prompt, vision, config.max_completion_length, prompts, rows)
        if not config.share_prompt:
            shape = replace(shape, prompts=prompts * rows, rows=1)
    return shape


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


def _bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _static(config: TrainConfig, backbone: Backbone, world_size: int) -> dict[str, int]:
    """Weights, gradients and optimizer of one GPU; what is trained is set on the model."""
    backbone.freeze_vision(config.freeze_vision)
    reference = 0
    if isinstance(config, GrpoConfig) and config.needs_reference and config.lora is None:
        tower = _bytes(backbone.visual.parameters()) if config.freeze_vision else 0
        reference = _bytes(backbone.parameters()) - tower
    if config.lora is not None:
        lora = config.lora
        add_lora(
            backbone, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, target_modules=lora.target_modules
        )
        if lora.train_embeddings:
            backbone.embedding_weight.requires_grad_(True)
            backbone.head_weight.requires_grad_(True)
        backbone.freeze_vision(config.freeze_vision)
    freeze_parts(backbone, config.learning_rates)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if config.bf16 and config.fsdp:
        for parameter in trained:  # whose slices are all that is kept of them
            parameter.data = parameter.data.float()
    count = sum(p.numel() for p in trained)
    half = sum(p.numel() for p in trained if p.element_size() < 4)
    weights, gradients, masters, optimizer = (
        _bytes(backbone.parameters()),
        _bytes(trained),
        4 * half,
        8 * count,
    )
    stage, offloaded = (3, False) if config.fsdp else zero_stage(config)
    if stage >= 1:
        masters, optimizer = masters // world_size, optimizer // world_size
    if stage >= 2:
        gradients //= world_size
    if stage >= 3:
        weights //= world_size
    if offloaded:
        masters = optimizer = 0
    return {
        "weights": weights,
        "gradients": gradients,
        "master weights": masters,
        "optimizer": optimizer,
        "reference": reference,
    }


def _gathered(config: TrainConfig, backbone: Backbone) -> tuple[int, int, int]:
    """Bytes of whole weights where they are divided: in a training pass of FSDP, and in rollouts.

    In a pass two decoder layers (one is fetched ahead) and all that is no decoder layer, with its gradients.
    The third number is what rollouts need less where one decoder layer is whole at a time.
    """
    stage = 3 if config.fsdp else zero_stage(config)[0]
    if stage < 3:
        return 0, 0, 0
    layers: Any = backbone.hf.model.language_model.layers
    sizes, everything = [_bytes(layer.parameters()) for layer in layers], _bytes(backbone.parameters())
    rest = everything - sum(sizes)
    outside = _bytes(p for p in backbone.parameters() if p.requires_grad) - sum(
        _bytes(p for p in layer.parameters() if p.requires_grad) for layer in layers
    )
    unit = rest + outside + 2 * max(sizes) if config.fsdp else 0
    return unit, everything, sum(sizes) - max(sizes)


def _vision(config: TrainConfig, backbone: Backbone, grid: Tensor) -> tuple[int, int]:
    """Bytes of the features of the prompts of a micro-batch, and of the tower's pass over one clip."""
    if not config.freeze_vision:
        return 0, 0  # the tower runs in the training forward
    patches = torch.empty(int(grid.prod()), backbone.vision.patch_dim, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        features = backbone.encode_vision(patches, grid)
    size = features.numel() * features.element_size()
    return size * config.per_device_train_batch_size, live.peak + patches.numel() * 4


def _kv(config: GrpoConfig, backbone: Backbone, shape: Shape) -> int:
    """Bytes of keys and values of all rollouts of a micro-batch: each prompt once, each answer in full."""
    positions = config.per_device_train_batch_size * (
        shape.prompt + config.num_generations * config.max_completion_length
    )
    width = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim
    return positions * width * backbone.embedding_weight.element_size()


def _traced(
    config: TrainConfig, backbone: Backbone, shape: Shape, grid: Tensor, on_cpu: bool
) -> tuple[int, int, int]:
    """Bytes of the largest pass at its worst moment, of what its forward keeps, and of a chunk of logits."""
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
    with LiveBytes() as live:
        kept = after = 0

        def measured(model: Backbone, hidden: Tensor, inputs: Batch) -> Any:
            nonlocal kept, after
            kept = live.held
            result = objective(model, hidden, inputs)
            after = live.held
            return result

        loss, *_ = backbone(batch, measured)
        loss.backward()
    return max(live.peak, after + chunk), kept, chunk


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

    latents = rows * _BLOCKS * backbone.latents.latent_size if config.latents else 0
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


def plan_text(config: TrainConfig) -> str:
    """The plan of a run in words, for the processes of `WORLD_SIZE` and the devices of this machine."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.use_cpu
    plan = make_plan(config, world_size=world_size, on_cpu=on_cpu)
    shape, billions = plan.shape, plan.parameters / 1e9
    lines = [
        f"model: {config.model}, {billions:.3g} billion parameters, {plan.trained / 1e9:.3g} trained",
        f"largest forward: {shape.prompts} prompts of {shape.prompt} tokens ({shape.vision} of pictures), "
        f"{shape.rows} answers of {shape.answer} each: {shape.positions} positions",
        f"memory of each of {world_size} {'processes' if on_cpu else 'GPUs'}, in GB:",
    ]
    lines += [f"  {name:<16} {size / 1e9:8.2f}" for name, size in plan.parts.items() if size]
    lines.append("at the same time:")
    lines += [f"  {name:<16} {size / 1e9:8.2f}" for name, size in plan.phases.items()]
    fits = [device for device in DEVICES if _holds(device, plan.least)]
    if not on_cpu:
        named = ", ".join(f"{device.name} ({device.memory} GB)" for device in fits)
        lines.append(f"fits {named or f'no GPU of {DEVICES[-1].memory} GB'}")
        if slow := [device.name for device in fits if not _holds(device, plan.peak)]:
            lines.append(f"on {', '.join(slow)} rollouts gather layer by layer, which is slower")
        if len(fits) < len(DEVICES):
            lines.append(
                "smaller by: max_tokens_per_forward, gradient_checkpointing=true, lora, and on several GPUs "
                "fsdp=true or deepspeed (ZeRO)"
            )
    if config.cache_dir is not None:
        clip, picture = plan.cache
        lines.append(f"cache on disk: {clip / 1e6:.2f} MB a clip, {picture / 1e3:.3g} KB an imagery picture")
    if not on_cpu:
        lines += _times(plan)
    return "\n".join(lines) + "\n"


def _holds(device: Device, peak: int) -> bool:
    return peak * 1.1 <= device.memory * 1e9  # the allocator's own share


def _times(plan: Plan) -> list[str]:
    """The time of an update on the GPUs that it fits."""
    lines = [
        f"time of an update with answers of full length, at {PASSES:.0%} of the peak rate and, in decoding, "
        f"{DECODING:.0%} of the bandwidth (without reading of videos, rewards and communication):"
    ]
    for device in DEVICES:
        if _holds(device, plan.peak):
            training, sampling = plan.work.seconds(device)
            sheet = f"{device.rate:.0f} TFLOP/s, {device.bandwidth:.0f} GB/s"
            lines.append(
                f"  {device.name:<10} {training + sampling:8.2f} s: training {training:.2f}, before it "
                f"{sampling:.2f} ({sheet})"
            )
    return lines if len(lines) > 1 else []
