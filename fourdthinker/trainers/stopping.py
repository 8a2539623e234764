"""Signals that end a run: it saves a checkpoint after the current update, and resumes from it later."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers: before a node is taken away; Slurm's --signal


class StopOnSignal(TrainerCallback):
    """Saves and ends the run after the update in which any rank got a signal.

    A second signal does what it would have done without this.

    Args:
        every: updates that belong together (on one batch of rollouts); a checkpoint between them could not be
            resumed.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.stopped = False  # whether the run was ended
        self._asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the time of a block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner, before = os.getpid(), {number: signal.getsignal(number) for number in SIGNALS}

        def take(number: int, frame: Any) -> None:
            for each, handler in before.items():
                signal.signal(each, handler)
            if os.getpid() != owner:  # a worker of the loader
                os.kill(os.getpid(), number)
                return
            self._asked = True
            logger.warning(
                "%s: the run ends with a checkpoint after this update", signal.Signals(number).name
            )

        for number in SIGNALS:
            signal.signal(number, take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after every update, on every rank."""
        asked = torch.tensor(int(self._asked), device=args.device)
        if args.world_size > 1:  # a signal reaches the ranks at different times
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() and state.global_step % self.every == 0 and not control.should_training_stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True
