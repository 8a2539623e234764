"""Projections of one input as one product: the same numbers, no second copy, and who is left alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.fused import fused_projections, project
from tests.tiny import tiny_checkpoint


@pytest.fixture(params=sorted(FAMILIES))
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return tiny_checkpoint(family=request.param)


def weight_bytes(backbone: Backbone) -> int:
    """Of the memory that the decoder layers' weights lie in, each piece once."""
    parameters = backbone.hf.model.language_model.layers.parameters()
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}.values())


def groups(backbone: Backbone) -> list[list[nn.Module]]:
    layers = backbone.hf.model.language_model.layers
    return [
        modules
        for layer in layers
        for modules in (
            [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
            [layer.mlp.gate_proj, layer.mlp.up_proj],
        )
    ]


@torch.no_grad()
def test_the_same_numbers_without_a_second_copy(checkpoint: Checkpoint) -> None:
    backbone = checkpoint.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    size = weight_bytes(backbone)
    x = torch.randn(3, backbone.hidden_size)
    with fused_projections(backbone) as layers:
        joined = [part for layer in layers for part in (layer.qkv, layer.gate_up)]
        for part, modules in zip(joined, groups(backbone), strict=True):
            assert part is not None
            for got, module in zip(project(x, part, modules), modules, strict=True):
                torch.testing.assert_close(got, module(x))
        assert weight_bytes(backbone) == size
        inside = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert weight_bytes(backbone) == size
    for state in (inside, backbone.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], value) for name, value in before.items())
    for parameter in backbone.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_changes_in_place_are_seen_and_kept(checkpoint: Checkpoint) -> None:
    backbone = checkpoint.backbone
    module = backbone.hf.model.language_model.layers[0].mlp.up_proj
    with fused_projections(backbone) as layers, torch.no_grad():
        module.weight[0] = 7.0
        assert layers[0].gate_up is not None
        assert bool((layers[0].gate_up.weight[module.out_features] == 7.0).all())
    assert bool((module.weight[0] == 7.0).all())
    module(torch.ones(1, backbone.hidden_size)).sum().backward()
    assert module.weight.grad is not None


def test_an_error_inside_leaves_the_model_as_it_was(checkpoint: Checkpoint) -> None:
    with pytest.raises(ZeroDivisionError), fused_projections(checkpoint.backbone):
        raise ZeroDivisionError
    for parameter in checkpoint.backbone.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def flat(modules: list[Any]) -> None:
    """As an optimizer with one flat buffer leaves them."""
    buffer = torch.cat([module.weight.data.flatten() for module in modules])
    offset = 0
    for module in modules:
        size = module.weight.numel()
        module.weight.data = buffer[offset : offset + size].view_as(module.weight)
        offset += size


def hooked(modules: list[Any]) -> None:
    modules[-1].register_forward_hook(lambda *_: None)


def emptied(modules: list[Any]) -> None:
    modules[0].weight.data = torch.empty(0)


def mixed(modules: list[Any]) -> None:
    modules[0].weight.data = modules[0].weight.data.half()


def another_class(modules: list[Any]) -> None:
    modules[1].__class__ = type("Quantised", (nn.Linear,), {})


def wrapped(modules: list[Any]) -> None:
    modules[1].forward = modules[1].forward


@pytest.mark.parametrize("own", [flat, hooked, emptied, mixed, another_class, wrapped])
def test_layers_that_somebody_owns_are_left_alone(own: Callable[[list[Any]], None]) -> None:
    backbone = tiny_checkpoint().backbone
    first = groups(backbone)[1]
    own(first)
    pointers = [module.weight.data_ptr() for module in first]
    with fused_projections(backbone) as layers:
        assert layers[0].gate_up is None
        assert layers[0].qkv is not None
        assert layers[1].gate_up is not None
        assert [module.weight.data_ptr() for module in first] == pointers
    assert [module.weight.data_ptr() for module in first] == pointers


def test_adapted_layers_are_left_alone(checkpoint: Checkpoint) -> None:
    backbone = checkpoint.backbone
    model = get_peft_model(backbone.hf, LoraConfig(r=2, target_modules=["k_proj"]))
    adapted = type(backbone)(model, backbone.latents)
    with fused_projections(adapted) as layers:
        assert [layer.qkv for layer in layers] == [None, None]
        assert None not in [layer.gate_up for layer in layers]


def test_weights_that_are_sliced_over_ranks_are_left_alone() -> None:
    backbone = tiny_checkpoint().backbone
    groups(backbone)[0][0].weight.ds_id = 1
    with fused_projections(backbone) as layers:
        assert [(layer.qkv, layer.gate_up) for layer in layers] == [(None, None)] * 2


def test_leaving_frees_what_was_joined_though_the_list_is_held(checkpoint: Checkpoint) -> None:
    with fused_projections(checkpoint.backbone) as layers:
        assert layers[0].qkv is not None
        joined = [weakref.ref(layer.qkv.weight) for layer in layers if layer.qkv is not None]
        assert all(weight() is not None for weight in joined)
    assert joined
    assert all(weight() is None for weight in joined)
    assert layers == []  # the decoder holds this list
