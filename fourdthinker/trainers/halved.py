"""Work without gradient where memory runs out: done again on half as much, down to a single item."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from fourdthinker.trainers.update import MemoryLimitError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Halved:
    """Does work on many items at once, and on fewer from then on where memory does not suffice.

    Args:
        what: the work, for messages.
        alone: whether a process can do it again by itself. Not where weights are divided: other processes
            may be in the middle of a collective.

    Attributes:
        times: how often memory ran out.
    """

    def __init__(self, what: str, *, alone: bool = True) -> None:
        self.what, self.alone, self.times = what, alone, 0
        self._most: int | None = None  # items at once; None: all

    def __call__(self, work: Callable[[Sequence[T]], R], items: Sequence[T]) -> list[R]:
        """What the work gives on consecutive parts of the items, in order.

        Args:
            work: on some items; it can be called again after it has run out of memory.
            items: of none it gives nothing.

        Raises:
            MemoryLimitError: memory does not suffice for one item, or for all where no process can do
                anything again by itself.
        """
        done: list[R] = []
        first = 0
        while first < len(items):
            part = items[first : first + (self._most or len(items))]
            try:
                done.append(work(part))
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            else:
                first += len(part)
                continue
            # Outside of the handler, which would keep what the failed work has allocated.
            self._halve(len(part), reason)
        return done

    def _halve(self, size: int, reason: str) -> None:
        if size == 1 or not self.alone:
            raise MemoryLimitError(f"{self.what}, {size} at once: {reason}")
        self._most = size // 2
        self.times += 1
        logger.warning("%s: out of memory (%s); again by %d and not %d", self.what, reason, self._most, size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
