"""A DIFT step against the straightforward one: the model's own logits of every position, then the loss."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from bench._sampler_cases import IDS
from bench._training_cases import GRIDS
from fourdthinker.backbones.common import Backbone, Objective
from fourdthinker.objectives import dift_objective
from fourdthinker.positions import mrope_positions
from fourdthinker.samples import Batch, Sample, Vision, collate

BLOCKS = 2  # of imagery in an answer


def dift_batch(backbone: Backbone, prompt_tokens: int, answer_tokens: int, samples: int) -> Batch:
    """Samples with a clip, whose features are known, and two imagery blocks with known targets."""
    generator, grid, spec = torch.Generator().manual_seed(1), GRIDS[prompt_tokens], backbone.latents
    pads, width = grid[0] * grid[1] * grid[2] // 4, backbone.hidden_size
    ends = [torch.tensor([IDS[name]]) for name in ("vision_start", "vision_end")]
    block = torch.tensor([spec.start_id, *[spec.pad_id] * spec.latent_size, spec.end_id])
    made = []
    for _ in range(samples):
        words = torch.randint(3, 150_000, (prompt_tokens - pads - 2,), generator=generator)
        prompt = torch.cat([words[:8], ends[0], torch.full((pads,), IDS["video"]), ends[1], words[8:]])
        said = torch.randint(3, 150_000, (answer_tokens - BLOCKS * block.numel(),), generator=generator)
        ids = torch.cat([prompt, block, said[:8], block.repeat(BLOCKS - 1), said[8:]])
        positions, _ = mrope_positions(
            ids, grid_thw=torch.tensor([grid]), seconds_per_grid=[1.0], image_token_id=IDS["image"],
            video_token_id=IDS["video"], tokens_per_second=backbone.vision.tokens_per_second or 0.0,
        )  # fmt: skip
        labels = ids.clone()
        labels[:prompt_tokens] = -100
        labels[ids == spec.pad_id] = -100
        features = torch.randn(pads, (1 + backbone.deepstack_levels) * width, generator=generator)
        made.append(
            Sample(
                ids, positions, labels,
                Vision(torch.tensor([grid]), features=features, seconds_per_grid=[1.0]),
                latents=torch.randn(BLOCKS * spec.latent_size, width, generator=generator),
                vision_index=(ids == IDS["video"]).nonzero()[:, 0],
                latent_index=(ids == spec.pad_id).nonzero()[:, 0],
            )
        )  # fmt: skip
    return {name: value.to(backbone.device) for name, value in collate(made, 0).items()}


def plain_objective(backbone: Backbone, hidden: Tensor, batch: Batch) -> tuple[Tensor, None]:
    """The published loss on transformers' own: logits of all positions, and ``ForCausalLMLoss``.

    The cosine is that of shifted hidden states, which a mask of the latents picks.
    """
    logits = backbone.hf.lm_head(hidden)
    ce = ForCausalLMLoss(logits, batch["labels"], vocab_size=logits.shape[-1])
    is_latent = batch["input_ids"] == backbone.latents.pad_id
    picked = hidden[:, :-1][is_latent[:, 1:]]
    similarity = (1 - F.cosine_similarity(picked.float(), batch["latents"].float(), dim=-1)).mean()
    return 0.1 * ce + similarity, None


def our_objective(batch: Batch) -> Objective:
    """Ours, with the numbers of tokens and latents of the batch."""
    return functools.partial(
        dift_objective, num_tokens=batch["rows"].numel(), num_latents=batch["latent_index"].numel(),
        ce_weight=0.1, sim_weight=1.0,
    )  # fmt: skip


def loss_part(backbone: Backbone, batch: Batch, objective: Objective) -> Callable[[], float]:
    """From hidden states to their gradient and the head's."""
    generator = torch.Generator().manual_seed(2)
    shape = (*batch["input_ids"].shape, backbone.hidden_size)
    states = torch.randn(shape, generator=generator).to(backbone.device, backbone.dtype)

    def call() -> float:
        hidden = states.detach().requires_grad_()
        loss = objective(backbone, hidden, batch)[0]
        loss.backward()
        backbone.zero_grad(set_to_none=True)
        return loss.item()

    return call


def whole_step(backbone: Backbone, batch: Batch, objective: Objective) -> Callable[[], float]:
    """Forward and backward of model and loss, without the optimizer."""

    def call() -> float:
        loss = backbone(batch, objective)[0]
        loss.backward()
        backbone.zero_grad(set_to_none=True)
        return loss.item()

    return call
