"""Rows as JSON: tokens whose texts are the text, log-probs, and the region that a latent is nearest to."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.backbones import FAMILIES
from fourdthinker.evaluate.transcripts import (
    asked_fields,
    nearest_regions,
    row_blocks,
    token_texts,
    transcript,
)
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts
from fourdthinker.samples import Vision
from tests.tiny import tiny_tokenizer
from tests.unit.sampler.cases import make_prompt, talkative


def test_the_texts_of_tokens_joined_are_the_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "the cube é 日本 <think> 🙂."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == text
    assert "" in found  # several ids make one character
    half = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    assert token_texts(tokenizer, half) == ["\ufffd"]


def test_a_region_is_that_of_the_feature_that_is_most_alike() -> None:
    """Features are axes of their own, so that each latent names one of them."""
    grid = torch.tensor([[2, 4, 6], [1, 2, 4], [2, 2, 2]])  # 12 + 2 + 2 merged features
    vision = Vision(grid, kind="mixed", kinds=["video", "image", "video"], times=[[0.5, 2.5], [1.0, 3.0]])
    features = torch.cat([torch.eye(16), 9 * torch.ones(16, 16)], 1)  # and a DeepStack level
    latents = torch.eye(16)[[10, 13, 15]] * 7 + 0.1
    first, second, third = nearest_regions(latents, vision, features, 2)
    assert (first["medium"], first["share"], first["seconds"]) == (0, 0.75, 2.5)
    assert first["box"] == pytest.approx([1 / 3, 0.5, 2 / 3, 1.0], abs=1e-4)
    assert 0.99 < first["cosine"] < 1
    assert (second["medium"], second["seconds"], second["box"]) == (1, None, [0.5, 0.0, 1.0, 1.0])
    assert (third["medium"], third["share"], third["seconds"]) == (2, 0.75, 3.0)
    with pytest.raises(ValueError, match="feature 16 is beyond"):
        nearest_regions(torch.eye(17)[16:], vision, torch.eye(17), 2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_sampled_row(family: str) -> None:
    checkpoint = talkative(start=5.0, eos=0.0, layers=1, family=family)
    backbone = checkpoint.backbone
    prompts = [make_prompt(checkpoint, 0, 9, clip=0), make_prompt(checkpoint, 1, 5)]
    config = SamplingConfig(max_new_tokens=14, max_blocks=2)
    rollout = LatentSampler(backbone).sample(prompts, 1, config)
    features = encode_prompts(backbone, prompts)
    for row, text in enumerate(rollout.texts(checkpoint.tokenizer)):
        found = transcript(checkpoint.tokenizer, rollout, row)
        assert "".join(found["tokens"]) == text
        chosen = rollout.policy_mask[row, : len(found["tokens"])].tolist()
        assert [value is not None for value in found["logprobs"]] == chosen
        targets = rollout.latents[rollout.latent_rows == row].float() * 2
        blocks = row_blocks(backbone, rollout, row, prompts[row].vision, features[row], targets)
        assert len(blocks) == text.count("<|latent_start|>") > 0
        assert sum(len(block["norms"]) for block in blocks) == text.count("<|latent_pad|>")
        norms = rollout.latents[rollout.latent_rows == row].float().norm(dim=-1)
        assert [n for block in blocks for n in block["norms"]] == pytest.approx(norms.tolist(), abs=1e-3)
        assert {value for block in blocks for value in block["cosines"]} == {1.0}
        assert all(("nearest" in block) == (row == 0) for block in blocks)


def test_what_is_asked_names_all_media() -> None:
    media = [("video", "a.mp4"), ("image", "b.png")]
    record = Record("rl", "q", "Which?", {"A": "x", "B": "y"}, "A", media=media, type="side")
    assert asked_fields(record)["media"] == [["video", "a.mp4"], ["image", "b.png"]]
    assert asked_fields(record)["type"] == "side"
    clip = Record("rl", "q", "Which?", frames=["0.png", "1.png"])
    assert asked_fields(clip)["media"] == [["frame", "0.png"], ["frame", "1.png"]]
    assert set(asked_fields(None)) == set(asked_fields(record))
