"""What sampling returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rollout:
    """R sampled rows, those of prompt 0 first, on the device of the model.

    Attributes:
        tokens: int64 [R, T], emitted ids (text, START, latent pads, END), filled up with the checkpoint's pad
            id.
        lengths: int64 [R], ids of each row, its EOS included.
        policy_mask: bool [R, T], true where the policy chose the id: not at latent pads and END, at START
            only with `train_start`, not after the end.
        logprobs: float32 [R, T], log-softmax(raw logits / temperature) at the id; greedy rows count as
            temperature 1. No grammar mask, truncation, penalty or logits processor enters: a training forward
            recomputes the same. 0 where `policy_mask` is false.
        sampled_logprobs: float32 [R, T], log-prob under the distribution that was drawn from (0 where
            greedy). 0 where `policy_mask` is false.
        latents: [N, H], dtype of the model: the hidden states that were fed back, ordered by row and step.
        latent_rows, latent_steps: int64 [N]; latent i was the input at the pad
            `tokens[latent_rows[i], latent_steps[i]]`.
        finish_reason: of each row: "eos", "stop" (a stop string) or "length".
        group: int64 [R], index of each row's prompt.
        timing: seconds of "vision", "prefill" and "decode", and "steps", the number of decode steps; on CUDA
            also "graphs", how many were captured, and "capture", the seconds that took (a part of "decode").
        vision_ids: the token ids of a prompt that stand for vision features (`replay_batch` needs them).
    """

    tokens: Tensor
    lengths: Tensor
    policy_mask: Tensor
    logprobs: Tensor
    sampled_logprobs: Tensor
    latents: Tensor
    latent_rows: Tensor
    latent_steps: Tensor
    finish_reason: list[str]
    group: Tensor
    timing: dict[str, float] = field(default_factory=dict)
    vision_ids: tuple[int, ...] = ()

    def texts(self, tokenizer: Any) -> list[str]:
        """The decoded text of every row without its EOS; latent blocks stay visible as their tokens."""
        rows = self.tokens.tolist()
        ends = [n - (why == "eos") for n, why in zip(self.lengths.tolist(), self.finish_reason, strict=True)]
        return [decode(tokenizer, row[:end]) for row, end in zip(rows, ends, strict=True)]


def joined_groups(parts: Sequence[tuple[Rollout, Sequence[int]]], pad_id: int) -> Rollout:
    """Rows of several rollouts as one.

    Args:
        parts: rollouts of one model, each with some of its rows; those of part i become rows of prompt i.
        pad_id: fills up `tokens`.

    Returns:
        The rows in this order; seconds and counts of `timing` are sums over the rollouts.
    """
    width = max(rollout.tokens.shape[1] for rollout, _ in parts)

    def rows(name: str, fill: float = 0) -> Tensor:
        made = []
        for rollout, chosen in parts:
            values: Tensor = getattr(rollout, name)[list(chosen)]
            made.append(torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill))
        return torch.cat(made)

    latents, latent_rows, latent_steps, first = [], [], [], 0
    for rollout, chosen in parts:
        for number, row in enumerate(chosen):
            mine = rollout.latent_rows == row
            latents.append(rollout.latents[mine])
            latent_steps.append(rollout.latent_steps[mine])
            latent_rows.append(torch.full_like(latent_steps[-1], first + number))
        first += len(chosen)
    timing: Counter[str] = Counter()
    for rollout in {id(rollout): rollout for rollout, _ in parts}.values():
        timing.update(rollout.timing)
    group = [part for part, (_, chosen) in enumerate(parts) for _ in chosen]
    one = parts[0][0]
    return Rollout(
        tokens=rows("tokens", pad_id),
        lengths=torch.cat([rollout.lengths[list(chosen)] for rollout, chosen in parts]),
        policy_mask=rows("policy_mask"),
        logprobs=rows("logprobs"),
        sampled_logprobs=rows("sampled_logprobs"),
        latents=torch.cat(latents),
        latent_rows=torch.cat(latent_rows),
        latent_steps=torch.cat(latent_steps),
        finish_reason=[rollout.finish_reason[row] for rollout, chosen in parts for row in chosen],
        group=torch.tensor(group, device=one.group.device),
        timing=dict(timing),
        vision_ids=one.vision_ids,
    )


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of ids as they are: special tokens kept, spaces not tidied."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
