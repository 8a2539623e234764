"""Which samples each rank sees at each step: a deterministic, rank-aware batch sampler."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset, Sampler

from fourdthinker.errors import ConfigError, RecordError, VideoError
from fourdthinker.files import append_lines
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Sample
from fourdthinker.trainers.left_out import LeftOut

logger = logging.getLogger(__name__)

T = TypeVar("T")
REPEAT = -1  # an index that stands for "use the last batch of rollouts again"


class ShardedBatches(Sampler[list[int]]):
    """Batches of indices for one rank; all ranks shuffle alike and take disjoint parts of every global batch.

    The order depends on (seed, epoch) only, without `shuffle` on nothing. Two ranks with batch b see
    together, step by step, what one rank with batch 2b sees, in the same order within the step.

    Args:
        size: number of items of the data set.
        batch_size: items a rank gets at a time.
        shuffle: take the items of each epoch in another order.
        accumulation: batches of one update. Only with `whole_updates`.
        together: updates whose items come together, in the batches of the first one, which are so many times
            as large: the batches of the first update, one after the other, then those of the second. Only
            with `whole_updates`.
        repeats: how often such updates are made in a row; only the first one of all holds indices, the
            batches of the others are `[REPEAT]`. Only with `whole_updates`.
        whole_updates: leave out the items at the end of an epoch that do not fill `together` updates (or,
            when the data set is smaller, start again from its beginning). Otherwise the remainder is split
            over the ranks, filled up with items from the beginning so that no rank stands empty.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        accumulation: int = 1,
        together: int = 1,
        repeats: int = 1,
        whole_updates: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError("the data set is empty")
        self.size, self.batch_size = size, batch_size
        self.rank, self.world_size, self.seed, self.shuffle = rank, world_size, seed, shuffle
        self.accumulation, self.together, self.repeats = accumulation, together, repeats
        self.whole_updates = whole_updates
        self.epoch = 0

    @property
    def batch_sampler(self) -> ShardedBatches:
        """Itself: Trainer calls `set_epoch` on the `batch_sampler` of the loader's batch sampler."""
        return self

    @property
    def period(self) -> int:
        """Batches of all updates on the same items; after so many others come."""
        return self.accumulation * self.together * self.repeats

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls it before each epoch, which is shuffled in an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        batch = self.batch_size * self.world_size
        if self.whole_updates:
            return max(1, self.size // (batch * self.accumulation * self.together)) * self.period
        return -(-self.size // batch)

    def __iter__(self) -> Iterator[list[int]]:
        # The multiplier keeps (seed, epoch) and (seed + 1, epoch - 1) apart.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        batch = self.batch_size * self.world_size
        if self.whole_updates:
            given = batch * self.accumulation * self.together
            if self.size < given:
                order = order.repeat(-(-given // self.size))
            order = order[: len(order) // given * given]
        elif (rest := self.size % batch) and rest < self.world_size:
            order = torch.cat([order, order.repeat(self.world_size)[: self.world_size - rest]])
        batches = [part.tensor_split(self.world_size)[self.rank].tolist() for part in order.split(batch)]
        if not self.whole_updates:
            yield from batches
            return
        joined = [
            [index for part in batches[first : first + self.together] for index in part]
            for first in range(0, len(batches), self.together)
        ]
        for start in range(0, len(joined), self.accumulation):
            yield from joined[start : start + self.accumulation]
            for _ in range(self.period - self.accumulation):
                yield [REPEAT]


class Items(Dataset[tuple[int, T]]):
    """(index, item) pairs: of items in memory, or of records encoded on access.

    Args:
        items: in memory, or records.
        encode: makes an item of a record; None: they are items already.
        rejected: a file that records whose media can no longer be read are written to, while the next one
            takes their part; None: such a record is an error.
        left_out: lines of the files that are none of the records.
    """

    def __init__(
        self,
        items: Sequence[Any],
        encode: Callable[[Any], T] | None = None,
        rejected: Path | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.items, self.encode, self.rejected, self.left_out = items, encode, rejected, left_out
        self._pixels_alone = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, T | None]:  # type: ignore[override]
        if index == REPEAT:
            return REPEAT, None
        if self.encode is None:
            item = self.items[index]
            if self._pixels_alone:
                self._check_pixels(index, item)
            return index, item
        for offset in range(len(self.items)):
            mine = (index + offset) % len(self.items)
            try:
                return mine, self.encode(self.items[mine])
            except (VideoError, RecordError) as error:
                if not isinstance(self.items[mine], Record):
                    raise  # work of another kind, whose error says all
                where = f"{self.items[mine].where}: "
                reason = f"{self.describe(mine)}: {str(error).removeprefix(where)}"
                if self.rejected is None:
                    raise RecordError(
                        f"{reason}; it could be used when training began. Mend the file and go on with "
                        "resume_from_checkpoint=auto, or set on_bad_record=skip"
                    ) from error
                logger.warning("%s; the next record takes its part", reason)
                append_lines(self.rejected, [{"where": self.items[mine].where, "reason": reason}])
        raise RecordError("no record is left whose media can be read; is the folder still mounted?")

    def require_pixels(self) -> None:
        """From now on refuse items whose pictures are features; those of a list are all looked at now.

        For a tower that is trained, which no gradient reaches through them.

        Raises:
            ConfigError: now, or once such an item is taken; names it.
        """
        self._pixels_alone = True
        if self.encode is None and isinstance(self.items, list):  # others may be made on access
            for index, item in enumerate(self.items):
                self._check_pixels(index, item)

    def _check_pixels(self, index: int, item: Any) -> None:
        if item.vision is not None and item.vision.features is not None:
            raise ConfigError(
                f"freeze_vision is false, and {self.describe(index)} holds vision.features, through which no "
                "gradient reaches the tower; give it vision.patches alone, or set freeze_vision=true"
            )

    def describe(self, index: int) -> str:
        """Name of an item for messages: where its record stands, or its place in the data set."""
        item = self.items[index]
        record: Record | None = item.record if isinstance(item, (Prompt, Sample)) else item
        return f"item {index}" if record is None else f"record {record.id!r} ({record.where})"

    def fingerprint(self) -> str:
        """A hash of what the items are and of their order. Media are known by their paths alone."""
        digest = hashlib.sha256()
        for item in self.items:
            if isinstance(item, (Prompt, Sample)):
                digest.update(item.input_ids.cpu().numpy().tobytes())
            else:  # a record, wherever its line stands
                digest.update(repr(dataclasses.replace(item, where="")).encode())
            digest.update(b";")
        return digest.hexdigest()[:24]


def same(items: list[Any]) -> list[Any]:
    """A collator that changes nothing."""
    return items
