"""LoRA adapters (peft) on the language model of a backbone: added, saved beside the weights, loaded again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fourdthinker.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

ADAPTER = "adapter"  # folder within a checkpoint, in peft's own format
_WEIGHTS = "adapter_model.safetensors"


def add_lora(
    backbone: Backbone, *, r: int, alpha: float, dropout: float, target_modules: Sequence[str]
) -> None:
    """Freeze a backbone, and put a trainable adapter, which changes nothing yet, on its language model.

    Args:
        backbone: changed in place.
        r: rank of the adapter.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: probability of dropout before the adapter.
        target_modules: names of linear layers within a decoder layer, such as `q_proj`.

    Raises:
        ConfigError: an unknown name, a model that has an adapter already, or peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            "lora needs peft, which is not installed; pip install 'fourdthinker[train]'"
        ) from error
    if backbone.model is not backbone.hf:
        raise ConfigError("the model has an adapter already; leave the lora settings out, or merge it first")
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
        target_modules=rf".*language_model\.layers\..*\.(?:{names})",  # towers have layers of these names too
    )
    backbone.model = get_peft_model(backbone.hf, config)


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write a peft model's adapter into ``folder``/adapter; nothing for a model without."""
    if backbone.model is not backbone.hf:
        backbone.model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)


def load_trained(backbone: Backbone, folder: Path, dtype: torch.dtype) -> None:
    """Give a backbone with an adapter what was trained of it, from a checkpoint that it was saved to.

    The adapter comes from ``folder``/adapter, other trainable parameters (embeddings, an open tower) from the
    whole weights. Raises :class:`CheckpointError` when the adapter is missing or another one.
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
    trained = {n: p for n, p in backbone.hf.named_parameters() if p.requires_grad and "lora_" not in n}
    if trained:
        whole = backbone.load_model(str(folder), dtype=dtype).state_dict()
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(whole[name])
