"""The weights of a model below its LoRA adapters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fourdthinker.errors import CheckpointError


def base_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a transformers model without the LoRA adapters inside it; None where there are none.

    Raises:
        CheckpointError: the adapters are added to the weights in memory.
    """
    layers = adapted_layers(model)
    if not layers:
        return None
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise CheckpointError(
            f"the adapter is merged into {merged[0]} in memory, so that its base cannot be saved; call "
            "unmerge_adapter() first, or merge_and_unload() to save one model"
        )
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner = next((name for name in layers if key.startswith(f"{name}.")), None)
        if owner is None:
            state[key] = tensor
        elif key.startswith(f"{owner}.base_layer."):
            state[f"{owner}.{key.removeprefix(f'{owner}.base_layer.')}"] = tensor
    return state


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
