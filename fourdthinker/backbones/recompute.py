"""What is cheap to compute is computed again in the backward pass instead of kept: norms and SwiGLU products.

A plain RMSNorm of transformers keeps its input and its scaled input, the matrix products behind it keep its
output, and an MLP keeps four tensors of its inner width. Only the input of the norm and the outputs of the
MLP's two first matrix products take long to make. Values and gradients stay the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone


def recompute_cheap_layers(backbone: Backbone) -> int:
    """Let the layers of the language model keep no more of norms and MLPs than what a matrix product made.

    Layers that have a forward of their own, as Liger's, stay as they are, and so do MLPs while their last
    matrix has an adapter. To be called where layers are not checkpointed as a whole, which leaves nothing to
    save.

    Args:
        backbone: changed in place; a second call changes nothing.

    Returns:
        How many norms and MLPs were changed.
    """
    norms, mlps = norms_and_mlps(backbone)
    linear = [m for m in backbone.hf.model.language_model.modules() if type(m) is nn.Linear]
    _change(linear, _linear)
    return _change(norms, _norm) + _change(mlps, _mlp)


def _change(modules: list[Any], forward: Callable[..., Tensor]) -> int:
    plain = [module for module in modules if "forward" not in vars(module)]
    for module in plain:
        module.forward = MethodType(forward, module)
    return len(plain)


def has_own_forward(linear: nn.Linear) -> bool:
    """Whether something else than this file has given a linear layer a forward, which may do anything."""
    own = vars(linear).get("forward")
    return own is not None and getattr(own, "__func__", None) is not _linear


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


@dataclass
class Made:
    """Makes what a norm made again, for the backward passes of the matrix products that read it.

    Attributes:
        norm: the module.
        given: its input.
        storage: which memory its output has.
        waiting: products that have not asked for it yet.
        output: it, until none is left.
    """

    norm: Any
    given: Tensor
    storage: int
    waiting: int = 0
    output: Tensor | None = None

    def pack(self, kept: Tensor) -> Tensor | torch.Size:
        """What a product keeps instead of a tensor: of the norm's output its shape alone."""
        whole = kept.numel() == self.given.numel() and kept.is_contiguous()  # not a part of it
        if not whole or kept.untyped_storage()._cdata != self.storage:
            return kept
        self.waiting += 1
        return kept.shape

    def unpack(self, kept: Tensor | torch.Size) -> Tensor:
        """The tensor that `pack` was given."""
        if isinstance(kept, Tensor):
            return kept
        output = self.output
        if output is None:
            with torch.no_grad():
                output = type(self.norm).forward(self.norm, self.given)
        self.waiting -= 1
        self.output = output if self.waiting > 0 else None
        return output.view(kept)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    out = _recomputed(type(module).forward, module, hidden_states)
    if torch.is_grad_enabled():
        made = Made(module, hidden_states.detach(), out.untyped_storage()._cdata)
        out.made = made  # type: ignore[attr-defined]
    return out


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    made: Made | None = getattr(x, "made", None)
    if made is None or not torch.is_grad_enabled():
        return nn.Linear.forward(module, x)
    with torch.autograd.graph.saved_tensors_hooks(made.pack, made.unpack):
        return nn.Linear.forward(module, x)


def _mlp(module: Any, x: Tensor) -> Tensor:
    if type(module.down_proj) is not nn.Linear:
        # An adapter would draw its dropout a second time, and compute its own matrix products twice.
        return type(module).forward(module, x)
    return _recomputed(_product, module, module.gate_proj(x), module.up_proj(x))


def _product(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    return module.down_proj(_SwiGLU.apply(gate, up))


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, whose backward pass makes no more than the two gradients."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_up = functional.silu(gate).mul_(grad)
        of_gate = grad * up
        torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate)
        return of_gate, of_up


def _recomputed(function: Any, *arguments: Any) -> Tensor:
    """What ``function`` gives; for the backward pass its arguments are kept, and no more."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
