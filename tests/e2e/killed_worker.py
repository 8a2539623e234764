"""Started by torchrun: `dift|grpo STEP key=value ...`, a run whose process is killed after step STEP."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback

from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.settings_files import load_config


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trainer, step, *arguments = sys.argv[1:]
    if trainer == "dift":
        train_dift(load_config(DiftConfig, None, arguments), callbacks=[Kill(int(step))])
    else:
        train_grpo(load_config(GrpoConfig, None, arguments), callbacks=[Kill(int(step))])
