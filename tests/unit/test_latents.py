"""Growing a vocabulary, and the config keys that describe latents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import FAMILIES
from fourdthinker.errors import CheckpointError
from fourdthinker.latents import LATENT_TOKENS, LatentSpec, grow_vocabulary
from tests.tiny import tiny_model, tiny_tokenizer


def matrices(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@pytest.mark.parametrize("spare_rows", [0, 2, 50])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_growth(family: str, tied: bool, spare_rows: int) -> None:
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    model = tiny_model(tokenizer, family=family, tied=tied, spare_rows=spare_rows)
    before = [matrix.detach().clone() for matrix in matrices(model)]

    spec = grow_vocabulary(model, tokenizer)

    assert [tokenizer.convert_tokens_to_ids(token) for token in LATENT_TOKENS] == list(spec.ids)
    assert spec.ids == (known, known + 1, known + 2)
    assert len(tokenizer) == known + 3
    rows = max(known + spare_rows, known + 3)  # what was there is kept, also spare rows that are not needed
    assert model.config.get_text_config().vocab_size == rows
    assert (matrices(model)[0] is matrices(model)[1]) == tied
    for old, new in zip(before, matrices(model), strict=True):
        assert new.shape == (rows, 32)
        assert torch.equal(new[:known], old[:known])
        assert torch.equal(new[known + 3 :], old[known + 3 :])
        mean = old[:known].double().mean(0).float()  # spare rows were never trained and do not count
        assert torch.equal(new[list(spec.ids)], mean.expand(3, -1))
    assert LatentSpec.from_config(model.config) == spec
    assert model.config.latent_token_id == spec.pad_id

    text = "a <|latent_start|><|latent_pad|><|latent_pad|><|latent_end|> b"
    ids = tokenizer(text).input_ids
    assert [i for i in ids if i in spec.ids] == [spec.start_id, spec.pad_id, spec.pad_id, spec.end_id]
    assert "latent" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
def test_growing_twice_changes_nothing(family: str, tied: bool) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, family=family, tied=tied)
    first = grow_vocabulary(model, tokenizer, latent_size=6)
    with torch.no_grad():  # training moves the rows
        for matrix in matrices(model):
            matrix[list(first.ids)] += torch.randn(3, 32)
    before = [matrix.detach().clone() for matrix in matrices(model)]
    model.config.ce_loss_weight = 0.25

    second = grow_vocabulary(model, tokenizer)

    assert second == LatentSpec(6, *first.ids, ce_loss_weight=0.25)
    for old, new in zip(before, matrices(model), strict=True):
        assert torch.equal(old, new)
    assert grow_vocabulary(model, tokenizer, latent_size=3).latent_size == 3 == model.config.latent_size


def test_rows_are_initialised_when_only_the_tokenizer_knew_the_tokens() -> None:
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    tokenizer.add_tokens(list(LATENT_TOKENS), special_tokens=True)
    model = tiny_model(tokenizer)
    spec = grow_vocabulary(model, tokenizer)
    weight = matrices(model)[0]
    assert torch.equal(weight[spec.pad_id], weight[:known].double().mean(0).float())
    assert weight.shape[0] == known + 3


def test_tokens_that_never_had_a_row_do_not_count() -> None:
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    model = tiny_model(tokenizer)
    tokenizer.add_tokens(["<|another|>"])
    spec = grow_vocabulary(model, tokenizer)
    assert spec.pad_id == known + 1
    weight = matrices(model)[0]
    assert torch.equal(weight[known:], weight[:known].double().mean(0).float().expand(4, -1))


def test_tokenizer_of_another_checkpoint() -> None:
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer(merges=60)
    model = tiny_model(tokenizer)
    grow_vocabulary(model, tokenizer)
    rows = matrices(model)[0].shape[0]
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        grow_vocabulary(model, other)
    assert matrices(model)[0].shape[0] == rows


def test_low_precision_means() -> None:
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    model = tiny_model(tokenizer).to(torch.bfloat16)
    spec = grow_vocabulary(model, tokenizer)
    weight = matrices(model)[0]
    assert torch.equal(weight[spec.end_id], weight[:known].double().mean(0).bfloat16())


def test_spec_of_a_config() -> None:
    config = SimpleNamespace()
    spec = LatentSpec(4, 10, 11, 12, ce_loss_weight=0.5, sim_loss_weight=2.0)
    spec.write_to(config)
    assert vars(config) == {
        "latent_size": 4,
        "latent_token_id": 10,
        "latent_start_id": 11,
        "latent_end_id": 12,
        "compress_strategy": "average",
        "ce_loss_weight": 0.5,
        "sim_loss_weight": 2.0,
    }
    assert LatentSpec.from_config(config) == spec
    for wrong in ("four", [4]):
        config.latent_size = wrong
        with pytest.raises(CheckpointError, match=r"c/config\.json: one of latent_size, .* wrong kind"):
            LatentSpec.from_config(config, "c/config.json")
    del config.latent_start_id, config.latent_size
    with pytest.raises(CheckpointError, match=r"has no latent_size, latent_start_id.*fourdthinker init"):
        LatentSpec.from_config(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 2, 3), "latent_size is 0"),
        ((4, 1, 1, 3), "three different ids"),
        ((4, -1, 2, 3), "three different ids"),
        ((4, 1, 2, 3, "linear"), "compress_strategy is 'linear'; known: average"),
    ],
)
def test_bad_specs(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        LatentSpec(*values)
