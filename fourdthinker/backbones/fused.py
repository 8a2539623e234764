"""Linear layers that read the same input, as one matrix product: queries, keys and values; gate and up.

For the time of a block the weights of such layers are views of one buffer, so that no weight stands twice;
names and shapes stay. A layer is left alone where something else owns its weights or its call: adapters,
quantisation, weights that are sliced over ranks or lie in an optimizer's flat buffer, hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourdthinker.backbones.gathering import is_sharded
from fourdthinker.backbones.recompute import has_own_forward

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone


@dataclass(frozen=True)
class Joined:
    """Several linear layers as one.

    Attributes:
        weight: [sum of sizes, in]; the layers' weights are views of it.
        bias: [sum of sizes], or None for layers without.
        sizes: outputs of each layer.
    """

    weight: Tensor
    bias: Tensor | None
    sizes: list[int]


@dataclass(frozen=True)
class FusedLayer:
    """What is joined of a decoder layer; None where the layers are called one by one."""

    qkv: Joined | None = None
    gate_up: Joined | None = None


def project(x: Tensor, joined: Joined | None, modules: Sequence[nn.Module]) -> Sequence[Tensor]:
    """The outputs [R, out] of ``modules`` for ``x`` [R, in], joined or one by one."""
    if joined is None:
        return [module(x) for module in modules]
    return F.linear(x, joined.weight, joined.bias).split(joined.sizes, dim=-1)


@contextmanager
def fused_projections(backbone: Backbone) -> Iterator[list[FusedLayer]]:
    """Join the projections of every decoder layer for the time of a block.

    Entering and leaving copies these weights once, a layer at a time. Outside the block every weight has
    memory of its own again, so that saving and training see nothing of it.

    Args:
        backbone: its weights must not be moved, replaced or saved within the block; they may be changed in
            place.
    """
    with ExitStack() as stack:
        layers: list[FusedLayer] = []
        if is_sharded(backbone):  # what gathers the weights looks for them where it has put them
            yield [FusedLayer()] * backbone.num_layers
            return
        for layer in backbone.hf.model.language_model.layers:
            attn, mlp = layer.self_attn, layer.mlp
            qkv = stack.enter_context(_joined([attn.q_proj, attn.k_proj, attn.v_proj]))
            gate_up = stack.enter_context(_joined([mlp.gate_proj, mlp.up_proj]))
            layers.append(FusedLayer(qkv, gate_up))
        try:
            yield layers
        finally:
            layers.clear()  # so that leaving a layer frees what was joined, whoever still holds the list


@contextmanager
def _joined(modules: list[Any]) -> Iterator[Joined | None]:
    if not all(_owns_its_weights(module) for module in modules) or not _alike(modules):
        yield None
        return
    parameters = [[module.weight for module in modules]]
    if modules[0].bias is not None:
        parameters.append([module.bias for module in modules])
    sizes = [module.out_features for module in modules]
    buffers = [_into_one_buffer(group) for group in parameters]
    try:
        yield Joined(buffers[0], buffers[1] if len(buffers) > 1 else None, sizes)
    finally:
        for group in parameters:
            for parameter in group:
                parameter.data = parameter.data.clone()


def _into_one_buffer(parameters: list[nn.Parameter]) -> Tensor:
    # A leaf that requires a gradient, as the parameters may: autocast keeps its casts of such tensors only.
    whole = nn.Parameter(torch.cat([parameter.data for parameter in parameters]))
    sizes = [parameter.shape[0] for parameter in parameters]
    for parameter, view in zip(parameters, whole.data.split(sizes), strict=True):
        parameter.data = view
    return whole


def _owns_its_weights(module: Any) -> bool:
    """Whether a module is a plain linear layer whose weights nobody else holds or watches."""
    if type(module) is not nn.Linear or has_own_forward(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(
        _is_plain(parameter)
        and parameter.numel() > 0
        and parameter.is_contiguous()
        and parameter.untyped_storage().nbytes() == parameter.nbytes
        for parameter in module.parameters()
    )


def _is_plain(parameter: Tensor) -> bool:
    """Whether it is no subclass: what is quantised or sliced over ranks."""
    return type(parameter) is nn.Parameter


def _alike(modules: list[nn.Linear]) -> bool:
    kinds = {(module.weight.dtype, module.weight.device, module.bias is None) for module in modules}
    return len(kinds) == 1
