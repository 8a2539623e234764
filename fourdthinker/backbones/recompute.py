"""What is cheap to compute is computed again in the backward pass instead of kept: norms and SwiGLU products.

A plain RMSNorm of transformers keeps its input and its scaled input, the matrix products behind it keep its
output, and an MLP keeps four tensors of its inner width. Only the input of the norm and the outputs of the
MLP's two first matrix products take long to make. Values and gradients stay the same bit for bit: what a hook
has changed in place is kept as it is, and weights that a layer had for one call are those of its backward
pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Call:
    """A call of a norm, which can be made again.

    Attributes:
        norm: the module.
        parameters: that it had; `torch.func.functional_call` gives it others for the time of a call.
        given: its input.
        version: that the input had; every change in place counts it up.
    """

    norm: Any
    parameters: Mapping[str, Any]
    given: Tensor
    version: int

    def output(self, given: Tensor) -> Tensor:
        """What the norm makes of its input, which may be detached."""
        if self.given._version != self.version:
            raise RuntimeError(
                f"the input of a {type(self.norm).__name__}, {list(self.given.shape)}, was changed in place "
                "before the backward pass, which computes with it; change a copy of it"
            )
        norm = self.norm
        if not _has(norm, self.parameters):
            norm = copy.copy(norm)
            norm._parameters = dict(self.parameters)
        return type(norm).forward(norm, given)


@dataclass
class Made:
    """Makes what a norm made again, for the backward passes of the matrix products that read it.

    Attributes:
        call: of the norm.
        storage: which memory its output has.
        version: of its output.
        waiting: products that have not asked for it yet.
        output: it, until none is left.
    """

    call: Call
    storage: int
    version: int
    waiting: int = 0
    output: Tensor | None = None

    def pack(self, kept: Tensor) -> Tensor | torch.Size:
        """What a product keeps instead of a tensor: of the norm's output its shape alone."""
        whole = kept.numel() == self.call.given.numel() and kept.is_contiguous()  # not a part of it
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
                output = self.call.output(self.call.given)
        self.waiting -= 1
        self.output = output if self.waiting > 0 else None
        return output.view(kept)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or hidden_states.is_inference():  # which has no version, and no gradient
        return type(module).forward(module, hidden_states)
    call = Call(module, dict(module._parameters), hidden_states.detach(), hidden_states._version)
    out = _recomputed(call.output, hidden_states)
    out.made = Made(call, out.untyped_storage()._cdata, out._version)  # type: ignore[attr-defined]
    return out


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    made: Made | None = getattr(x, "made", None)
    if made is None or not torch.is_grad_enabled() or x._version != made.version:
        return nn.Linear.forward(module, x)
    with torch.autograd.graph.saved_tensors_hooks(made.pack, made.unpack):
        return nn.Linear.forward(module, x)


def _mlp(module: Any, x: Tensor) -> Tensor:
    if type(module.down_proj) is not nn.Linear:
        # An adapter would draw its dropout a second time, and compute its own matrix products twice.
        return type(module).forward(module, x)
    down = module.down_proj
    return _recomputed(_product, down, dict(down._parameters), module.gate_proj(x), module.up_proj(x))


def _product(down: nn.Linear, parameters: Mapping[str, Any], gate: Tensor, up: Tensor) -> Tensor:
    product = _SwiGLU.apply(gate, up)
    return down(product) if _has(down, parameters) else functional.linear(product, **parameters)


def _has(module: nn.Module, parameters: Mapping[str, Any]) -> bool:
    """Whether a module still has the same parameters."""
    return all(module._parameters[name] is parameter for name, parameter in parameters.items())


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
