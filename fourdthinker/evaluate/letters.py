"""The probabilities of the letters where an answer names one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.answers import TAGS, parse_answer
from fourdthinker.sampler import Rollout, head_logits, replay_batch

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch, Prompt

_OPENED = TAGS[2]


@dataclass(frozen=True)
class LetterStep:
    """Where a row names its letter.

    Attributes:
        step: index of the id in the row.
        ids: letter -> the id that would name it there.
    """

    step: int
    ids: dict[str, int]


def letter_step(tokenizer: Any, row: Sequence[int], options: Mapping[str, str]) -> LetterStep | None:
    """Find the id with which a row names the letter of its answer.

    Args:
        tokenizer: of the model.
        row: the ids of the completion.
        options: letter -> text.

    Returns:
        The step; None where the answer is no single id that is a letter, or not every letter has such an id.
    """

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    choice = parse_answer(text(row), options)
    if choice is None:
        return None
    start = len(row) - 1
    while start > 0 and _OPENED not in text(row[start:]):
        start -= 1
    for step in range(start, len(row)):
        said = text(row[start : step + 1]).partition(_OPENED)[2].lstrip(" \n(")
        if not said:
            continue
        token = text(row[step : step + 1])
        if said.upper() != choice or token.strip(" \n(").upper() != choice:
            return None
        ids = {}
        for letter in options:
            other = token.replace(said, letter if said.isupper() else letter.lower())
            found = tokenizer(other, add_special_tokens=False, verbose=False)["input_ids"]
            if len(found) != 1:
                return None
            ids[letter] = int(found[0])
        return LetterStep(step, ids) if ids[choice] == row[step] else None
    return None


def letter_steps(
    tokenizer: Any, rollout: Rollout, options: Sequence[Mapping[str, str]]
) -> dict[int, LetterStep]:
    """`letter_step` of the rows of a rollout that have one.

    Args:
        tokenizer: of the model.
        rollout: R rows.
        options: of each row; {} for an open question.

    Returns:
        Row -> its step.
    """
    found = {}
    for row, (ids, length) in enumerate(zip(rollout.tokens.tolist(), rollout.lengths.tolist(), strict=True)):
        step = letter_step(tokenizer, ids[:length], options[row]) if options[row] else None
        if step is not None and bool(rollout.policy_mask[row, step.step]):
            found[row] = step
    return found


def source_rows(batch: Batch, wanted: Sequence[int]) -> Tensor:
    """The flat positions whose hidden states predict given ids of completions.

    Args:
        batch: a packed batch, with `completion_index` and `source_index`.
        wanted: completion indices r * T + t, each of them in the batch.

    Returns:
        int64, one position for each of `wanted`, on the batch's device.
    """
    index = torch.tensor(wanted, device=batch["completion_index"].device)
    return batch["source_index"][torch.searchsorted(batch["completion_index"], index)]


@torch.no_grad()
def letter_probabilities(
    backbone: Backbone,
    rollout: Rollout,
    prompts: Sequence[Prompt],
    features: Sequence[Tensor | None],
    steps: Mapping[int, LetterStep],
) -> dict[int, dict[str, float]]:
    """How likely each letter was, among the letters, where a row named one.

    The rows go through the training forward with the latents that they were fed.

    Args:
        backbone: the model.
        rollout: the rows.
        prompts: what it was sampled from.
        features: of every prompt.
        steps: as `letter_steps` returns.

    Returns:
        Row -> letter -> probability; they sum to 1.
    """
    if not steps:
        return {}
    batch = replay_batch(rollout, prompts, list(steps), backbone.vision.pad_id, features=features)
    width = rollout.tokens.shape[1]
    index = source_rows(batch, [i * width + step.step for i, step in enumerate(steps.values())])

    def objective(model: Backbone, hidden: Tensor, _: Batch) -> Tensor:
        return head_logits(hidden.flatten(0, 1)[index], model.head_weight)

    logits = backbone(batch, objective)
    out = {}
    for line, (row, step) in enumerate(steps.items()):
        chances = logits[line, list(step.ids.values())].double().softmax(0).tolist()
        out[row] = dict(zip(step.ids, chances, strict=True))
    return out
