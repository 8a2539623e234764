"""Norms and products computed again in the backward pass: the same bits, and less that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench._training_parts import Kept
from fourdthinker.backbones.adapters import add_lora
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import collate
from fourdthinker.trainers.live_bytes import LiveBytes
from tests.e2e.training import samples
from tests.tiny import tiny_checkpoint


def loss_of(
    backbone: Backbone, batch: dict[str, Any], *, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
    """Loss, gradients, and the bytes that each kind of layer kept; `live`: all that the forward pass left."""
    backbone.train()
    with LiveBytes() as live, Kept(backbone) as kept, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = backbone(dict(batch), lambda *a: dift_objective(*a, num_tokens=50.0, num_latents=8.0))
        left = live.held
    loss.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(kept.parts) | {"live": left}


@pytest.mark.parametrize(("family", "bf16"), [("qwen2_5_vl", False), ("qwen3_vl", False), ("qwen3_vl", True)])
def test_the_same_bits_from_less(family: str, bf16: bool) -> None:
    checkpoint, other = (tiny_checkpoint(family=family, layers=2) for _ in range(2))
    batch = collate(samples(checkpoint, 3), 0)
    norms = 2 * 2 + 1 + (4 if family == "qwen3_vl" else 0)
    assert recompute_cheap_layers(other.backbone) == norms + 2
    assert recompute_cheap_layers(other.backbone) == 0, "once is enough"
    plain_loss, plain, much = loss_of(checkpoint.backbone, batch, bf16=bf16)
    loss, gradients, little = loss_of(other.backbone, batch, bf16=bf16)
    assert torch.equal(loss, plain_loss)
    assert plain.keys() == gradients.keys()
    assert [name for name in plain if not torch.equal(plain[name], gradients[name])] == []
    much_live, little_live = much.pop("live"), little.pop("live")
    for kind in ("MLPs", "norms"):
        assert little.get(kind, 0) < 0.7 * much[kind]
    assert sum(little.values()) < 0.75 * sum(much.values())
    if not bf16:  # where products read copies that autocast makes
        outputs = 2 * batch["input_ids"].numel() * checkpoint.backbone.hidden_size * 4
        assert little["attention"] <= much["attention"] - outputs, "of two norms, and two layers"
        saved = sum(much.values()) - sum(little.values())
        assert much_live - little_live == saved, "nothing else holds what is not kept"


def test_what_a_norm_made_is_made_once_for_all_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it is left after the backward pass."""
    backbone = tiny_checkpoint(layers=1).backbone
    recompute_cheap_layers(backbone)
    layer = backbone.hf.model.language_model.layers[0]
    norm, attention = layer.input_layernorm, layer.self_attn
    readers = [attention.q_proj, attention.k_proj, attention.v_proj]
    calls, plain = [], type(norm).forward
    x = torch.randn(1, 5, backbone.hidden_size, requires_grad=True)
    leaves = [x, *(reader.weight for reader in readers)]

    def gradients(normed: Tensor, read: Any) -> tuple[Tensor, ...]:
        loss = torch.stack([read(reader, normed).square().sum() for reader in readers]).sum()
        return torch.autograd.grad(loss, leaves, retain_graph=True)

    expected = gradients(plain(norm, x), nn.Linear.forward)
    normed = norm(x)
    monkeypatch.setattr(type(norm), "forward", lambda *a: calls.append(a) or plain(*a))
    found = gradients(normed, nn.Linear.__call__)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(calls) == 2, "for all three products, and for the norm itself"
    assert normed.made.output is None  # type: ignore[attr-defined]


