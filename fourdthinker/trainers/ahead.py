"""The next batches, read and encoded by a thread while the model trains."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fourdthinker.trainers.loader import errors_of_workers

T = TypeVar("T")


class Ahead(Generic[T]):
    """Takes batches from iterators, of which the next ones are always being made.

    Decoding and resizing release the interpreter lock, so that one thread is enough to hide them.

    Args:
        depth: how many batches are made before they are asked for.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._source: Iterator[T] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._coming: deque[Future[T | None]] = deque()

    def take(self, source: Iterator[T], count: int) -> list[T]:
        """The next `count` batches of an iterator, fewer at its end; what it raises is raised here.

        Args:
            source: the same one until it has ended, or is left for another. Nobody else may read it.
            count: how many.
        """
        if source is not self._source:
            self.close()
            self._source, self._pool = source, ThreadPoolExecutor(1, thread_name_prefix="batches")
            self._coming = deque(self._pool.submit(next, source, None) for _ in range(self.depth))
        taken = []
        for _ in range(count):
            with errors_of_workers():
                batch = self._coming.popleft().result()
            self._coming.append(self._pool.submit(next, source, None))  # type: ignore[union-attr]
            if batch is not None:
                taken.append(batch)
        return taken

    def peek(self, first: int, count: int) -> list[T]:
        """Batches that `take` will give later, once they are made; fewer at the end of the iterator.

        Args:
            first: how many come before them.
            count: how many, within `depth`.
        """
        with errors_of_workers():
            found = [future.result() for future in itertools.islice(self._coming, first, first + count)]
        return [batch for batch in found if batch is not None]

    def close(self) -> None:
        """End the thread, once the batch that it is making is made."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._source = None
