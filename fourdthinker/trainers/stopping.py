"""Signals that end a run: it saves a checkpoint after the current update, and resumes from it later."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers: before a node is taken away; Slurm's --signal
SAME = 5.0  # seconds in which several are one: Slurm and torchrun both pass a SIGTERM on


class StopOnSignal(TrainerCallback):
    """Saves and ends the run after the update in which any rank got a signal.

    A second signal, more than `SAME` seconds later, does what it would have done without this.
    """

    def __init__(self) -> None:
        self.stopped = False  # whether the run was ended
        self._asked: float | None = None  # when the first signal came, by `time.monotonic`

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the time of a block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner, before = os.getpid(), {number: signal.getsignal(number) for number in SIGNALS}

        def take(number: int, frame: Any) -> None:
            forked = os.getpid() != owner
            if not forked and self._asked is None:
                self._asked = time.monotonic()
                name = signal.Signals(number).name
                logger.warning("%s: the run ends with a checkpoint after this update", name)
            elif forked or time.monotonic() - (self._asked or 0.0) > SAME:
                for each, handler in before.items():
                    signal.signal(each, handler)
                os.kill(os.getpid(), number)

        for number in SIGNALS:
            signal.signal(number, take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after every update, on every rank."""
        asked = torch.tensor(int(self._asked is not None), device=args.device)
        if args.world_size > 1:  # a signal reaches the ranks at different times
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() and not control.should_training_stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True
