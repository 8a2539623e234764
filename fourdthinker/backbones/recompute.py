"""What is cheap to compute is computed again in the backward pass instead of kept: norms and SwiGLU products.

A plain RMSNorm of transformers keeps its input and its scaled input, the matrix products behind it keep its
output, and an MLP keeps four tensors of its inner width. Only the input of the norm and the outputs of the
MLP's two first matrix products take long to make. Values and gradients stay the same bit for bit: what a hook
has changed in place is kept as it is, and weights that a layer had for one call are those of its backward
pass. What is changed in place afterwards is refused, as autograd refuses it of tensors that it keeps. (FSDP2
gathers weights anew for the backward pass and leaves their versions as they were.)
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
class Used:
    """Tensors that the backward pass computes with, as they are now.

    Attributes:
        layer: the class of what they are of, for the message.
        tensors: by name.
        versions: of each; every change in place counts it up. None: it has none.
    """

    layer: str
    tensors: Mapping[str, Tensor | None]
    versions: Mapping[str, int | None]

    @classmethod
    def of(cls, layer: str, tensors: Mapping[str, Tensor | None]) -> Used:
        """Of tensors, or None, by the names that the message gives them."""
        return cls(layer, tensors, {name: _version(tensor) for name, tensor in tensors.items()})

    def check(self) -> None:
        """RuntimeError where one has been changed in place since."""
        for name, tensor in self.tensors.items():
            if _version(tensor) != self.versions[name]:
                assert tensor is not None
                raise RuntimeError(
                    f"the {name} of a {self.layer}, {list(tensor.shape)}, was changed in place before "
                    "the backward pass, which computes with it; change a copy, or wait for the backward pass"
                )


def _version(tensor: Tensor | None) -> int | None:
    """How often a tensor was changed in place; of those made for inference nothing counts it."""
    return None if tensor is None or tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Call:
    """A call of a norm, which can be made again.

    Attributes:
        norm: the module.
        parameters: that it had; `torch.func.functional_call` gives it others for the time of a call.
        given: its input.
        used: all that it computes with.
    """

    norm: Any
    parameters: Mapping[str, Any]
    given: Tensor
    used: Used

    def output(self, given: Tensor) -> Tensor:
        """What the norm makes of its input, which may be detached."""
        self.used.check()
        norm = self.norm
        if not _has(norm, self.parameters):
            norm = copy.copy(norm)
            norm._parameters = dict(self.parameters)
        return type(norm).forward(norm, given)


@dataclass
class Made:
    """Makes what a norm made again, for the backward passes of the matrix products that read it.

    Autograd does not look whether a tensor that it hands to `pack` is changed later: `unpack` does.

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

    def pack(self, kept: Tensor) -> Used | torch.Size:
        """What a product keeps instead of a tensor: of the norm's output its shape alone."""
        whole = kept.numel() == self.call.given.numel() and kept.is_contiguous()  # not a part of it
        if not whole or kept.untyped_storage()._cdata != self.storage:
            return Used.of("Linear", {"weight or input": kept})
        self.waiting += 1
        return kept.shape

    def unpack(self, kept: Used | torch.Size) -> Tensor:
        """The tensor that `pack` was given."""
        if isinstance(kept, Used):
            kept.check()
            (tensor,) = kept.tensors.values()
            assert tensor is not None
            return tensor
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
    given, parameters = hidden_states.detach(), dict(module._parameters)
    call = Call(module, parameters, given, Used.of(type(module).__name__, {"input": given, **parameters}))
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
    down, gate, up = module.down_proj, module.gate_proj(x), module.up_proj(x)
    parameters = dict(down._parameters)
    if not torch.is_grad_enabled():
        return _product(down, parameters, gate, up)
    used = Used.of(type(module).__name__, {f"down_proj.{name}": p for name, p in parameters.items()})

    def product(gate: Tensor, up: Tensor) -> Tensor:  # whose arguments autograd looks at
        used.check()
        return _product(down, parameters, gate, up)

    return _recomputed(product, gate, up)


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


def _recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """What ``function`` gives; for the backward pass its arguments are kept, and no more."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
