"""What is there of each weight from the first update of a run to the last: a plan without its traces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones.adapters import add_lora
from fourdthinker.backbones.common import Backbone
from fourdthinker.trainers.deepspeed_config import float32_sums, live_parameters, zero_stage
from fourdthinker.trainers.learning_rates import freeze_parts
from fourdthinker.trainers.model import copies_reference
from fourdthinker.trainers.settings import GrpoConfig, TrainConfig

OPTIMIZERS = {  # bytes of state a trained weight, by name; sgd has no momentum
    "sgd": 0,
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def trained_of(backbone: Backbone) -> list[Tensor]:
    """The parameters that are trained."""
    return [p for p in backbone.parameters() if p.requires_grad]


def static_sizes(config: TrainConfig, backbone: Backbone, world_size: int) -> dict[str, int]:
    """Weights, gradients and optimizer of one GPU.

    Args:
        config: the settings.
        backbone: on the meta device, as it is loaded; what is trained, and the types that an engine makes of
            the weights, are set on it.
        world_size: processes.

    Returns:
        Bytes by part.
    """
    backbone.freeze_vision(config.freeze_vision)
    reference = _reference(config, backbone)
    if config.bf16 and config.deepspeed:
        backbone.to(torch.bfloat16)  # as its engine does, which keeps float32 copies
    if config.lora is not None:
        add_lora(backbone, **config.lora.model_dump(exclude={"train_embeddings"}))
        if config.lora.train_embeddings:
            backbone.embedding_weight.requires_grad_(True)
            backbone.head_weight.requires_grad_(True)
        backbone.freeze_vision(config.freeze_vision)
    freeze_parts(backbone, config.learning_rates)
    trained = trained_of(backbone)
    if isinstance(config, GrpoConfig) and config.sync_ref_model:  # what moves is kept in float32 too
        reference += sum(4 * p.numel() for p in trained if p.element_size() < 4)
    if config.bf16 and config.fsdp:
        for parameter in trained:  # whose slices are all that is kept of them
            parameter.data = parameter.data.float()
    count = sum(p.numel() for p in trained)
    half = sum(p.numel() for p in trained if p.element_size() < 4)
    stage, offloaded = (3, False) if config.fsdp else zero_stage(config)
    weights, gradients = bytes_of(backbone.parameters()), bytes_of(trained)
    # ZeRO steps on copies of float32 weights, too.
    masters, optimizer = 4 * (count if config.deepspeed and stage else half), state_bytes(config) * count
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
        "gradient sums": 2 * half if plain and several_passes(config) else 0,
        # What DistributedDataParallel copies.
        "DDP buckets": gradients if plain and world_size > 1 else 0,
        "master weights": masters,
        "optimizer": optimizer,
        "reference": reference,
    }


def _reference(config: TrainConfig, backbone: Backbone) -> int:
    """A copy of the model as it is loaded, but for a tower that is not trained."""
    if not (isinstance(config, GrpoConfig) and config.needs_reference and copies_reference(config)):
        return 0
    tower = bytes_of(backbone.visual.parameters()) if config.freeze_vision else 0
    return bytes_of(backbone.parameters()) - tower


def several_passes(config: TrainConfig) -> bool:
    """Whether an update has several forwards, so that all gradients are there while a pass runs."""
    return config.gradient_accumulation_steps > 1 or config.max_tokens_per_forward is not None


def state_bytes(config: TrainConfig) -> int:
    """Bytes of state that the optimizer keeps of a weight; of one that is not known those of AdamW."""
    return OPTIMIZERS.get(config.optim, 8)


def step_bytes(config: TrainConfig, backbone: Backbone, world_size: int, *, on_cpu: bool) -> int:
    """Bytes that torch's optimizers allocate in a step: on a GPU copies of all weights, on a CPU of one.

    AdamW makes the roots of its second moments, and SGD with weight decay new gradients; the fused AdamW
    nothing.

    Args:
        config: the settings.
        backbone: with what is trained set on it.
        world_size: processes, among which ZeRO and FSDP divide what a step needs.
        on_cpu: whether the step is made on a CPU.
    """
    sizes = [4 * p.numel() for p in trained_of(backbone)]
    stage, offloaded = (3, False) if config.fsdp else zero_stage(config)
    if config.optim == "adamw_torch":
        once = 2 if on_cpu else 1  # without foreach a root, and the quotient of it
    else:
        once = int(config.optim == "sgd" and config.weight_decay > 0)
    if offloaded or not sizes:
        return 0
    return once * (max(sizes) if on_cpu else sum(sizes)) // (world_size if stage else 1)


@dataclass(frozen=True)
class Gathered:
    """Bytes of whole weights, and of their gradients, where they are divided.

    Attributes:
        forward: while a training pass goes forward.
        backward: while it goes backward, gradients of what is no decoder layer left out.
        last: at its end, when gradients of what is no decoder layer are reduced, with these.
        alone: while a pass without gradient calls the whole model, as DIFT's evaluation does.
        everything: in other passes without gradient.
        in_turn: what these need less where one decoder layer is whole at a time.
    """

    forward: int = 0
    backward: int = 0
    last: int = 0
    alone: int = 0
    everything: int = 0
    in_turn: int = 0


def gathered_sizes(config: TrainConfig, backbone: Backbone) -> Gathered:
    """What ZeRO-3 and FSDP gather.

    Under FSDP what is no decoder layer is whole all through a pass. Backward there are two layers beside it
    (one is fetched ahead), the gradients of one, and those of another in float32, which are being reduced. Of
    ZeRO-3 it is what its config lets live.

    Args:
        config: the settings.
        backbone: with weights of the types that passes see.
    """
    stage = 3 if config.fsdp else zero_stage(config)[0]
    if stage < 3:
        return Gathered()
    layers: Any = backbone.hf.model.language_model.layers
    sizes, everything = [bytes_of(layer.parameters()) for layer in layers], bytes_of(backbone.parameters())
    in_turn = sum(sizes) - max(sizes)
    if not config.fsdp:
        live = live_parameters(config) * backbone.embedding_weight.element_size() + max(sizes)
        unit = min(everything, live)
        return Gathered(unit, unit, 0, unit, everything, in_turn)
    inside = in_layers(backbone)
    outside = [p for p in trained_of(backbone) if id(p) not in inside]
    rest, reduced = everything - sum(sizes), max(map(_reduced, layers))
    return Gathered(
        forward=rest,
        backward=rest + 2 * max(sizes) + reduced,
        last=rest + bytes_of(outside) + 4 * sum(p.numel() for p in outside),
        alone=rest + 2 * max(sizes),
        everything=everything,
        in_turn=in_turn,
    )


def in_layers(backbone: Backbone) -> set[int]:
    """Which parameters are in decoder layers, by their id."""
    return {id(p) for p in backbone.hf.model.language_model.layers.parameters()}


def _reduced(layer: Any) -> int:
    """Gradients of a layer as they are made, and of another in float32."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    return bytes_of(trained) + 4 * sum(p.numel() for p in trained)
