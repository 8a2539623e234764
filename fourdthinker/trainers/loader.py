"""The loader of a run: signals pass its workers by, epochs are apart, errors are those of the worker."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset

from fourdthinker.errors import FourdError
from fourdthinker.trainers.stopping import SIGNALS


class Loader(DataLoader[Any]):
    """A `DataLoader` whose every epoch is an iterator of its own.

    Persistent workers have one iterator for all epochs. Whoever reads ahead could not tell them apart, and
    asking it for more than an epoch has could take from the next.

    Args:
        dataset: what is loaded.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=functools.partial(outlive_signals, exit_pipe()), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return islice(super().__iter__(), len(self))


def outlive_signals(exits: int, worker: int) -> None:
    """Let the signals that end a run pass a worker of its loader by: torchrun and Slurm send them to it too.

    The run needs its workers until it has saved, and would end with an error if one were killed.

    Args:
        exits: of `exit_pipe`. Python ends its workers by SIGTERM when it exits, and waits for them.
        worker: its number, of `DataLoader`.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end, args=(exits,), name="exit", daemon=True).start()


def _end(exits: int) -> None:
    select.select([exits], [], [])  # nobody reads it, so that every worker sees it
    os._exit(0)


@functools.cache
def exit_pipe() -> int:
    """The end to wait on of a pipe in which there is something once this process exits, for workers."""
    exits, told = os.pipe()
    atexit.register(os.write, told, b".")  # before multiprocessing's own hook, which is older
    return exits


@contextlib.contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what a worker raised as it was there; torch puts the worker's traceback before its text.

    Raises:
        FourdError: of the same type, caused by the one with the traceback.
        OSError: likewise.
    """
    try:
        yield
    except (FourdError, OSError) as error:
        kind = type(error)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        _, found, text = str(error).rpartition(f"\n{name}: ")
        if not found:
            raise
        raise kind(text.strip()) from error
