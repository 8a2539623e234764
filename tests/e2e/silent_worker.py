"""Started by torchrun: `key=value ...`, a DIFT run whose second process falls silent after the first step."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback

from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.settings_files import load_config


class Sleep(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1:
            time.sleep(600)


if __name__ == "__main__":
    train_dift(load_config(DiftConfig, None, sys.argv[1:]), callbacks=[Sleep()])
