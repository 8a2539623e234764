"""What is cheap to compute is computed again in the backward pass instead of kept: norms and SwiGLU products.

A plain RMSNorm of transformers keeps its input and its scaled input, an MLP four tensors of its inner width.
Only the input of the norm and the outputs of the MLP's two first matrix products take long to make. Values
and gradients stay the same bit for bit.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone


def recompute_cheap_layers(backbone: Backbone) -> int:
    """Let norms and MLPs of the language model keep no more than what a matrix product made.

    Layers that have a forward of their own, as Liger's, stay as they are, and so do MLPs while their last
    matrix has an adapter. To be called where layers are not
    checkpointed as a whole, which leaves nothing to save.

    Args:
        backbone: changed in place; a second call changes nothing.

    Returns:
        How many layers were changed.
    """
    norms, mlps = norms_and_mlps(backbone)
    changed = 0
    for modules, forward in ((norms, _norm), (mlps, _mlp)):
        for module in modules:
            if "forward" not in vars(module):
                module.forward = MethodType(forward, module)
                changed += 1
    return changed


def norms_and_mlps(backbone: Backbone) -> tuple[list[Any], list[Any]]:
    """The RMSNorm and the SwiGLU layers of the language model."""
    modules = list(backbone.hf.model.language_model.modules())
    norms = [m for m in modules if type(m).__name__.endswith("RMSNorm") and hasattr(m, "variance_epsilon")]
    parts = ("gate_proj", "up_proj", "down_proj")
    mlps = [
        m
        for m in modules
        if all(hasattr(m, name) for name in parts) and isinstance(m.act_fn, nn.SiLU | _silu_class())
    ]
    return norms, mlps


def _silu_class() -> type[nn.Module]:
    """What transformers calls SiLU."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return _recomputed(type(module).forward, module, hidden_states)


def _mlp(module: Any, x: Tensor) -> Tensor:
    if type(module.down_proj) is not nn.Linear:
        # An adapter would draw its dropout a second time, and compute its own matrix products twice.
        return type(module).forward(module, x)
    return _recomputed(_product, module, module.gate_proj(x), module.up_proj(x))


def _product(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    return module.down_proj(module.act_fn(gate) * up)


def _recomputed(function: Any, *arguments: Any) -> Tensor:
    """What ``function`` gives; for the backward pass its arguments are kept, and no more."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
