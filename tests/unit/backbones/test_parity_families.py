"""Both families against transformers' own code: positions, logits with pictures, greedy text; and against
themselves: sampling alone and together, replay."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler, SamplingConfig, replay_batch, replay_logprobs
from fourdthinker.samples import Prompt, Vision
from tests.tiny import tiny_checkpoint

# Clips no longer than wide, in whole seconds: for others transformers' Qwen2.5-VL has wrong positions.
CLIPS = ([[2, 4, 6]], [[3, 8, 6]], [[1, 4, 4]])


@cache
def tiny(family: str, tied: bool = False) -> Checkpoint:
    return tiny_checkpoint(family=family, tied=tied, layers=3, style=PromptStyle(instruction=""))


def encoder_of(checkpoint: Checkpoint) -> Encoder:
    backbone = checkpoint.backbone
    return Encoder(
        checkpoint.tokenizer, backbone.vision, backbone.latents, checkpoint.policy, checkpoint.style
    )


def pictures(backbone: Backbone, grid: list[list[int]], kind: str, seed: int) -> Vision:
    grids = torch.tensor(grid)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(int(grids.prod(-1).sum()), backbone.vision.patch_dim, generator=generator)
    return Vision(grids, patches, kind=kind, seconds_per_grid=[1.0] * len(grid) if kind == "video" else None)


def prompts_of(checkpoint: Checkpoint) -> list[Prompt]:
    encoder, backbone = encoder_of(checkpoint), checkpoint.backbone
    asked = ["Which way?", "Which way does the red object move?", "Where is the cube? Say it.", "Hello?"]
    visions = [pictures(backbone, grid, "video", i) for i, grid in enumerate(CLIPS)]
    visions[1] = pictures(backbone, [[1, 4, 4], [1, 8, 4]], "image", 7)
    records = [Record("rl", str(i), text) for i, text in enumerate(asked)]
    return [encoder.prompt(r, v) for r, v in zip(records, [*visions, None], strict=True)]


def theirs(backbone: Backbone, prompt: Prompt) -> dict[str, Any]:
    """A prompt as transformers' model takes it, without positions, which it computes itself."""
    spec, ids = backbone.vision, prompt.input_ids
    kinds = (ids == spec.image_token_id).int() + 2 * (ids == spec.video_token_id).int()
    inputs: dict[str, Any] = {"input_ids": ids[None], "mm_token_type_ids": kinds[None]}
    inputs["attention_mask"] = torch.ones_like(ids)[None]
    vision = prompt.vision
    if vision is not None and vision.kind == "video":
        inputs |= {"pixel_values_videos": vision.patches, "video_grid_thw": vision.grid_thw}
        if backbone.family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(vision.seconds_per_grid)
    elif vision is not None:
        inputs |= {"pixel_values": vision.patches, "image_grid_thw": vision.grid_thw}
    return inputs


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_transformers(family: str, tied: bool) -> None:
    checkpoint = tiny(family, tied)
    backbone = checkpoint.backbone
    for prompt in prompts_of(checkpoint):
        expected = backbone.hf(**theirs(backbone, prompt)).logits[0]
        batch: dict[str, Any] = {"input_ids": prompt.input_ids[None]}
        batch["position_ids"] = prompt.position_ids[:, None]
        if prompt.vision is not None:
            ids, spec = prompt.input_ids, backbone.vision
            pads = (ids == spec.image_token_id) | (ids == spec.video_token_id)
            batch |= {"patches": prompt.vision.patches, "grid_thw": prompt.vision.grid_thw}
            batch["vision_index"] = pads.nonzero()[:, 0]
        hidden = backbone(batch, lambda _, hidden, __: hidden)[0]
        torch.testing.assert_close(hidden @ backbone.head_weight.T, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_clip_and_pictures_in_one_sequence() -> None:
    """DeepStack levels of pictures and clip, told apart by transformers, are one list of positions here."""
    backbone = tiny("qwen3_vl").backbone
    spec, generator = backbone.vision, torch.Generator().manual_seed(5)
    text = iter(torch.randint(0, 300, (99,), generator=generator).tolist())
    start, end = spec.vision_start_id, spec.vision_end_id
    ids = [next(text), start, *[spec.image_token_id] * 4, end, next(text)]
    for _ in range(2):
        ids += [next(text), start, *[spec.video_token_id] * 6, end]
    ids += [start, *[spec.image_token_id] * 2, end, *[next(text) for _ in range(5)]]
    images, clip = torch.tensor([[1, 4, 4], [1, 2, 4]]), torch.tensor([[2, 4, 6]])
    pixels, frames = torch.randn(24, 1536, generator=generator), torch.randn(48, 1536, generator=generator)
    tokens = torch.tensor(ids)
    kinds = (tokens == spec.image_token_id).int() + 2 * (tokens == spec.video_token_id).int()
    expected = backbone.hf(
        input_ids=tokens[None],
        mm_token_type_ids=kinds[None],
        pixel_values=pixels,
        image_grid_thw=images,
        pixel_values_videos=frames,
        video_grid_thw=clip,
    ).logits[0]
    grids = torch.cat([images[:1], per_frame(clip), images[1:]])
    positions, _ = mrope_positions(
        tokens, grid_thw=grids, image_token_id=spec.image_token_id, video_token_id=spec.video_token_id
    )
    batch = {
        "input_ids": tokens[None],
        "position_ids": positions[:, None],
        "vision_index": kinds.nonzero()[:, 0],
        "patches": torch.cat([pixels[:16], frames, pixels[16:]]),
        "grid_thw": torch.cat([images[:1], clip, images[1:]]),
    }
    hidden = backbone(batch, lambda _, hidden, __: hidden)[0]
    torch.testing.assert_close(hidden @ backbone.head_weight.T, expected, atol=1e-4, rtol=0)


def test_positions_equal_those_of_transformers() -> None:
    """Qwen3-VL: random layouts of text, pictures and clips, clips longer than wide among them."""
    backbone = tiny("qwen3_vl").backbone
    spec, generator = backbone.vision, torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(300):
        ids: list[int] = [7] * number(0, 5)
        images, clips, grids = [], [], []
        for _ in range(number(0, 4)):
            grid = [number(1, 5), 2 * number(1, 6), 2 * number(1, 6)]
            clip = bool(number(0, 1))
            if not clip:
                grid[0] = 1
            (clips if clip else images).append(grid)
            grids.append(grid)
            merged = grid[1] * grid[2] // 4
            for _ in range(grid[0]):
                pad = spec.video_token_id if clip else spec.image_token_id
                ids += [7] * number(0, 6) + [spec.vision_start_id, *[pad] * merged, spec.vision_end_id]
        ids += [7] * number(1, 9)
        tokens = torch.tensor(ids)
        kinds = (tokens == spec.image_token_id).int() + 2 * (tokens == spec.video_token_id).int()
        expected, delta = backbone.hf.model.get_rope_index(
            tokens[None],
            kinds[None],
            image_grid_thw=torch.tensor(images) if images else None,
            video_grid_thw=torch.tensor(clips) if clips else None,
        )
        positions, following = mrope_positions(
            tokens,
            grid_thw=per_frame(torch.tensor(grids)) if grids else None,
            image_token_id=spec.image_token_id,
            video_token_id=spec.video_token_id,
        )
        assert torch.equal(positions, expected[:, 0])
        assert following == len(ids) + int(delta)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
def test_greedy_text_equals_generate(family: str, tied: bool) -> None:
    checkpoint = tiny(family, tied)
    backbone, prompts = checkpoint.backbone, prompts_of(checkpoint)
    config = SamplingConfig(max_new_tokens=24, temperature=0.0, max_blocks=0)
    rollout = LatentSampler(backbone).sample(prompts, 1, config)
    latent = list(backbone.latents.ids)
    for row, prompt in enumerate(prompts):
        inputs = theirs(backbone, prompt)
        with torch.no_grad():
            out = backbone.hf.generate(**inputs, max_new_tokens=24, do_sample=False, suppress_tokens=latent)
        expected = out[0, len(prompt.input_ids) :].tolist()
        assert rollout.tokens[row, : rollout.lengths[row]].tolist() == expected
    assert rollout.lengths.max() == 24


class OpensBlocks:
    """Makes an untrained model open blocks now and then."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.start] += 5.0
        return scores


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_alone_together_and_replayed(family: str) -> None:
    """Rows with clips, pictures and text sample what each samples alone, and replay to the same log-probs."""
    checkpoint = tiny(family)
    backbone, prompts = checkpoint.backbone, prompts_of(checkpoint)
    sampler = LatentSampler(backbone)
    config = SamplingConfig(max_new_tokens=30, max_blocks=3, top_p=0.95)
    processors = [OpensBlocks(backbone.latents.start_id)]
    seeds = list(range(3 * len(prompts)))
    together = sampler.sample(prompts, 3, config, seeds=seeds, logits_processor=processors)
    assert together.latents.shape[0] >= 12
    for p, prompt in enumerate(prompts):
        one = 3 * p + 1
        alone = sampler.sample([prompt], 1, config, seeds=[seeds[one]], logits_processor=processors)
        length = int(together.lengths[one])
        assert alone.tokens[0, : alone.lengths[0]].tolist() == together.tokens[one, :length].tolist()
        gap = alone.logprobs[0, :length] - together.logprobs[one, :length]
        assert gap.abs().max() <= 1e-4
    batch = replay_batch(together, prompts, None, backbone.vision.pad_id)
    with torch.no_grad():
        replayed = replay_logprobs(backbone, batch)
    assert (replayed - together.logprobs).abs().max() <= 1e-4


def test_prompts_of_the_other_family_are_refused() -> None:
    """Both prompts with pictures and text alone, by the sampler, before anything runs."""
    ours, other = tiny("qwen3_vl"), tiny("qwen2_5_vl")
    for prompt in prompts_of(other)[2:]:
        with pytest.raises(ConfigError, match=r"question .* for a qwen2_5_vl, and this model is a qwen3_vl"):
            LatentSampler(ours.backbone).sample([prompt], 1, SamplingConfig(max_new_tokens=1))
