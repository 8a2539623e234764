"""Many readings at once, in order and in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Input = TypeVar("Input")
Result = TypeVar("Result")
_local = threading.local()


def threads() -> int:
    """Threads that one reading may use: torch's number, shared among the workers of a pool."""
    return getattr(_local, "threads", None) or torch.get_num_threads()


def in_order(
    call: Callable[[Input], Result], items: Iterable[Input], workers: int, ahead: int | None = None
) -> Iterator[Result]:
    """Call a function for each item on several threads, and give the results in the items' order.

    Args:
        call: the function. What it raises, the iterator raises when the item's turn has come.
        items: read as it goes; may be endless.
        workers: threads.
        ahead: results that may wait for the caller, however slow it is; None: twice the workers.

    Returns:
        An iterator over the results.
    """
    share = max(1, torch.get_num_threads() // workers)
    rest = iter(items)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=lambda: setattr(_local, "threads", share)) as pool:
        try:
            pending.extend(pool.submit(call, item) for item in islice(rest, ahead or 2 * workers))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(call, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
