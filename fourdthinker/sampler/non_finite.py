"""Rows whose logits or latents are not finite.

They are found when a call ends, and refused by the names of their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.errors import SamplingError
from fourdthinker.sampler.rollout import Rollout

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Prompt


def refuse_broken(
    rollout: Rollout, prompts: Sequence[Prompt], features: Sequence[Tensor | None], backbone: Backbone
) -> None:
    """Raise where a log-probability is NaN or a latent is not finite.

    Args:
        rollout: of these prompts; checked with one synchronisation.
        prompts: what was sampled from.
        features: of every prompt, as `encode_prompts` returns.
        backbone: of the sampler; on failure its weights are searched for the cause.

    Raises:
        SamplingError: names every prompt with such a row, and where the fault comes from.
    """
    spoilt = (~rollout.latents.isfinite().all(1)).long()
    latents = torch.zeros_like(rollout.lengths).index_add_(0, rollout.latent_rows, spoilt)
    broken = rollout.logprobs.isnan().any(1) | (latents > 0)
    if not bool(broken.any()):
        return
    reasons = {}
    for index in sorted(set(rollout.group[broken].tolist())):
        record = prompts[index].record
        name = f"prompt {index}" if record is None else f"question {record.id!r} ({record.where})"
        cause = _cause(prompts[index], features[index], backbone)
        reasons[index] = f"{name}: its logits leave nothing to sample from: {cause}"
    raise SamplingError(reasons)


def _cause(prompt: Prompt, features: Tensor | None, backbone: Backbone) -> str:
    if features is not None and not bool(features.isfinite().all()):
        return (
            "its vision features are NaN or infinite; check the weights of the vision tower, and the patches"
        )
    ids = prompt.input_ids.to(backbone.device)
    sound = backbone.embedding_weight[ids].isfinite().all(1)
    if not bool(sound.all()):
        return f"the embedding row of token {int(ids[~sound][0])} is NaN or infinite; mend the checkpoint"
    head = backbone.head_weight.isfinite().all(1)
    if not bool(head.all()):
        return f"row {int((~head).nonzero()[0])} of the output head is NaN or infinite; mend the checkpoint"
    return (
        "look for NaN or infinite weights, for values too large for the dtype (float16), or for processors "
        "that ban every id"
    )
