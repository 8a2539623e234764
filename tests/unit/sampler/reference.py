"""One row at a time, one token at a time, in plain Python: what the sampler is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fourdthinker.backbones import Checkpoint
from fourdthinker.kernels import philox_uniform
from fourdthinker.sampler import SamplingConfig
from fourdthinker.samples import Prompt

ROUNDING = 2e-6


@dataclass
class Row:
    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    reason: str = "length"
    close: float = math.inf  # how near a draw came to another id: below `ROUNDING` that may decide


@torch.no_grad()
def one_row(
    checkpoint: Checkpoint, prompt: Prompt, config: SamplingConfig, seed: int, feed: str = "own",
    vectors: Tensor | None = None,
) -> Row:  # fmt: skip
    """The grammar, the draw and the layers of transformers with their own cache, for one row alone.

    ``feed``: one of LATENT_MODES; ``vectors`` [N, H] stand in for the first N latents.
    """
    backbone, latents = checkpoint.backbone, checkpoint.backbone.latents
    eos = config.eos_ids or backbone.vision.eos_ids
    batch: dict[str, Any] = {"input_ids": prompt.input_ids[None]}
    pads = torch.isin(prompt.input_ids, torch.tensor([backbone.vision.video_token_id]))
    if prompt.vision is not None:
        batch |= {"patches": prompt.vision.patches, "grid_thw": prompt.vision.grid_thw}
        batch["vision_index"] = pads.nonzero()[:, 0]
    inputs = backbone.embed_inputs(batch)
    embeds: torch.Tensor | None = inputs.embeds
    cache, deepstack = backbone.new_cache(), inputs.deepstack
    positions, row = prompt.position_ids[:, None], Row()
    seen, inside, blocks = set(prompt.input_ids[~pads].tolist()), -1, 0
    for step in range(config.max_new_tokens):
        hidden = backbone.decode(embeds, positions, None, cache, deepstack=deepstack)[0, -1]
        deepstack = None
        positions = torch.full((3, 1, 1), prompt.next_position + step)
        raw = backbone.head_weight.double() @ hidden.double()
        banned = [] if inside >= 0 else [latents.pad_id, latents.end_id]
        if inside < 0 and blocks >= config.max_blocks:
            banned.append(latents.start_id)
        token, logprob, sampled, close = draw(raw, banned, config, seen, set(row.ids), seed, step)
        row.close = min(row.close, close)
        embeds = None
        policy = inside < 0
        if inside >= 0:
            size = 0 if feed == "none" else latents.latent_size
            ends = inside == size or (config.mode == "reference" and token == latents.end_id)
            token = latents.end_id if ends else latents.pad_id
            if not ends:
                thought = hidden
                if feed == "first-repeat" and inside > 0:
                    thought = row.latents[-1]
                elif feed == "zero":
                    thought = torch.zeros_like(hidden)
                elif feed == "pad":
                    thought = backbone.embedding_weight[latents.pad_id]
                elif vectors is not None and len(row.latents) < len(vectors):
                    thought = vectors[len(row.latents)]
                row.latents.append(thought)
                embeds = thought[None, None]
            inside = -1 if ends else inside + 1
        elif token == latents.start_id:
            inside, blocks, policy = 0, blocks + 1, config.train_start
        row.ids.append(token)
        row.chosen.append(policy)
        row.logprobs.append(logprob if policy else 0.0)
        row.sampled.append(sampled if policy else 0.0)
        seen.add(token)
        if embeds is None:
            embeds = backbone.embed_tokens(torch.tensor([[token]]))
        if token in eos:
            row.reason = "eos"
            break
        text = checkpoint.tokenizer.decode(row.ids, skip_special_tokens=False) if config.stop_strings else ""
        if any(stop in text for stop in config.stop_strings):
            row.reason = "stop"
            break
    return row


def draw(
    raw: Tensor, banned: list[int], config: SamplingConfig, seen: set[int], said: set[int], seed: int,
    step: int,
) -> tuple[int, float, float, float]:  # fmt: skip
    """An id with its log-probabilities under the model and under what it was drawn from, and how close it
    was."""
    scores = raw.clone()
    for token in seen:
        factor = config.repetition_penalty
        scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
    for token in said:
        scores[token] -= config.presence_penalty
    scores[banned] = -torch.inf
    if config.temperature == 0:
        best = scores.topk(2)
        token = int(best.indices[0])
        gap = float(best.values[0] - best.values[1])
        return token, float(raw.log_softmax(0)[token]), 0.0, gap
    p = (scores / config.temperature).softmax(0)
    order = p.argsort(descending=True, stable=True)
    keep, borders = torch.ones_like(p, dtype=torch.bool), [1.0]
    if config.top_k:
        keep[order[config.top_k :]] = False
        if config.top_k < len(p):
            borders.append(float(scores[order[config.top_k - 1]] - scores[order[config.top_k]]))
    if config.top_p < 1:
        within = torch.where(keep, p, 0.0) / p[keep].sum()
        before = within[order].cumsum(0) - within[order]
        keep[order[before >= config.top_p]] = False
        borders.append(float((before - config.top_p).abs().min()))
    if config.min_p:
        borders.append(float((p / p.max() - config.min_p).abs().min()))
        keep &= p >= config.min_p * p.max()
    p = torch.where(keep, p, 0.0) / p[keep].sum()
    u = float(philox_uniform(torch.tensor([seed]), torch.tensor([step])))
    running = p.cumsum(0)
    token = int((running <= u).sum())
    borders.append(float((running - u).abs().min()))
    logprob = float((raw / config.temperature).log_softmax(0)[token])
    return token, logprob, float(p[token].log()), min(borders)
