"""What a trainer is made of, what it runs, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import Backbone, Objective
from fourdthinker.samples import Batch
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.stopping import StopOnSignal
from fourdthinker.trainers.watch import Watch


class NonFiniteLossError(RuntimeError):
    """More steps than `max_bad_steps` had a loss or a gradient that is not a finite number."""


class RolloutWorkerError(RuntimeError):
    """Several actors of `rollout_workers` died over the same rollouts, or one ran out of memory or failed."""


class NoRewardsError(RuntimeError):
    """Several updates in a row had no rollout with a reward, for plain reward functions failed."""


class LoaderWorkerError(RuntimeError):
    """A process that reads and encodes media was killed."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; where the host's memory ran out, lower dataloader_num_workers or "
            "dataloader_prefetch_factor; resume_from_checkpoint=auto goes on from the last checkpoint"
        )


class MemoryLimitError(RuntimeError):
    """Memory does not suffice, and smaller forwards would not help or cannot be had."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"out of memory: {reason}; lower max_tokens_per_forward or the frames of a clip, set "
            "gradient_checkpointing=true or lora, or divide the model over more GPUs (fsdp=true, deepspeed); "
            "--dry-run says what takes how much"
        )


@dataclass(frozen=True)
class Forward:
    """One forward and backward pass.

    Attributes:
        batch: tensors by name, on any device.
        objective: gives (this batch's share of the loss of the whole update, metrics, ...) of the model's
            hidden states. It knows the global normalisers already.
        items: [n] indices of the items in the batch, for messages.
        number: which forward of the update this is.
    """

    batch: Batch
    objective: Objective
    items: Tensor
    number: int = 0


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of.

    Attributes:
        args: of Trainer.
        checkpoint: what is trained, in place.
        items: the data set.
        reference: the frozen model that training started from, if the recipe wants one.
        watch: what the ranks tell each other of their phases.
        held_out: the records to evaluate on while training; None: there is no evaluation.
        start: a digest of the weights that the run began from, if a reference may be needed.
        stopping: what signals do; the caller of the trainer listens.
    """

    args: TrainingArguments
    checkpoint: Checkpoint
    items: Items[Any]
    reference: Backbone | None
    watch: Watch = field(default_factory=Watch)
    held_out: Items[Any] | None = None
    start: str | None = None
    stopping: StopOnSignal = field(default_factory=StopOnSignal)
