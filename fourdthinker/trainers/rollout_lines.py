"""The lines of rollouts.jsonl."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fourdthinker.evaluate.transcripts import asked_fields, row_blocks, transcript

if TYPE_CHECKING:
    from fourdthinker.backbones import Checkpoint
    from fourdthinker.trainers.experience import Experience


def rollout_lines(
    step: int, experience: Experience, limit: int, checkpoint: Checkpoint
) -> list[dict[str, Any]]:
    """Rollouts as lines of rollouts.jsonl.

    Args:
        step: updates made so far.
        experience: the rollouts.
        limit: only the first so many.
        checkpoint: that they were sampled from.
    """
    samples: Counter[int] = Counter()
    lines = []
    for row, prompt in enumerate(experience.rollout.group.tolist()[:limit]):
        lines.append({"step": step} | _described(experience, row, prompt, samples[prompt], checkpoint))
        samples[prompt] += 1
    return lines


def _described(
    experience: Experience, row: int, prompt: int, sample: int, checkpoint: Checkpoint
) -> dict[str, Any]:
    asked, rollout = experience.prompts[prompt], experience.rollout
    features = None if experience.features is None else experience.features[prompt]
    return {
        "prompt": experience.indices[prompt],
        **asked_fields(asked.record),
        "sample": sample,
        "text": experience.texts[row],
        "reward": _shown(experience.rewards[row]),
        "rewards": {name: _shown(part[row]) for name, part in experience.parts.items()},
        "advantage": experience.advantages[row].item(),
        "length": int(rollout.lengths[row]),
        "finish_reason": rollout.finish_reason[row],
        **transcript(checkpoint.tokenizer, rollout, row),
        "blocks": row_blocks(checkpoint.backbone, rollout, row, asked.vision, features),
    }


def _shown(reward: Tensor) -> float | None:
    """As JSON can hold it."""
    return None if bool(reward.isnan()) else reward.item()
