"""Models, prompts and scripted logits for the tests of sampler and replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones import Checkpoint
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.samples import Prompt, Vision
from tests.tiny import tiny_checkpoint

# Clips wider than long: transformers 5.17 lets the text after a longer one begin before the clip's last time.
GRIDS = ([[2, 4, 6]], [[1, 4, 6]], [[2, 2, 6], [1, 4, 4]])


def talkative(start: float = 3.5, end: float = 2.5, eos: float = 1.5, **options: Any) -> Checkpoint:
    """A random model whose head is tilted so that it opens blocks, closes them early (if it may) and ends."""
    checkpoint = tiny_checkpoint(tied=False, **options)
    backbone = checkpoint.backbone
    ids = torch.arange(300)[None]
    with torch.no_grad():
        mean = backbone.decode(backbone.embed_tokens(ids), torch.arange(300).expand(3, 1, -1))[0].mean(0)
        mean = mean / mean.norm() ** 2
        for token, logit in (
            (backbone.latents.start_id, start),
            (backbone.latents.end_id, end),
            (backbone.vision.eos_ids[0], eos),
        ):
            backbone.head_weight[token] += logit * mean
    return checkpoint


def text_ids(seed: int, length: int) -> Tensor:
    """Plain ids: bytes and merges of the tiny tokenizer, no control token."""
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed))


def make_prompt(checkpoint: Checkpoint, seed: int, length: int, clip: int | None = None) -> Prompt:
    """`length` random text ids, and after the first three the pads of clip number `clip`."""
    spec = checkpoint.backbone.vision
    ids, vision = text_ids(seed, length), None
    if clip is not None:
        grid = torch.tensor(GRIDS[clip % len(GRIDS)])
        count = int(grid.prod(-1).sum())
        patches = torch.randn(count, spec.patch_dim, generator=torch.Generator().manual_seed(1000 + clip))
        vision = Vision(grid, patches)
        # Without a clock in its positions, a family has text before every temporal patch.
        runs = grid if spec.tokens_per_second is not None else per_frame(grid)
        pieces = [ids[:3]]
        for pads in (runs.prod(-1) // 4).tolist():
            pieces += [torch.full((pads,), spec.video_token_id), ids[3:4]]
        ids = torch.cat([*pieces, ids[4:]])
    positions, following = mrope_positions(
        ids,
        grid_thw=None if vision is None else runs,
        seconds_per_grid=None if vision is None else [1.0] * len(runs),
        image_token_id=spec.image_token_id,
        video_token_id=spec.video_token_id,
        tokens_per_second=spec.tokens_per_second or 0.0,
    )
    return Prompt(ids, positions, following, vision)


def mixed_prompts(checkpoint: Checkpoint) -> list[Prompt]:
    """Eight prompts of different lengths, five of them with clips."""
    clips = (0, None, 1, 2, None, 0, None, 2)
    return [make_prompt(checkpoint, i, 4 + 3 * i, clip) for i, clip in enumerate(clips)]


class Script:
    """A logits processor: at step i of the prompt with these ids, `wishes[i]` by far first, then `other`."""

    def __init__(self, scripts: Sequence[tuple[Prompt, Sequence[int]]], other: int) -> None:
        self.scripts, self.other = scripts, other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, ids in enumerate(input_ids):
            prompt, wishes = next(
                (p, w) for p, w in self.scripts if torch.equal(ids[: len(p.input_ids)], p.input_ids)
            )
            step = len(ids) - len(prompt.input_ids)
            scores[row, self.other] = 1000.0
            if step < len(wishes):
                scores[row, wishes[step]] = 2000.0
        return scores


def compare(a: Any, b: Any, rows_a: Sequence[int], rows_b: Sequence[int]) -> None:
    """Rows of two rollouts: equal ids, reasons, masks; log-probs to 5e-5, latents to 1e-5 of the largest."""
    for i, j in zip(rows_a, rows_b, strict=True):
        n = int(a.lengths[i])
        assert n == int(b.lengths[j])
        assert a.tokens[i, :n].tolist() == b.tokens[j, :n].tolist()
        assert a.finish_reason[i] == b.finish_reason[j]
        assert torch.equal(a.policy_mask[i, :n], b.policy_mask[j, :n])
        for name in ("logprobs", "sampled_logprobs"):
            gap = getattr(a, name)[i, :n] - getattr(b, name)[j, :n]
            assert gap.abs().max() <= 5e-5, name
        mine, other = a.latent_rows == i, b.latent_rows == j
        assert torch.equal(a.latent_steps[mine], b.latent_steps[other])
        if mine.any():
            scale = a.latents[mine].abs().max()
            assert (a.latents[mine] - b.latents[other]).abs().max() <= 1e-5 * scale
