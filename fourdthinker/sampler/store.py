"""Keys and values: those of a prompt once for all its rows, those of a completion in its row's slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

GRAIN = 64  # positions; completions are attended to, and their room grows, in multiples of this


def bucket(length: int) -> int:
    """Room for completions of `length` tokens: 64, 128, 256, ..."""
    room = GRAIN
    while room < length:
        room *= 2
    return room


def token_bytes(backbone: Backbone) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    values = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim
    return values * backbone.embedding_weight.element_size()


@dataclass
class Segment:
    """Prompts that were prefilled together: prompt i stands at `start + i * spacing` of the pool."""

    start: int
    spacing: int
    lengths: list[int]

    @property
    def tokens(self) -> int:
        """Positions that it takes in the pool, padding included."""
        return self.spacing * len(self.lengths)


@dataclass
class Part:
    """The rows of some neighbouring prompts of a segment, for attention on the CPU."""

    segment: Segment
    first: int  # the first of the prompts, `count` in all
    count: int
    rows: Tensor  # [count, width] slots; a prompt with fewer rows repeats one of them
    mask: Tensor | None  # [count, 1, 1, spacing], -inf past a prompt's length


@dataclass
class Layout:
    """Which slot continues which prompt: what attention over the prompts needs, on the device."""

    parts: list[Part] = field(default_factory=list)  # CPU
    back: Tensor | None = None  # [R] CPU: where in the parts' rows laid end to end each slot is
    order: Tensor | None = None  # CUDA, see shared_prefix_decode
    row_starts: Tensor | None = None
    starts: Tensor | None = None
    lengths: Tensor | None = None


class KVStore:
    """The key-value memory of one call.

    Prompts live in a pool of `tokens` positions, [kv_heads, tokens, D] a layer; the completions of `rows`
    slots in [rows, kv_heads, room, D] a layer, where room grows by doubling. Both hold zeros first: what is
    masked must be finite.

    Args:
        backbone: says layers, heads, width, dtype and device.
        rows: slots.
        tokens: positions of the pool.
        room: positions of a slot, at first.
        longest: bounds the length of a prompt, in tokens.
        prompts: how many prompts there can be.
    """

    def __init__(
        self, backbone: Backbone, rows: int, tokens: int, room: int, longest: int, prompts: int
    ) -> None:
        self.layers, self.heads, self.width = backbone.num_layers, backbone.num_kv_heads, backbone.head_dim
        self.device, self.dtype = backbone.device, backbone.dtype
        self.rows, self.room, self.longest, self.prompts = rows, room, longest, prompts
        self.version = 0  # changes when a tensor moves
        self.layout = Layout()
        self.steps: Tensor | None = None  # [rows] own tokens of each slot, the newest included
        self.span = room  # own positions that are attended to
        self.own_mask: Tensor | None = None
        self._pool = [self._zeros(1, self.heads, tokens, self.width) for _ in range(2 * self.layers)]
        self._own = [self._zeros(rows, self.heads, room, self.width) for _ in range(2 * self.layers)]
        self._free = [(0, tokens)]  # (start, tokens), ascending

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def prompt(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the pool, [1, kv_heads, tokens, D]."""
        return self._pool[2 * layer], self._pool[2 * layer + 1]

    def own(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots, [rows, kv_heads, room, D]."""
        return self._own[2 * layer], self._own[2 * layer + 1]

    # -- room
    def allocate(self, lengths: Sequence[int]) -> Segment | None:
        """Room for prompts of these lengths side by side, or None when there is none now."""
        spacing = max(lengths)
        wanted = spacing * len(lengths)
        for index, (start, size) in enumerate(self._free):
            if size >= wanted:
                self._free[index : index + 1] = [(start + wanted, size - wanted)] if size > wanted else []
                return Segment(start, spacing, list(lengths))
        return None

    def release(self, segment: Segment) -> None:
        """Give the room of a segment back."""
        merged: list[tuple[int, int]] = []
        for start, size in sorted([*self._free, (segment.start, segment.tokens)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._free = merged

    def grow(self, room: int) -> None:
        """More room for completions; a layer at a time, so that only one stands twice."""
        for index, old in enumerate(self._own):
            new = self._zeros(self.rows, self.heads, room, self.width)
            new[:, :, : self.room] = old
            self._own[index] = new
        self.room = room
        self.version += 1

    def keep(self, slots: Tensor) -> None:
        """Leave only the completions in `slots` [k]."""
        for index, old in enumerate(self._own):
            self._own[index] = old.index_select(0, slots)
        self.rows = slots.numel()
        self.version += 1

    def clear(self, slots: Tensor) -> None:
        """Zeros for the completions in `slots` [k]: what was there may not be finite."""
        for own in self._own:
            own.index_fill_(0, slots, 0.0)

    # -- what attention needs
    def arrange(self, owners: Sequence[tuple[Segment, int] | None]) -> None:
        """Say for every slot which prompt (number i of a segment) it continues; None: the slot is empty."""
        taken = [owner for owner in owners if owner is not None]
        owners = [owner if owner is not None else taken[0] for owner in owners]  # computed, and not looked at
        groups: dict[tuple[int, int], list[int]] = {}
        segments = {}
        for slot, (segment, number) in enumerate(owners):  # type: ignore[misc]
            groups.setdefault((segment.start, number), []).append(slot)
            segments[segment.start] = segment
        named = [(segments[start], number, groups[start, number]) for start, number in sorted(groups)]
        if self.device.type == "cpu":
            self._arrange_parts(named)
        else:
            self._arrange_order(named)

    def _arrange_parts(self, groups: list[tuple[Segment, int, list[int]]]) -> None:
        runs: list[list[tuple[Segment, int, list[int]]]] = []
        for group in groups:
            follows = runs and runs[-1][-1][0] is group[0] and runs[-1][-1][1] + 1 == group[1]
            if follows and max(len(g[2]) for g in (runs[-1][0], group)) <= 2 * min(
                len(g[2]) for g in (*runs[-1], group)
            ):
                runs[-1].append(group)
            else:
                runs.append([group])
        parts, back, offset = [], torch.empty(self.rows, dtype=torch.long), 0
        for run in runs:
            segment, first = run[0][:2]
            width = max(len(rows) for _, _, rows in run)
            table = torch.tensor([rows + rows[-1:] * (width - len(rows)) for _, _, rows in run])
            for line, (_, _, rows) in enumerate(run):
                back[rows] = offset + line * width + torch.arange(len(rows))
            lengths = torch.tensor(segment.lengths[first : first + len(run)])
            mask = None
            if int(lengths.min()) < segment.spacing:
                past = torch.arange(segment.spacing) >= lengths[:, None]
                mask = torch.zeros(len(run), 1, 1, segment.spacing, dtype=self.dtype)
                mask.masked_fill_(past[:, None, None], -torch.inf)
            parts.append(Part(segment, first, len(run), table, mask))
            offset += table.numel()
        self.layout = Layout(parts=parts, back=back)

    def _arrange_order(self, groups: list[tuple[Segment, int, list[int]]]) -> None:
        """The same tensors every time, filled anew: a captured graph reads them."""
        count = min(self.rows, self.prompts)
        order = [slot for _, _, rows in groups for slot in rows]
        sizes, starts, lengths = [0] * (count + 1), [0] * count, [0] * count
        for index, (segment, number, rows) in enumerate(groups):
            sizes[index + 1] = len(rows)
            starts[index] = segment.start + number * segment.spacing
            lengths[index] = segment.lengths[number]
        new = [torch.tensor(values, dtype=torch.int32) for values in (order, sizes, starts, lengths)]
        new[1] = new[1].cumsum(0, dtype=torch.int32)
        old = (self.layout.order, self.layout.row_starts, self.layout.starts, self.layout.lengths)
        if old[0] is None or old[0].numel() != self.rows:
            order_, row_starts, starts_, lengths_ = (tensor.to(self.device) for tensor in new)
            self.layout = Layout(order=order_, row_starts=row_starts, starts=starts_, lengths=lengths_)
            return
        for target, tensor in zip(old, new, strict=True):
            target.copy_(tensor.pin_memory(), non_blocking=True)  # type: ignore[union-attr]

    def set_steps(self, steps: Tensor, span: int) -> None:
        """Say before a step how much of each slot is attended to.

        Args:
            steps: [rows] int64, own tokens of each slot, the new one included.
            span: no entry of `steps` is above it.
        """
        self.steps, self.span = steps, span
        if self.device.type == "cpu":
            past = torch.arange(span) >= steps[:, None]
            mask = torch.zeros(self.rows, 1, 1, span, dtype=self.dtype)
            self.own_mask = mask.masked_fill_(past[:, None, None], -torch.inf)


class PrefillCache:
    """The cache of a prefill in pieces, as the layers of transformers use it.

    Keys and values of a piece go into the memory of the segment in the pool, and those of the prompts so far
    come back.
    """

    def __init__(self, store: KVStore, segment: Segment) -> None:
        self.store, self.segment, self.done = store, segment, 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write the piece that begins at `done` into the pool.

        Args:
            key: [U, kv_heads, S, D] of the piece; [1, kv_heads, S, D] where all prompts have it in common.
            value: as `key`.
            layer_idx: index of the layer.

        Returns:
            Keys and values of as many prompts so far, [U or 1, kv_heads, done + S, D] each.
        """
        segment, piece = self.segment, key.shape[2]
        seen = []
        for pool, fresh in zip(self.store.prompt(layer_idx), (key, value), strict=True):
            block = of_segment(pool, segment, 0, len(segment.lengths))
            block[:, :, self.done : self.done + piece] = fresh
            seen.append(block[: fresh.shape[0], :, : self.done + piece])
        return seen[0], seen[1]


def of_segment(pool: Tensor, segment: Segment, first: int, count: int) -> Tensor:
    """A view of neighbouring prompts of a segment.

    Args:
        pool: [1, kv_heads, tokens, D].
        segment: where they are.
        first: number of the first of them in the segment.
        count: how many.

    Returns:
        [count, kv_heads, spacing, D].
    """
    start = segment.start + first * segment.spacing
    part = pool[0, :, start : start + count * segment.spacing]
    return part.view(part.shape[0], count, segment.spacing, -1).transpose(0, 1)
