"""Liger's kernels in the layers of the language model, each compared with the plain layer before it is used.

Liger patches modules of transformers by the names of their functions, and a function that was renamed makes
such a patch a silent no-op (its rope is one with transformers 5.17, and is not used here). So the layers of
one model get a forward of their own, which calls Liger's public functions.
"""

from __future__ import annotations

import importlib.util
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.backbones.gathering import gathered
from fourdthinker.backbones.recompute import norms_and_mlps
from fourdthinker.errors import ConfigError, install

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone


def use_liger(backbone: Backbone, *, required: bool) -> int:
    """Run RMSNorm and SwiGLU of the language model by Liger, where it is installed and the model on a GPU.

    Args:
        backbone: on the device that it is trained on; changed in place.
        required: whether it is an error that Liger cannot be used.

    Returns:
        How many layers run by Liger.

    Raises:
        ConfigError: Liger is required and cannot be used; or a layer gives other values by Liger.
    """
    if problem := _problem(backbone.device):
        if required:
            raise ConfigError(f"liger is true, but {problem}; set liger=auto or liger=false")
        return 0
    norms, mlps = norms_and_mlps(backbone)
    for kind, modules, forward in (("RMSNorm", norms, _rms_norm), ("SwiGLU", mlps, _swiglu)):
        if not modules:
            raise ConfigError(f"liger: the model has no {kind} layer that is known; set liger=false")
        _compare(kind, modules[0], forward, backbone)
        for module in modules:
            module.forward = MethodType(forward, module)
    return len(norms) + len(mlps)


def is_installed() -> bool:
    """Whether Liger can be imported here."""
    return importlib.util.find_spec("liger_kernel") is not None


def _problem(device: torch.device) -> str | None:
    """Why Liger cannot be used, or None."""
    if not is_installed():
        return f"liger-kernel is not installed ({install('train')})"
    return None if device.type == "cuda" else f"its kernels need a GPU and the model is on {device}"


def _rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(
        hidden_states, module.weight, module.variance_epsilon, 0.0, "llama", False
    )


def _swiglu(module: Any, x: Tensor) -> Tensor:
    from liger_kernel.ops import LigerSiLUMulFunction

    return module.down_proj(LigerSiLUMulFunction.apply(module.gate_proj(x), module.up_proj(x)))


@torch.no_grad()
def _compare(kind: str, module: Any, forward: Any, backbone: Backbone) -> None:
    """ConfigError when a layer gives other values by Liger than by itself."""
    with gathered(module):
        width = module.weight.shape[0] if kind == "RMSNorm" else backbone.hidden_size
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, width, generator=generator).to(backbone.device, backbone.dtype)
        plain, theirs = module(x), forward(module, x)
    bound = 2e-2 if backbone.dtype == torch.bfloat16 else 1e-3
    difference = float((plain - theirs).abs().max() / plain.abs().max())
    if not difference <= bound:
        raise ConfigError(
            f"liger: its {kind} differs from that of transformers by {difference:.2g} of the largest value "
            f"(at most {bound} is rounding); set liger=false"
        )
