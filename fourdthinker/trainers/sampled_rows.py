"""Rows of prompts by the weights of this process, on fewer at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, encode_prompts, joined_groups
from fourdthinker.samples import Prompt
from fourdthinker.trainers.halved import Halved


def sampled_rows(
    sampler: LatentSampler,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    seeds: Sequence[int],
    by_halves: Callable[[str], Halved],
) -> tuple[Rollout, list[Tensor | None]]:
    """Sample a row for each seed. What a row becomes does not depend on those beside it.

    Args:
        sampler: of the model.
        prompts: P of them.
        config: the settings.
        seeds: of all rows, those of a prompt together; a multiple of P.
        by_halves: gives what does some work by halves.

    Returns:
        The rows, and the features of each prompt.

    Raises:
        MemoryLimitError: memory does not suffice for one row or one prompt's pictures.
    """
    each = len(seeds) // len(prompts)
    encoded = by_halves("vision features")(lambda few: encode_prompts(sampler.backbone, few), prompts)
    features = [feature for part in encoded for feature in part]

    def sample(rows: Sequence[int]) -> Rollout:
        if len(rows) == len(seeds):
            return sampler.sample(prompts, each, config, seeds=seeds, features=features)
        of = [row // each for row in rows]  # equal prompts are prefilled once
        return sampler.sample(
            [prompts[p] for p in of],
            1,
            config,
            seeds=[seeds[row] for row in rows],
            features=[features[p] for p in of],
        )

    made = by_halves("rollouts")(sample, range(len(seeds)))
    if len(made) == 1:
        return made[0], features
    rows = [(one, range(len(one.finish_reason))) for one in made]
    rollout = joined_groups(rows, sampler.backbone.vision.pad_id)
    group = torch.arange(len(prompts), device=rollout.group.device).repeat_interleave(each)
    return replace(rollout, group=group), features
