"""One call of the sampler: rows enter and leave the batch, and the host asks now and then who has ended.

Every row depends on its prompt, its seed and the settings alone: not on the other rows, on its slot, on
when it entered, or on how often the host asks; but where rounding decides between two ids (docs/sampler.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.backbones.gathering import is_gathered_in_turn
from fourdthinker.sampler.feed import Feed
from fourdthinker.sampler.graphs import Graphs
from fourdthinker.sampler.output import Output, StopScanner
from fourdthinker.sampler.prefill import prefill
from fourdthinker.sampler.schedule import Chunk, Plan, completion_room
from fourdthinker.sampler.step import Slots, Stepper
from fourdthinker.sampler.store import GRAIN, KVStore, Segment

if TYPE_CHECKING:
    from fourdthinker.samples import Prompt

log = logging.getLogger(__name__)

ROOM = {"cpu": 64, "cuda": 256}  # completion tokens there is room for at first
COMPACT_BELOW = {"cpu": 0.75, "cuda": 0.5}  # free slots leave the batch when no larger share is in use
OnTokens = Callable[[int, list[int], bool], None]


@dataclass
class Poll:
    """What the host reads of a batch, on its way from the device."""

    rows: list[int | None]  # of each slot, when the poll began
    fed: list[int]  # ids of each slot that earlier polls have shown
    report: Tensor  # [3, r] long: ended, ids emitted, latents
    window: Tensor | None  # [r, w] long: ids from `fed` on
    event: torch.cuda.Event | None


@dataclass
class Work:
    """What is to be sampled: unique prompts with their features, and for every row its prompt and seed."""

    prompts: Sequence[Prompt]
    features: Sequence[Tensor | None]
    row_prompts: Sequence[Prompt]
    seeds: Tensor  # [R] on the CPU
    stops: StopScanner | None = None
    on_tokens: OnTokens | None = None
    feed: Feed | None = None  # of all rows; None: their own latents


class Run:
    """The state of a call."""

    def __init__(
        self, stepper: Stepper, plan: Plan, work: Work, check_every: int, measure: Callable[[str], object]
    ) -> None:
        self.stepper, self.plan, self.work, self.every, self.measure = (
            stepper, plan, work, check_every, measure,
        )  # fmt: skip
        self.device = stepper.backbone.device
        self.limit = stepper.config.max_new_tokens
        self.room_limit = completion_room(self.limit)
        room = min(ROOM[self.device.type], self.room_limit)
        longest = max(max(chunk.lengths) for chunk in plan.chunks)
        self.store = KVStore(stepper.backbone, plan.slots, plan.pool, room, longest, len(work.prompts))
        self.output = Output(len(work.row_prompts))
        self.waiting = list(plan.chunks)
        self.slots: Slots | None = None
        # Of every slot: its row and that row's chunk and prompt, ids emitted at most, ids shown to the host.
        self.rows: list[int | None] = [None] * plan.slots
        self.owners: list[tuple[Chunk, int] | None] = [None] * plan.slots
        self.issued = [0] * plan.slots
        self.fed = [0] * plan.slots
        self.steps = 0
        self.graphs = None
        # Gathering weights is no part of a graph.
        if self.device.type == "cuda" and not is_gathered_in_turn(stepper.backbone):
            if stepper.processors is None:
                self.graphs = Graphs(self.device)
            else:
                log.info("logits processors are Python: the decode step runs eagerly, without a CUDA graph")

    @property
    def active(self) -> list[int]:
        """Slots whose row has not been found to have ended."""
        return [slot for slot, row in enumerate(self.rows) if row is not None]

    def run(self) -> Output:
        """Until every row has ended."""
        pending: Poll | None = None
        while True:
            self._admit()
            active = self.active
            if not active:
                return self.output
            remaining = self.limit - min(self.issued[slot] for slot in active)
            count = min(self.every, remaining)
            for left in range(remaining, remaining - count, -1):
                self._step(left)
            poll = self._begin_poll()
            if self.device.type == "cpu":
                self._finish_poll(poll)
                continue
            # What the last poll asked for has long arrived; the device goes on meanwhile.
            if pending is not None:
                self._finish_poll(pending)
            pending = poll
            if count == remaining:
                self._finish_poll(pending)
                pending = None

    def _step(self, remaining: int) -> None:
        needed = max(self.issued[slot] for slot in self.active)
        while needed > self.store.room:
            self.store.grow(min(2 * self.store.room, self.room_limit))
        slots, store = self.slots, self.store
        assert slots is not None
        if self.device.type == "cpu":
            span = min(-(-needed // GRAIN) * GRAIN, store.room)
            self.stepper.step(slots, store, span)
        elif self.graphs is None:
            self.stepper.step(slots, store, store.room)
        else:
            self.graphs.run(store.version, lambda: self.stepper.step(slots, store, store.room), remaining)
        self.steps += 1
        for slot in self.active:
            self.issued[slot] = min(self.issued[slot] + 1, self.limit)

    # -- who is in the batch
    def _admit(self) -> None:
        """Let waiting rows take free slots, prefilling their prompts; without any, close up the batch."""
        free = [slot for slot, row in enumerate(self.rows) if row is None]
        if not self.waiting:
            self._compact(free)
            return
        busy = len(self.rows) - len(free)
        # Processors see rows that run in step. Others enter when enough have left to be worth a stop.
        if busy and (self.stepper.processors is not None or len(free) < max(1, len(self.rows) // 8)):
            return
        entering: list[tuple[Chunk, int, int]] = []  # chunk, its prompt, row
        for chunk in list(self.waiting):
            if len(entering) == len(free) or not self._in_memory(chunk):
                break
            taken = chunk.rows[chunk.waiting : chunk.waiting + len(free) - len(entering)]
            chunk.waiting += len(taken)
            entering += [(chunk, number, row) for row, number in taken]
            if chunk.waiting == len(chunk.rows):
                self.waiting.remove(chunk)
        if entering:
            self._enter(free[: len(entering)], entering)

    def _in_memory(self, chunk: Chunk) -> bool:
        """Prefill a chunk unless that was done; False when the pool has no room for it yet."""
        if chunk.segment is not None:
            return True
        chunk.segment = self.store.allocate(chunk.lengths)
        if chunk.segment is None:
            return False
        prompts = [self.work.prompts[index] for index in chunk.prompts]
        features = [self.work.features[index] for index in chunk.prompts]
        with self.measure("prefill"):  # type: ignore[attr-defined]
            chunk.hidden = prefill(self.stepper.backbone, prompts, features, self.store, chunk.segment)
        return True

    def _enter(self, slot_ids: list[int], entering: list[tuple[Chunk, int, int]]) -> None:
        work, stepper = self.work, self.stepper
        rows = [row for _, _, row in entering]
        backbone = stepper.backbone
        feed = None if work.feed is None else work.feed.rows(rows, backbone.embedding_weight)
        fresh = Slots.fresh(
            backbone, stepper.config, [work.row_prompts[row] for row in rows], work.seeds[rows], feed
        )
        if stepper.processors is not None:
            stepper.processors.begin([work.row_prompts[row] for row in rows])
        hidden = torch.stack([chunk.hidden[number] for chunk, number, _ in entering])  # type: ignore[index]
        stepper.emit(fresh, hidden)
        if self.slots is None and len(rows) == len(self.rows):
            self.slots = fresh
        else:
            if self.slots is None:
                self.slots = Slots.empty(stepper.backbone, stepper.config, len(self.rows), fresh)
            index = torch.tensor(slot_ids, device=self.device)
            self.slots.put(index, fresh)
            if self.device.type == "cpu":  # its attention multiplies what is masked by 0, and NaN stays NaN
                self.store.clear(index)
        for slot, (chunk, number, row) in zip(slot_ids, entering, strict=True):
            self.rows[slot], self.owners[slot] = row, (chunk, number)
            self.issued[slot], self.fed[slot] = 1, 0
        self._arrange()

    def _arrange(self) -> None:
        owners: list[tuple[Segment, int] | None] = []
        for owner in self.owners:
            segment = None if owner is None else owner[0].segment
            owners.append(None if owner is None or segment is None else (segment, owner[1]))
        self.store.arrange(owners)

    def _compact(self, free: list[int]) -> None:
        """Let free slots leave the batch."""
        kept = len(self.rows) - len(free)
        share = COMPACT_BELOW[self.device.type]
        if not kept or not free or kept > share * len(self.rows) or self.stepper.processors is not None:
            return
        assert self.slots is not None
        slot_ids = self.active
        index = torch.tensor(slot_ids, device=self.device)
        self.slots = self.slots.select(index)
        self.store.keep(index)
        self.rows = [self.rows[slot] for slot in slot_ids]
        self.owners = [self.owners[slot] for slot in slot_ids]
        self.issued = [self.issued[slot] for slot in slot_ids]
        self.fed = [self.fed[slot] for slot in slot_ids]
        self._arrange()

    # -- what the host sees
    def _begin_poll(self) -> Poll:
        """Ask which rows have ended and, where somebody wants them, for the ids since the last time."""
        slots = self.slots
        assert slots is not None
        state, window = slots.state, None
        report = torch.stack([state["finished"].long(), state["steps"], state["latent_count"].long()])
        if self.work.stops is not None or self.work.on_tokens is not None:
            width = max(self.issued[slot] - self.fed[slot] for slot in self.active)
            first = torch.tensor(self.fed)
            if self.device.type == "cuda":
                first = first.pin_memory().to(self.device, non_blocking=True)
            positions = first[:, None] + torch.arange(max(width, 1), device=self.device)
            window = slots.history["tokens"].gather(1, positions.clamp(max=self.limit))
        event = None
        if self.device.type == "cuda":
            report = _to_host(report)
            window = None if window is None else _to_host(window)
            event = torch.cuda.Event()
            event.record()
        poll = Poll(list(self.rows), list(self.fed), report, window, event)
        self.fed = list(self.issued)
        return poll

    def _finish_poll(self, poll: Poll) -> None:
        if poll.event is not None:
            poll.event.synchronize()
        ended, steps, latent_counts = poll.report.tolist()
        window = None if poll.window is None else poll.window.tolist()
        slot_of = {row: slot for slot, row in enumerate(self.rows) if row is not None}
        leaving: list[tuple[int, int, int, int, str | None]] = []  # row, slot, length, latents, reason
        for old, row in enumerate(poll.rows):
            if row is None or row not in slot_of:
                continue
            length, reason, done = steps[old], None, bool(ended[old])
            if window is not None:
                ids = window[old][: length - poll.fed[old]]
                cut = None if self.work.stops is None else self.work.stops.feed(row, ids)
                if cut is not None:
                    ids = ids[: cut - poll.fed[old]]
                    length, reason, done = cut, "stop", True
                if self.work.on_tokens is not None:
                    self.work.on_tokens(row, ids, done)
            if done:
                leaving.append((row, slot_of[row], length, latent_counts[old], reason))
        if leaving:
            self._leave(leaving)

    def _leave(self, leaving: list[tuple[int, int, int, int, str | None]]) -> None:
        rows, slot_ids, lengths, latent_counts, reasons = zip(*leaving, strict=True)
        assert self.slots is not None
        self.output.take(rows, slot_ids, self.slots, lengths, latent_counts, reasons)
        # A row cut at a stop string goes on until another takes its slot, if it is not told.
        index = torch.tensor(slot_ids)
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        self.slots.state["finished"].index_fill_(0, index, True)
        for slot in slot_ids:
            chunk = self.owners[slot][0]  # type: ignore[index]
            self.rows[slot] = self.owners[slot] = None
            chunk.unfinished -= 1
            if not chunk.unfinished:
                assert chunk.segment is not None
                self.store.release(chunk.segment)
                chunk.segment = chunk.hidden = None


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that arrives in its own time."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
