"""What a run would need, before anything of it is loaded: `--dry-run`.

The model is made without weights (on torch's meta device), and the largest forward and backward pass that the
settings allow is traced: which tensors exist at the same time follows from the very code that trains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones.adapters import add_lora
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.outline import compute_in, outline, vision_patches
from fourdthinker.trainers.deepspeed_config import float32_sums, live_parameters, zero_stage
from fourdthinker.trainers.learning_rates import freeze_parts
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.model import copies_reference
from fourdthinker.trainers.plan_time import DECODING, DEVICES, PASSES, Device, Work, work_of
from fourdthinker.trainers.plan_trace import Shape, Traced, trace
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

_TEXT = 200  # tokens of a prompt besides its pictures, where the settings do not bound it
_ANSWER = 512  # tokens of a DIFT answer
OPTIMIZERS = {  # bytes of state a trained weight, by name; sgd has no momentum
    "sgd": 0,
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
}
_STEP_COPIES = {"adamw_torch": 4}  # bytes a trained weight while torch's foreach step runs on a GPU
_WITHOUT_GRADIENT = ("rollouts", "own latents")  # phases for which whole weights are gathered


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
    pixels = isinstance(config, DiftConfig) and config.freeze_vision and not config.cache_video
    clips = shape.prompts
    if isinstance(config, GrpoConfig):  # kept from the rollouts to the last update on them
        clips = config.per_device_train_batch_size * config.shares * config.gradient_accumulation_steps
    features, vision = _vision(config, backbone, grid, clips, at_once=pixels)
    element = 4 if autocast or config.fsdp else None  # of a gradient
    traced = trace(config, backbone, _filled(config, shape, asked), grid, on_cpu=on_cpu, element=element)
    feeds_itself = isinstance(config, DiftConfig) and config.self_feed > 0
    gathered = everything if feeds_itself or isinstance(config, GrpoConfig) else unit
    parts = sizes | {"gathered weights": gathered, "activations": traced.kept, "logits chunk": traced.chunk}
    parts |= {"vision": features + vision}
    static = sum(sizes.values()) - sizes["gradients"] - sizes["gradient sums"]
    phases = {"training": static + unit + features + casts + _of_passes(config, sizes, traced)}
    if pixels:  # the tower runs at the beginning of a forward
        phases["vision"] = static + unit + features + vision + _before(config, sizes)
    parts["step copies"] = 0 if on_cpu else _step_copies(config, sizes)
    phases["optimizer step"] = static + sizes["gradients"] + parts["step copies"]
    if not config.deepspeed:
        phases["optimizer step"] += sizes["master weights"]  # gradients of their type
    if config.fsdp:
        phases["start"] = undivided
    if feeds_itself and everything:
        phases["own latents"] = static + everything + features
    if isinstance(config, GrpoConfig) and not config.rollout_workers:
        parts["KV cache"] = _kv(config, backbone, shape)
        phases["rollouts"] = static + everything + parts["KV cache"] + features + vision + casts
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    width, element = backbone.hidden_size, backbone.embedding_weight.element_size()
    clip = int(grid.prod()) // backbone.vision.merge_size**2 * width * (1 + backbone.deepstack_levels)
    work = work_of(config, backbone, asked, patches=int(grid.prod()))
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


def _of_passes(config: TrainConfig, sizes: dict[str, int], traced: Traced) -> int:
    """Bytes of passes with their gradients: those that are left of passes before, or their own."""
    before = _before(config, sizes)
    return traced.beside + before if before else traced.alone


def _before(config: TrainConfig, sizes: dict[str, int]) -> int:
    """Bytes of gradients that are there when a pass begins."""
    if config.fsdp or zero_stage(config)[0] >= 2 or _several(config):
        return sizes["gradients"] + sizes["gradient sums"]
    return 0


def _several(config: TrainConfig) -> bool:
    """Whether an update has several forwards, so that all gradients are there while a pass runs."""
    return config.gradient_accumulation_steps > 1 or config.max_tokens_per_forward is not None


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


def _bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _static(config: TrainConfig, backbone: Backbone, world_size: int) -> dict[str, int]:
    """Weights, gradients and optimizer of one GPU; what is trained is set on the model."""
    backbone.freeze_vision(config.freeze_vision)
    reference = 0
    if isinstance(config, GrpoConfig) and config.needs_reference and copies_reference(config):
        tower = _bytes(backbone.visual.parameters()) if config.freeze_vision else 0
        reference = _bytes(backbone.parameters()) - tower
    if config.lora is not None:
        add_lora(backbone, **config.lora.model_dump(exclude={"train_embeddings"}))
        if config.lora.train_embeddings:
            backbone.embedding_weight.requires_grad_(True)
            backbone.head_weight.requires_grad_(True)
        backbone.freeze_vision(config.freeze_vision)
    freeze_parts(backbone, config.learning_rates)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if isinstance(config, GrpoConfig) and config.sync_ref_model:  # what moves is kept in float32 too
        reference += sum(4 * p.numel() for p in trained if p.element_size() < 4)
    if config.bf16 and config.fsdp:
        for parameter in trained:  # whose slices are all that is kept of them
            parameter.data = parameter.data.float()
    count = sum(p.numel() for p in trained)
    half = sum(p.numel() for p in trained if p.element_size() < 4)
    weights, gradients, masters, optimizer = (
        _bytes(backbone.parameters()),
        _bytes(trained),
        4 * half,
        OPTIMIZERS.get(config.optim, 8) * count,
    )
    stage, offloaded = (3, False) if config.fsdp else zero_stage(config)
    if stage >= 1:
        masters, optimizer = masters // world_size, optimizer // world_size
    if float32_sums(config):
        gradients = 4 * count
    if stage >= 2:
        gradients //= world_size
    if stage >= 3:
        weights //= world_size
    if offloaded:
        masters = optimizer = 0
    plain = config.deepspeed is None and not config.fsdp
    return {
        "weights": weights,
        "gradients": gradients,
        # What gradients in float32 take more than those in bfloat16.
        "gradient sums": 2 * half if plain and _several(config) else 0,
        "DDP buckets": gradients
        if plain and world_size > 1
        else 0,  # of which DistributedDataParallel copies
        "master weights": masters,
        "optimizer": optimizer,
        "reference": reference,
    }


def _step_copies(config: TrainConfig, sizes: dict[str, int]) -> int:
    """Bytes that the optimizer allocates for its step; divided, or on the host, as its state is."""
    state = OPTIMIZERS.get(config.optim, 8)
    return sizes["optimizer"] // state * _STEP_COPIES.get(config.optim, 0) if state else 0


def _gathered(config: TrainConfig, backbone: Backbone) -> tuple[int, int, int]:
    """Bytes of whole weights where they are divided: in a training pass, and in rollouts.

    In a pass of FSDP two decoder layers (one is fetched ahead) and all that is no decoder layer, with its
    gradients; of ZeRO-3 what its config lets live. The third number is what rollouts need less where one
    decoder layer is whole at a time.
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
    unit = rest + outside + 2 * max(sizes)
    if not config.fsdp:
        unit = min(
            everything, live_parameters(config) * backbone.embedding_weight.element_size() + max(sizes)
        )
    return unit, everything, sum(sizes) - max(sizes)


