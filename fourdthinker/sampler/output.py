"""Gathering what rows emit, and cutting rows back to their stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourdthinker.sampler.rollout import Rollout, decode

_COLUMNS = ("tokens", "policy_mask", "logprobs", "sampled_logprobs")


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
    """What `rows` rows have emitted, on the device, in pieces: one for each set of rows that ran together."""

    def __init__(self, rows: int, device: torch.device, stops: StopScanner | None) -> None:
        self.stops = stops
        self.steps = 0
        self._columns: list[tuple[Tensor, ...]] = []  # since the last flush
        self._unseen = 0  # columns at their end that the scanner has not seen
        self._pieces: list[tuple[Tensor, int, list[Tensor]]] = []  # rows, first step, [r, s] of every kind
        self._latents: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, steps, vectors
        self._lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._cuts: dict[int, int] = {}

    def add(self, *columns: Tensor) -> None:
        """One step of all rows in the batch: ids, policy mask and both log-probabilities, [r] each."""
        self._columns.append(columns)
        self._unseen += 1
        self.steps += 1

    def look(self, index: Tensor, state: dict[str, Tensor]) -> None:
        """Mark rows as finished whose text has reached a stop string."""
        if self.stops is None or not self._unseen:
            return
        fresh = torch.stack([columns[0] for columns in self._columns[-self._unseen :]], dim=1).tolist()
        self._unseen = 0
        stopped = []
        for place, row in enumerate(index.tolist()):
            cut = self.stops.feed(row, fresh[place])
            if cut is not None:
                self._cuts[row] = cut
                stopped.append(place)
        if stopped:
            state["finished"][torch.tensor(stopped, device=index.device)] = True

    def flush(self, index: Tensor, state: dict[str, Tensor], leaving: Tensor) -> None:
        """Take over what has been added since the last time, and the results of rows `leaving` [r] bool."""
        if self._columns:
            kinds = [torch.stack(parts, dim=1) for parts in zip(*self._columns, strict=True)]
            self._pieces.append((index, self.steps - len(self._columns), kinds))
            self._columns = []
        self._lengths[index] = state["steps"]
        self._finished[index] = state["finished"]
        history = torch.arange(state["latents"].shape[1], device=index.device)
        used = (history[None, :] < state["latent_count"][:, None]) & leaving[:, None]
        rows = index[:, None].expand_as(used)[used]
        self._latents.append((rows, state["latent_steps"][used].long(), state["latents"][used]))

    def rollout(
        self, group: Tensor, pad_id: int, timing: dict[str, float], vision_ids: tuple[int, ...]
    ) -> Rollout:
        """All rows, those with a stop string cut back to it. T is the longest row's length."""
        device, lengths = group.device, self._lengths
        if self._cuts:
            cut_rows = torch.tensor(list(self._cuts), device=device)
            lengths[cut_rows] = torch.tensor(list(self._cuts.values()), device=device)
        longest = int(lengths.max())
        valid = torch.arange(longest, device=device)[None, :] < lengths[:, None]
        merged = []
        for kind, fill in enumerate((pad_id, False, 0.0, 0.0)):
            like = self._pieces[0][2][kind]
            whole = like.new_full((len(group), self.steps), fill)
            for rows, start, kinds in self._pieces:
                whole[rows, start : start + kinds[kind].shape[1]] = kinds[kind]
            merged.append(torch.where(valid, whole[:, :longest], torch.full_like(whole[:, :longest], fill)))
        latent_rows, latent_steps, latents = (torch.cat(parts) for parts in zip(*self._latents, strict=True))
        inside = latent_steps < lengths[latent_rows]
        latent_rows, latent_steps, latents = latent_rows[inside], latent_steps[inside], latents[inside]
        order = (latent_rows * longest + latent_steps).argsort()
        reasons = [
            "stop" if row in self._cuts else "eos" if finished else "length"
            for row, finished in enumerate(self._finished.tolist())
        ]
        return Rollout(
            **dict(zip(_COLUMNS, merged, strict=True)),
            lengths=lengths,
            latents=latents[order],
            latent_rows=latent_rows[order],
            latent_steps=latent_steps[order],
            finish_reason=reasons,
            group=group,
            timing=timing,
            vision_ids=vision_ids,
        )
