"""The steps of the backbone, in both families: vision, embeddings, DeepStack, cached decoding, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import FAMILIES, common, packed, tower
from fourdthinker.backbones.common import Backbone, refuse_cudnn_attention
from fourdthinker.backbones.inputs import DeepStack
from fourdthinker.backbones.pictures import with_features
from fourdthinker.errors import CheckpointError, ConfigError
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

GRIDS = torch.tensor([[2, 4, 8], [1, 8, 12], [3, 4, 4]])  # the second is wider than an attention window


def patches(backbone: Backbone, grids: Tensor = GRIDS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(grids.prod(-1).sum()), backbone.vision.patch_dim, generator=generator)


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_checkpoint(family=request.param).backbone


@pytest.fixture
def batch(backbone: Backbone) -> dict[str, Any]:
    """Two rows: a clip of 8 merged tokens and a block of 4 latents; text and right padding."""
    video, latent = backbone.vision.video_token_id, backbone.latents.pad_id
    first = [1, 2, *[video] * 8, 3, *[latent] * 4, 4, 5]
    second = [6, 7, 8, 9] + [backbone.vision.pad_id] * (len(first) - 4)
    ids = torch.tensor([first, second])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.arange(ids.shape[1]).expand(3, 2, -1),
        "vision_index": (ids == video).flatten().nonzero()[:, 0],
        "patches": patches(backbone, GRIDS[:1])[:32],
        "grid_thw": torch.tensor([[2, 4, 4]]),
        "latent_index": (ids == latent).flatten().nonzero()[:, 0],
        "imagery_patches": patches(backbone, GRIDS[1:2]),
        "imagery_grid_thw": GRIDS[1:2],
    }


def total(_: Backbone, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    return (hidden * weights * batch["attention_mask"][..., None]).sum()


def test_vision_spec(backbone: Backbone) -> None:
    tokenizer = tiny_tokenizer()
    spec = backbone.vision
    ids = [spec.image_token_id, spec.video_token_id, spec.vision_start_id, spec.vision_end_id, spec.pad_id]
    tokens = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_ids_to_tokens(list(spec.eos_ids)) == ["<|im_end|>", "<|endoftext|>"]
    expected = {"qwen2_5_vl": (1176, 28, 2.0, 0), "qwen3_vl": (1536, 32, None, 2)}[backbone.family]
    assert (spec.patch_dim, spec.factor, spec.tokens_per_second, backbone.deepstack_levels) == expected
    assert spec.family == backbone.family == backbone.config.model_type
    assert (backbone.hidden_size, backbone.head_bias) == (32, None)
    assert (backbone.num_layers, backbone.num_heads, backbone.num_kv_heads, backbone.head_dim) == (
        2,
        2,
        1,
        16,
    )
    assert backbone.max_positions == 4096
    assert (backbone.dtype, backbone.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_end_of_text_from_the_config(family: str) -> None:
    checkpoint = tiny_checkpoint(family=family)
    model = checkpoint.backbone.hf
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = None
    spec = type(checkpoint.backbone)(model).vision
    assert spec.eos_ids == (checkpoint.tokenizer.eos_token_id,)
    assert spec.pad_id == checkpoint.tokenizer.pad_token_id
    model.config.text_config.eos_token_id = None
    with pytest.raises(CheckpointError, match="eos_token_id"):
        type(checkpoint.backbone)(model)


def test_a_model_without_latents_is_refused(backbone: Backbone) -> None:
    with pytest.raises(CheckpointError, match="latent_token_id"):
        type(backbone)(tiny_model(tiny_tokenizer(), family=backbone.family))


def test_pictures_do_not_see_each_other(backbone: Backbone) -> None:
    together = backbone.encode_vision(patches(backbone), GRIDS)
    assert together.shape == (int(GRIDS.prod(-1).sum()) // 4, 32 * (1 + backbone.deepstack_levels))
    sizes = GRIDS.prod(-1).tolist()
    alone = [
        backbone.encode_vision(part, grid[None])
        for part, grid in zip(patches(backbone).split(sizes), GRIDS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="207 patches for grids"):
        backbone.encode_vision(patches(backbone)[1:], GRIDS)


def test_features_are_in_raster_order(backbone: Backbone) -> None:
    """Changing one merged patch moves its own feature most, also across attention windows."""
    grid = torch.tensor([[1, 12, 20]])
    pixels = patches(backbone, grid)
    before = backbone.encode_vision(pixels, grid)
    for token in (0, 9, 25, 59):
        changed = pixels.clone()
        changed[4 * token : 4 * token + 4] *= -3  # the four patches of a merged token are adjacent
        moved = (backbone.encode_vision(changed, grid) - before).norm(dim=1)
        assert moved.argmax() == token


def test_tower_has_gradients_iff_it_is_not_frozen(backbone: Backbone, batch: dict[str, Any]) -> None:
    modes: list[bool] = []
    backbone.visual.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    assert backbone.encode_vision(patches(backbone), GRIDS).requires_grad
    with torch.no_grad():
        assert not backbone.encode_vision(patches(backbone), GRIDS).requires_grad
    backbone.freeze_vision()
    assert not backbone.encode_vision(patches(backbone), GRIDS).requires_grad
    next(backbone.visual.parameters()).requires_grad_(True)  # as an adapter in the tower would
    assert backbone.encode_vision(patches(backbone), GRIDS).requires_grad
    assert modes == [True, False, False, True]
    backbone.freeze_vision()
    backbone(dict(batch), total).backward()
    assert all(parameter.grad is None for parameter in backbone.visual.parameters())
    backbone.freeze_vision(False)
    backbone(dict(batch), total).backward()
    assert all(parameter.grad is not None for parameter in backbone.visual.parameters())
    assert not backbone.imagery_targets(patches(backbone), GRIDS).requires_grad


def test_features_stand_for_pixels_where_no_gradient_goes_through_the_tower(
    backbone: Backbone, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = {"patches", "grid_thw", "imagery_patches", "imagery_grid_thw"}
    expected = backbone.embed_inputs(batch)
    opened = with_features(backbone, batch)
    assert pixels & opened.keys() == {"patches", "grid_thw"}
    assert backbone.embed_inputs(opened).embeds.requires_grad
    with torch.no_grad():
        assert not pixels & with_features(backbone, batch).keys()
    backbone.freeze_vision()
    frozen = with_features(backbone, batch)
    assert not pixels & frozen.keys()
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "encode_vision", None)
        got = backbone.embed_inputs(frozen)
    assert torch.equal(got.embeds, expected.embeds)
    assert got.latents is not None
    assert torch.equal(got.latents, expected.latents)
    none = with_features(backbone, batch | {"latent_index": batch["latent_index"][:0]})
    assert none["latents"].shape == (0, backbone.hidden_size)


def test_embed_inputs(backbone: Backbone, batch: dict[str, Any]) -> None:
    kept = dict(batch)
    computed = backbone.embed_inputs(batch)
    assert batch.keys() == kept.keys(), "a batch is read, not written"
    embeds = computed.embeds
    flat = embeds.flatten(0, 1)
    features = backbone.encode_vision(batch["patches"], batch["grid_thw"])
    assert torch.equal(flat[batch["vision_index"]], features[:, :32])
    targets = backbone.imagery_targets(batch["imagery_patches"], batch["imagery_grid_thw"])
    assert computed.latents is not None
    assert torch.equal(computed.latents, targets)
    assert torch.equal(flat[batch["latent_index"]], targets)
    text = torch.ones(flat.shape[0], dtype=torch.bool)
    text[batch["vision_index"]] = text[batch["latent_index"]] = False
    assert torch.equal(flat[text], backbone.embedding_weight[batch["input_ids"].flatten()[text]])

    given = {k: v for k, v in batch.items() if "patches" not in k} | {
        "vision_features": features.detach().double(),
        "latents": targets.double(),
    }
    assert torch.equal(backbone.embed_inputs(given).embeds, embeds)

    assert torch.equal(backbone.embed_inputs({"input_ids": batch["input_ids"]}).embeds[1], embeds[1])
    with pytest.raises(ValueError, match="3 latents for 4 latent pads"):
        backbone.embed_inputs(given | {"latents": targets[:3]})
    with pytest.raises(ValueError, match="7 vision features for 8 vision pads"):
        backbone.embed_inputs(given | {"vision_features": features[:7]})


def test_placeholders_get_no_gradient(backbone: Backbone, batch: dict[str, Any]) -> None:
    backbone.freeze_vision()
    backbone(batch, total).backward()
    gradient = backbone.embedding_weight.grad
    assert gradient is not None
    unused = [backbone.vision.video_token_id, backbone.latents.pad_id, backbone.vision.pad_id]
    assert not gradient[unused].any()
    assert gradient[batch["input_ids"][1, :4]].any(dim=1).all()


def test_levels_of_deepstack(backbone: Backbone, batch: dict[str, Any]) -> None:
    features = backbone.encode_vision(batch["patches"], batch["grid_thw"])
    inputs = backbone.embed_inputs(batch)
    deepstack = inputs.deepstack
    if backbone.family == "qwen2_5_vl":
        assert deepstack is None
        with pytest.raises(ValueError, match="a qwen2_5_vl has no DeepStack"):
            backbone.decode(torch.zeros(1, 4, 32), torch.zeros(3, 1, 4, dtype=torch.long), deepstack=WRONG)
        return
    assert torch.equal(deepstack.index, batch["vision_index"])
    assert torch.equal(torch.cat([features[:, :32], *deepstack.features], dim=1), features)

    # In whatever order the pads are named, every feature comes to its own.
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    mixed = batch | {"vision_index": batch["vision_index"][order], "vision_features": features[order]}
    with torch.no_grad():
        expected, got = (backbone(dict(b), lambda _, hidden, __: hidden) for b in (batch, mixed))
        torch.testing.assert_close(got, expected)
        plain = backbone.decode(inputs.embeds, batch["position_ids"], batch["attention_mask"])
    assert (plain[0, 2:] - expected[0, 2:]).abs().max() > 0.1, "the levels must matter"
    torch.testing.assert_close(plain[1, :4], expected[1, :4])  # a row without pictures


WRONG = DeepStack(torch.tensor([1]), torch.zeros(1, 1, 32))


def test_a_part_of_deepstack() -> None:
    whole = DeepStack(torch.tensor([1, 2, 3, 11, 14]), torch.arange(10.0).view(2, 5, 1))  # [2, 8]
    part = whole.part(8, 2, 6)
    assert part is not None
    assert part.index.tolist() == [0, 1, 5]  # positions 2 and 3 of row 0, and 3 of row 1, of [2, 4]
    assert part.features[..., 0].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert whole.part(8, 4, 6) is None


def test_pictures_of_another_family(backbone: Backbone, batch: dict[str, Any]) -> None:
    other = ({*FAMILIES} - {backbone.family}).pop()
    stranger = tiny_checkpoint(family=other).backbone
    with pytest.raises(
        ConfigError, match=f"patches have {stranger.vision.patch_dim} values, and a {backbone.family}"
    ):
        backbone.encode_vision(patches(stranger), GRIDS)
    features = stranger.encode_vision(patches(stranger, batch["grid_thw"]), batch["grid_thw"])
    with pytest.raises(ConfigError, match=f"this {backbone.family} reads"):
        backbone.embed_inputs(batch | {"vision_features": features})
    with pytest.raises(
        ConfigError, match=f"prompt 3 was made for a {other}, and this model is a {backbone.family}"
    ):
        backbone.require_family(other, "prompt 3")
    backbone.require_family(None, "prompt 3")
    backbone.require_family(backbone.family, "prompt 3")


def test_attention_is_switched_for_a_block(backbone: Backbone, batch: dict[str, Any]) -> None:
    def attention() -> tuple[str, str]:
        layer = backbone.hf.model.language_model.layers[0].self_attn
        return layer.config._attn_implementation, backbone.visual.config._attn_implementation

    with torch.no_grad():
        before = backbone(dict(batch), lambda _, hidden, __: hidden)
        assert attention() == (packed.NAME, tower.NAME)
        with backbone.set_attention("eager"):
            assert attention() == ("eager", tower.NAME)
            eager = backbone(dict(batch), lambda _, hidden, __: hidden)
    assert attention() == (packed.NAME, tower.NAME)
    torch.testing.assert_close(eager[0], before[0], atol=1e-5, rtol=1e-5)


def test_prefill_in_pieces(backbone: Backbone, batch: dict[str, Any]) -> None:
    with torch.no_grad():
        inputs, positions = backbone.embed_inputs(batch), batch["position_ids"]
        embeds, deepstack = inputs.embeds, inputs.deepstack
        mask, width = batch["attention_mask"], embeds.shape[1]
        whole = backbone.decode(embeds, positions, mask, deepstack=deepstack)
        cache, pieces = backbone.new_cache(), []
        for start, stop in ((0, 1), (1, 6), (6, 7), (7, width)):
            part = None if deepstack is None else deepstack.part(width, start, stop)
            piece = embeds[:, start:stop], positions[..., start:stop], mask[:, :stop]
            pieces.append(backbone.decode(*piece, cache, deepstack=part))
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], atol=1e-5, rtol=1e-5)


def test_cached_decoding_equals_one_forward(backbone: Backbone, batch: dict[str, Any]) -> None:
    with torch.no_grad():
        embeds = backbone.embed_inputs(batch).embeds[:, :8]
        positions, mask = batch["position_ids"][..., :8], torch.ones(2, 8, dtype=torch.long)
        mask[1, 3:5] = 0  # a gap, as after a shorter prompt in a batch
        whole = backbone.decode(embeds, positions, mask)
        cache = backbone.new_cache()
        parts = [
            backbone.decode(embeds[:, a:b], positions[..., a:b], mask[:, :b], cache)
            for a, b in ((0, 5), (5, 6), (6, 8))
        ]
        assert cache.get_seq_length() == 8
        torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()])
        unmasked = backbone.decode(embeds[:1], positions[:, :1])
        torch.testing.assert_close(unmasked, whole[:1])
        assert not torch.allclose(backbone.decode(embeds, positions)[1, 5:], whole[1, 5:], atol=1e-3)


def test_gradient_checkpointing_changes_no_gradient(backbone: Backbone, batch: dict[str, Any]) -> None:
    def gradients() -> dict[str, Tensor]:
        backbone.zero_grad()
        backbone(dict(batch), total).backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    backbone.train()
    plain = gradients()
    backbone.gradient_checkpointing_enable()
    assert backbone.hf.is_gradient_checkpointing
    layer = backbone.hf.model.language_model.layers[0]
    assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": False}
    recomputed = gradients()
    backbone.gradient_checkpointing_disable()
    assert not backbone.hf.is_gradient_checkpointing
    backbone.gradient_checkpointing_enable({"use_reentrant": True})
    assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": True}
    assert plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], msg=name)


def test_cudnn_attention_is_refused_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", enabled.append)
    refuse_cudnn_attention(torch.device("cpu"))
    assert enabled == [True]
    refuse_cudnn_attention(torch.device("cuda", 1))
    refuse_cudnn_attention(torch.device("cuda", 1))
    assert enabled == [True, False]


def test_every_forward_refuses_it(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(common, "refuse_cudnn_attention", devices.append)
    backbone.decode(torch.zeros(1, 2, backbone.hidden_size), torch.arange(2).expand(3, 1, -1))
    assert devices == [backbone.device]
