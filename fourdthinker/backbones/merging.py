"""The weights of a model with LoRA adapters as they are after merging; the model in memory stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourdthinker.errors import CheckpointError


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict a transformers model would have after merging its LoRA adapters; None without any."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    if not layers:
        return None
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner = next((name for name in layers if key.startswith(f"{name}.")), None)
        if owner is None:
            state[key] = tensor
        elif key.startswith(f"{owner}.base_layer."):
            state[f"{owner}.{key.removeprefix(f'{owner}.base_layer.')}"] = tensor
    for name, layer in layers.items():
        plain = hasattr(layer, "get_delta_weight") and not getattr(layer, "lora_variant", {})
        if not plain or any(getattr(layer, "lora_bias", {}).values()):
            raise CheckpointError(
                f"{name} has an adapter of type {type(layer).__name__} that is more than a sum of weights; "
                "merge it (model.merge_and_unload()) before saving"
            )
        if not layer.merged:
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    weight = state[f"{name}.weight"]
                    state[f"{name}.weight"] = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return state
