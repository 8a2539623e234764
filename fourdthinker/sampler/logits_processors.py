"""Logits processors of Hugging Face's form, over rows that run in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fourdthinker.samples import Prompt

Processor = Callable[
    [Tensor, Tensor], Tensor
]  # (input_ids [b, S] long, scores [b, V] float32) -> scores [b, V]


class Processors:
    """Logits processors, called once for all rows whose prompts have the same length.

    So no padding stands in the ids they see, and nothing of a row depends on the length of another's prompt.
    """

    def __init__(self, processors: Sequence[Processor], max_new_tokens: int, device: torch.device) -> None:
        self.processors, self.max_new_tokens, self.device, self.step = processors, max_new_tokens, device, 0
        self.calls: list[tuple[Tensor, int, Tensor]] = []  # rows, prompt length, ids with room for all steps

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """These rows run from now on, none of which has emitted anything."""
        self.step, self.calls = 0, []
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(prompt.input_ids.numel(), []).append(row)
        for length, rows in by_length.items():
            ids = torch.zeros(len(rows), length + self.max_new_tokens, dtype=torch.long, device=self.device)
            ids[:, :length] = torch.stack([prompts[row].input_ids for row in rows]).to(self.device)
            self.calls.append((torch.tensor(rows, device=self.device), length, ids))

    def __call__(self, raw: Tensor) -> Tensor:
        """Apply all processors, in their order, to the raw logits [r, V] of the rows that run.

        Returns:
            A new tensor, [r, V] of the same dtype; `raw` stays as it is.
        """
        scores = torch.empty_like(raw)
        for rows, length, ids in self.calls:
            part = raw[rows]
            for processor in self.processors:
                part = processor(ids[:, : length + self.step], part)
            scores[rows] = part.to(scores.dtype)
        return scores

    def remember(self, emitted: Tensor) -> None:
        """The ids [r] of this step."""
        for rows, length, ids in self.calls:
            ids[:, length + self.step] = emitted[rows]
        self.step += 1