def _vision(
    config: TrainConfig, backbone: Backbone, grid: Tensor, clips: int, *, at_once: bool
) -> tuple[int, int]:
    """Bytes of what a frozen tower gives of some clips, and of its pass.

    Args:
        config: the settings.
        backbone: on the meta device.
        grid: [1, 3], of a clip.
        clips: whose features are there together.
        at_once: whether they go through the tower together, their patches stay beside the features, and the
            features are no part of its pass; or one after the other.
    """
    if not config.freeze_vision:
        return 0, 0  # the tower runs in the training forward
    grids = grid.repeat(clips if at_once else 1, 1)
    patches = torch.empty(int(grids.prod(-1).sum()), backbone.vision.patch_dim, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        features = backbone.encode_vision(patches, grids)
    size, pixels = features.numel() * features.element_size(), patches.numel() * 4
    return (size + pixels, live.peak - size) if at_once else (size * clips, live.peak + pixels)


def _kv(config: GrpoConfig, backbone: Backbone, shape: Shape) -> int:
    """Bytes of keys and values of all rollouts of a micro-batch: each prompt once, each answer in full."""
    positions = config.per_device_train_batch_size * (
        shape.prompt + config.num_generations * config.max_completion_length
    )
    width = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim
    return positions * width * backbone.embedding_weight.element_size()


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
    if config.optim not in OPTIMIZERS:
        lines.append(
            f"  (the state of {config.optim} is not known; counted are the 8 bytes a weight of AdamW)"
        )
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
