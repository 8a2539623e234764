"""Signals that end a run: it saves a checkpoint after the current update, and resumes from it later.

Before training begins there is nothing to save, and the run ends at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers: before a node is taken away; Slurm's --signal
SAME = 5.0  # seconds in which several are one: Slurm and torchrun both pass a SIGTERM on

PATIENCE = 10.0  # seconds after a signal in which ranks that wait for each other may still meet


class EndBeforeTraining(SystemExit):
    """A signal came before training began: this process ends with status 0, unless somebody catches it."""

    def __init__(self) -> None:
        super().__init__(0)


class StopOnSignal(TrainerCallback):
    """Saves and ends the run after the update in which any rank got a signal.

    A second signal, more than `SAME` seconds later, does what it would have done without this.
    """

    def __init__(self) -> None:
        self.stopped = False  # whether the run was ended
        self._asked: float | None = None  # when the first signal came, by `time.monotonic`
        self._training = False
        self._interruptible = False
        self._take: Callable[[int, Any], None] | None = None  # the handler, while this listens

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the time of a block; only the main thread can.

        A block that `EndBeforeTraining` leaves has them taken on: the same signal may come twice.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner, before = os.getpid(), {number: signal.getsignal(number) for number in SIGNALS}

        def take(number: int, frame: Any) -> None:
            forked = os.getpid() != owner
            if not forked and self._asked is None:
                self._asked = time.monotonic()
                when = "with a checkpoint after this update" if self._training else "before its first update"
                logger.warning("%s: the run ends %s", signal.Signals(number).name, when)
                if self._interruptible:
                    raise EndBeforeTraining
            elif forked or time.monotonic() - (self._asked or 0.0) > SAME:
                for each, handler in before.items():
                    signal.signal(each, handler)
                os.kill(os.getpid(), number)

        self._take = take
        self._take_signals()
        try:
            yield
        except EndBeforeTraining:
            raise
        except BaseException:
            _restore(before)
            raise
        finally:
            self._take = None
        _restore(before)

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Let ranks wait for each other in a block, from which no handler calls the main thread back.

        Once they have met, a rank with a signal ends together with the others. Where they have not met within
        `PATIENCE` seconds after it, a thread ends this process with status 0: there is nothing to save.
        """
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if alone or self._take is None:  # the signals are not taken
            yield
            return
        heard, told = os.pipe()
        os.set_blocking(told, False)
        met = threading.Event()
        listener = threading.Thread(target=self._end_unless, args=(met, heard), name="signals", daemon=True)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        if self._asked is not None:  # by a signal that came before
            os.write(told, bytes([SIGNALS[0]]))
        listener.start()
        try:
            yield
        finally:
            met.set()
            signal.set_wakeup_fd(before)
            os.close(told)
            listener.join()
            os.close(heard)

    def _end_unless(self, met: threading.Event, heard: int) -> None:
        """End this process where ranks have not met within `PATIENCE` seconds after a signal.

        Args:
            met: is set once they have.
            heard: a file descriptor from which the number of every signal can be read, up to the end of the
                wait.
        """
        number = 0
        while number not in SIGNALS:
            read = os.read(heard, 1)
            if not read:
                return
            number = read[0]
        if met.wait(PATIENCE):
            return
        if self._asked is None:  # otherwise the handler has said so
            name = signal.Signals(number).name
            logger.warning(
                "%s: the run ends before its first update, while it waits for its other processes", name
            )
        os._exit(0)

    def _take_signals(self) -> None:
        if self._take is not None and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._take)

    def interrupt(self) -> None:
        """From now on a signal ends this process at once, and one that came before does so now.

        For the time in which other ranks learn of it by a `Watch`, until training begins.

        Raises:
            EndBeforeTraining: now, or later wherever the main thread is.
        """
        self._interruptible = True
        if self._asked is not None:
            raise EndBeforeTraining

    def begin(self, args: TrainingArguments) -> None:
        """From now on a signal waits for the end of an update; collective.

        The signals are taken once more: `ray.init` has a handler of its own, which ends the process.

        Args:
            args: of Trainer, for the device and the number of processes.

        Raises:
            EndBeforeTraining: on every rank, where one has a signal that did not end it.
        """
        self._training, self._interruptible = True, False
        self._take_signals()
        if self._asked_any(args):
            raise EndBeforeTraining

    def _asked_any(self, args: TrainingArguments) -> bool:
        """Whether any rank got a signal: it reaches them at different times."""
        asked = torch.tensor(int(self._asked is not None), device=args.device)
        if args.world_size > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after every update, on every rank."""
        if self._asked_any(args) and not control.should_training_stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