def gradients_of(layer: Any, run: Any) -> dict[str, Tensor]:
    """Of the weights of a decoder layer and of its input."""
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    leaves = {name: p for name, p in layer.named_parameters() if "norm" not in name} | {"x": x}
    found = torch.autograd.grad(run(layer, x).square().sum(), list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def changed_in_place(layer: Any, x: Tensor) -> Tensor:
    """By a hook behind the norm."""
    hook = layer.input_layernorm.register_forward_hook(lambda module, given, out: out.mul_(2.0).add_(0.1))
    try:
        normed = layer.input_layernorm(x)
    finally:
        hook.remove()
    return layer.self_attn.q_proj(normed) + layer.self_attn.q_proj(normed * 3)


def changed_between_two(layer: Any, x: Tensor) -> Tensor:
    """One product reads what the norm made, the other what became of it; plain layers refuse the backward."""
    normed = layer.input_layernorm(x)
    first = layer.self_attn.q_proj(normed if hasattr(normed, "made") else normed.clone())
    return first + layer.self_attn.q_proj(normed.mul_(2.0))


def other_weights(layer: Any, x: Tensor) -> Tensor:
    """Of norm and MLP, for the time of a call."""
    norm, mlp = layer.input_layernorm, layer.mlp
    normed = functional_call(norm, {"weight": norm.weight.detach() * 3 + 0.2}, (x,))
    down = {"down_proj.weight": (mlp.down_proj.weight * 2 - 0.1).detach()}
    return layer.self_attn.q_proj(normed) + functional_call(mlp, down, (normed,))


@pytest.mark.parametrize("run", [changed_in_place, changed_between_two, other_weights])
def test_what_was_changed_meanwhile_is_seen(run: Any) -> None:
    plain, layer = (tiny_checkpoint(layers=1, hidden=64).backbone for _ in range(2))
    recompute_cheap_layers(layer)
    expected, found = (gradients_of(b.hf.model.language_model.layers[0], run) for b in (plain, layer))
    assert "self_attn.q_proj.weight" in found
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_an_input_that_is_changed_in_place_is_refused() -> None:
    """Autograd does not see it in bfloat16: what plain layers keep is a float32 copy."""
    backbone = tiny_checkpoint(layers=1).backbone
    backbone.to(torch.bfloat16)
    recompute_cheap_layers(backbone)
    layer = backbone.hf.model.language_model.layers[0]
    x = torch.randn(1, 5, backbone.hidden_size, dtype=torch.bfloat16)
    out = layer.self_attn.q_proj(layer.input_layernorm(x))
    x.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"the input of a \w+RMSNorm, \[1, 5, \d+\], was changed in place"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["input_layernorm", "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
def test_weights_that_are_changed_in_place_are_refused(name: str) -> None:
    """As autograd refuses them: an optimizer that steps between the two passes."""
    backbone = tiny_checkpoint(layers=1).backbone
    layer = backbone.hf.model.language_model.layers[0]
    x = torch.randn(1, 5, backbone.hidden_size, requires_grad=True)

    def run() -> Tensor:
        normed = layer.input_layernorm(x)
        return layer.self_attn.q_proj(normed).sum() + layer.mlp(layer.post_attention_layernorm(normed)).sum()

    weight = layer.get_parameter(f"{name}.weight")
    plain = run()
    with torch.no_grad():
        weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plain.backward()
    recompute_cheap_layers(backbone)
    out = run()
    with torch.no_grad():
        weight.mul_(2.0)
    said = r"the (down_proj\.)?weight( or input)? of a \w+, \[\d+(, \d+)?\], was changed in place"
    with pytest.raises(RuntimeError, match=said):
        out.backward()
    run().backward()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_adapter_of_the_last_matrix_keeps_its_dropout(dropout: float) -> None:
    results = []
    for recompute in (False, True):
        checkpoint = tiny_checkpoint(layers=2)
        backbone = checkpoint.backbone
        torch.manual_seed(1)
        add_lora(backbone, r=4, alpha=8.0, dropout=dropout, target_modules=["up_proj", "down_proj"])
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        if recompute:
            recompute_cheap_layers(backbone)
        calls: list[Any] = []
        adapted = backbone.hf.model.language_model.layers[0].mlp.down_proj
        adapted.register_forward_pre_hook(lambda *a, calls=calls: calls.append(a))
        torch.manual_seed(5)
        results.append(loss_of(backbone, collate(samples(checkpoint, 3), 0))[:2])
        assert len(calls) == 1, "no matrix product is computed twice"
    (plain_loss, plain), (loss, gradients) = results
    assert torch.equal(loss, plain_loss)
    assert [name for name in plain if not torch.equal(plain[name], gradients[name])] == []


def test_without_gradients_nothing_is_prepared() -> None:
    checkpoint, other = (tiny_checkpoint(layers=1) for _ in range(2))
    recompute_cheap_layers(other.backbone)
    batch = collate(samples(checkpoint, 2), 0)
    with torch.no_grad():
        hidden = [c.backbone(dict(batch), lambda _, hidden, __: hidden) for c in (checkpoint, other)]
    assert torch.equal(*hidden)


def test_a_norm_takes_what_was_made_for_inference() -> None:
    backbone = tiny_checkpoint(layers=1).backbone
    norm = backbone.hf.model.language_model.norm.requires_grad_(False)
    with torch.inference_mode():
        x = torch.randn(2, backbone.hidden_size)
    plain = norm(x)
    recompute_cheap_layers(backbone)
    assert torch.equal(norm(x), plain)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    backbone = tiny_checkpoint(layers=1).backbone
    layer = backbone.hf.model.language_model.layers[0]
    layer.mlp.forward = own = layer.mlp.forward
    assert recompute_cheap_layers(backbone) == 3
    assert layer.mlp.forward is own
