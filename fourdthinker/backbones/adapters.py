"""LoRA adapters (peft) on the language model of a backbone: added, saved, loaded, merged.

A checkpoint keeps base and adapter apart: merged into bfloat16 weights, a young adapter is mostly rounded
away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fourdthinker.backbones.adapted import adapted_layers
from fourdthinker.errors import CheckpointError, ConfigError, install

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

ADAPTER = "adapter"  # folder within a checkpoint, in peft's own format
_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/{_WEIGHTS}")
MERGE_FIRST = (
    "merge it into a model of its own with `fourdthinker convert --merge CHECKPOINT OUT`, and name that"
)
_INSTALL = f"which is not installed; {install('train')}"


def add_lora(
    backbone: Backbone,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str],
    use_rslora: bool = False,
) -> None:
    """Freeze a backbone, and put a trainable adapter, which changes nothing yet, on its language model.

    Args:
        backbone: changed in place.
        r: rank of the adapter.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: probability of dropout before the adapter.
        target_modules: names of linear layers within a decoder layer, such as `q_proj`.
        use_rslora: scale by alpha / sqrt(r) instead.

    Raises:
        ConfigError: an unknown name, a model that has an adapter already, or peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(f"lora needs peft, {_INSTALL}") from error
    if backbone.model is not backbone.hf:
        raise ConfigError(f"the model has an adapter already; {MERGE_FIRST}")
    layer = backbone.hf.model.language_model.layers[0]
    known = {n.rpartition(".")[2] for n, module in layer.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(target_modules) - known):
        raise ConfigError(
            f"lora.target_modules: a {backbone.family} has no {', '.join(unknown)}; its decoder layers have "
            f"{', '.join(sorted(known))}"
        )
    names = "|".join(re.escape(name) for name in sorted(target_modules))
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a factor; peft calls it an int
        lora_dropout=dropout,
        use_rslora=use_rslora,
        target_modules=rf".*language_model\.layers\..*\.(?:{names})",  # towers have layers of these names too
    )
    backbone.model = get_peft_model(backbone.hf, config)


def load_adapter(backbone: Backbone, folder: Path) -> None:
    """Put the adapter that is saved in ``folder`` on a backbone, whose weights are frozen by it.

    Raises:
        CheckpointError: peft is not installed, or the adapter does not fit the model.
    """
    try:
        from peft import PeftModel
        from safetensors import SafetensorError
    except ImportError as error:
        raise CheckpointError(f"{folder} holds an adapter, which needs peft, {_INSTALL}") from error
    try:
        backbone.model = PeftModel.from_pretrained(backbone.hf, str(folder), torch_device="cpu")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: the adapter cannot be loaded ({said}); copy the folder from the run that wrote it"
        ) from error


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write a peft model's adapter into ``folder``/adapter; nothing for a model without."""
    if backbone.model is not backbone.hf:
        backbone.model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)


def load_saved(backbone: Backbone, folder: Path, dtype: torch.dtype, *, below: bool) -> None:
    """Give a backbone with an adapter the weights of a checkpoint that it was saved to.

    Args:
        backbone: changed in place.
        folder: of the checkpoint.
        dtype: of the weights below the adapter.
        below: whether these are taken too; False: they are there already.

    Raises:
        CheckpointError: the adapter is missing or another one.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / ADAPTER / _WEIGHTS
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: the adapter cannot be loaded ({error}); name a checkpoint of a run with lora"
        ) from error
    own = get_peft_model_state_dict(backbone.model, save_embedding_layers=False)
    shapes, wanted = ({name: list(value.shape) for name, value in s.items()} for s in (saved, own))
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{file} is of another adapter: {name} is {shapes.get(name)} in it and {wanted.get(name)} by "
                "the lora settings; go on with those of that run"
            )
    set_peft_model_state_dict(backbone.model, saved)
    if below:
        whole = backbone.load_model(str(folder), dtype=dtype).state_dict()
        with torch.no_grad():
            for name, parameter in backbone.hf.named_parameters():
                if "lora_" not in name:
                    parameter.copy_(whole[name.replace(".base_layer.", ".")])


@torch.no_grad()
def merge_adapter(backbone: Backbone, dtype: torch.dtype) -> tuple[Backbone, float]:
    """Add the adapter of a model to its weights, in float32, and round them to a dtype.

    Args:
        backbone: with an adapter; used up.
        dtype: of the weights that come out.

    Returns:
        The model without an adapter, and the part of what the adapter does that the rounding takes away:
        |rounded - exact| / |adapter|, over all adapted weights. Near 1 the adapter is gone.

    Raises:
        CheckpointError: no adapter, or one that is more than a sum of weights.
    """
    layers = adapted_layers(backbone.hf)
    if not layers:
        raise CheckpointError("the checkpoint has no adapter; there is nothing to merge")
    lost = total = 0.0
    _set_dtype(backbone, torch.float32)
    for name, layer in layers.items():
        plain = hasattr(layer, "get_delta_weight") and not getattr(layer, "lora_variant", {})
        if not plain or any(getattr(layer, "lora_bias", {}).values()):
            raise CheckpointError(
                f"{name} has an adapter of type {type(layer).__name__} that is more than a sum of weights; "
                "merge it with peft (merge_and_unload())"
            )
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                delta = layer.get_delta_weight(adapter)
                exact = layer.base_layer.weight + delta
                lost += float((exact.to(dtype).float() - exact).double().square().sum())
                total += float(delta.double().square().sum())
    merged = type(backbone)(backbone.model.merge_and_unload(), backbone.latents)
    _set_dtype(merged, dtype)
    return merged, (lost / total) ** 0.5 if total else 0.0


def _set_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Of the parameters alone; the frequencies of rope are buffers, and stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
