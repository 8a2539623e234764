"""Gathering what rows emit, and cutting rows back to their stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourdthinker.sampler.rollout import Rollout, decode
from fourdthinker.sampler.step import HISTORY, Slots


class StopScanner:
    """Finds the first id of a row after which its text contains a stop string.

    The text looked at is that of the last ids only, as many as the longest stop string can span, decoded anew
    after every id: so the answer does not depend on how many ids come at a time.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str], rows: int, eos_ids: Sequence[int]) -> None:
        self.tokenizer, self.strings, self.eos_ids = tokenizer, tuple(strings), frozenset(eos_ids)
        self.window = max(len(text.encode()) for text in strings) + 1
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.ended = [False] * rows

    def feed(self, row: int, ids: Sequence[int]) -> int | None:
        """The length to cut `row` to, once it is known; `ids` are those emitted since the last call."""
        mine = self.ids[row]
        for token in ids:
            if self.ended[row]:
                return None
            mine.append(token)
            self.ended[row] = token in self.eos_ids
            text = "" if self.ended[row] else decode(self.tokenizer, mine[-self.window :])
            if any(stop in text for stop in self.strings):
                self.ended[row] = True
                return len(mine)
        return None


class Output:
    """What the rows have emitted, gathered as they leave the batch."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.reasons = [""] * rows
        self.lengths = [0] * rows
        self._pieces: list[tuple[list[int], dict[str, Tensor]]] = []  # rows, [k, longest] of every kind
        self._latents: list[tuple[list[int], Tensor, Tensor]] = []  # row of each, steps, vectors

    def take(
        self, rows: Sequence[int], slot_ids: Sequence[int], slots: Slots, lengths: Sequence[int],
        latent_counts: Sequence[int], reasons: Sequence[str | None],
    ) -> None:  # fmt: skip
        """Take over rows that leave the batch.

        Args:
            rows: their indices in the rollout.
            slot_ids: the slot of each.
            slots: all slots of the batch.
            lengths: ids of each row.
            latent_counts: latents of each row.
            reasons: why each row ended; None: EOS or the limit, which its last id tells in the end.
        """
        device = slots.embeds.device
        index, longest = torch.tensor(slot_ids, device=device), max(lengths)
        kinds = {name: value[:, :longest].index_select(0, index) for name, value in slots.history.items()}
        self._pieces.append((list(rows), kinds))
        for row, length, reason in zip(rows, lengths, reasons, strict=True):
            self.lengths[row], self.reasons[row] = length, reason or ""
        pairs = [(i, k) for i, count in enumerate(latent_counts) for k in range(count)]
        if pairs:
            slot = torch.tensor([slot_ids[i] for i, _ in pairs], device=device)
            number = torch.tensor([k for _, k in pairs], device=device)
            steps = slots.state["latent_steps"][slot, number].long()
            self._latents.append(([rows[i] for i, _ in pairs], steps, slots.state["latents"][slot, number]))

    def rollout(
        self, group: Tensor, pad_id: int, eos_ids: Sequence[int], timing: dict[str, float],
        vision_ids: tuple[int, ...], like: Tensor,
    ) -> Rollout:  # fmt: skip
        """The rollout of all rows; those with a stop string are cut back to it.

        Args:
            group: [R], index of each row's prompt.
            pad_id: what fills up shorter rows.
            eos_ids: ids that end a row.
            timing: as `Rollout.timing`.
            vision_ids: as `Rollout.vision_ids`.
            like: a tensor [..., H] of the dtype and device of latents.
        """
        device, longest = group.device, max(self.lengths)
        lengths = torch.tensor(self.lengths, device=device)
        valid = torch.arange(longest, device=device)[None, :] < lengths[:, None]
        merged = {}
        for name, fill in zip(HISTORY, (pad_id, False, 0.0, 0.0), strict=True):
            whole = self._pieces[0][1][name].new_full((self.rows, longest), fill)
            for rows, kinds in self._pieces:
                whole[torch.tensor(rows, device=device), : kinds[name].shape[1]] = kinds[name][:, :longest]
            merged[name] = whole.masked_fill_(~valid, fill)
        last = merged["tokens"].gather(1, lengths[:, None] - 1)[:, 0].tolist()
        for row, reason in enumerate(self.reasons):
            self.reasons[row] = reason or ("eos" if last[row] in eos_ids else "length")
        latents = like.new_empty(0, like.shape[-1])
        latent_rows = latent_steps = torch.empty(0, dtype=torch.int64, device=device)
        if self._latents:
            latent_rows = torch.tensor([row for rows, _, _ in self._latents for row in rows], device=device)
            latent_steps = torch.cat([steps for _, steps, _ in self._latents])
            latents = torch.cat([vectors for _, _, vectors in self._latents])
            inside = latent_steps < lengths[latent_rows]
            latent_rows, latent_steps, latents = latent_rows[inside], latent_steps[inside], latents[inside]
            order = (latent_rows * longest + latent_steps).argsort()
            latent_rows, latent_steps, latents = latent_rows[order], latent_steps[order], latents[order]
        return Rollout(
            **merged,
            lengths=lengths,
            latents=latents,
            latent_rows=latent_rows,
            latent_steps=latent_steps,
            finish_reason=self.reasons,
            group=group,
            timing=timing,
            vision_ids=vision_ids,
        )
