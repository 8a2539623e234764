"""Evaluation on held-out records while a model trains: what keeps it apart from the training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fourdthinker.objectives import Metrics
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.settings_base import TrainConfig

# Settings that what an evaluation finds depends on, beside those that no run may change when it goes on.
_MEASURED_BY = (
    "frames",
    "instruction",
    "ce_loss_weight",
    "sim_loss_weight",
    "rewards",
    "reward_arguments",
    "reward_weights",
    "max_completion_length",
    "repetition_penalty",
    "presence_penalty",
    "stop_strings",
    "max_blocks",
)
_SAMPLED_BY = ("num_generations_eval", "temperature", "top_k", "top_p", "min_p")  # where it samples


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put the random states of Python, numpy and torch back as they were, whatever was drawn in the block.

    Args:
        device: of the model, whose own generator is kept too.
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


def held_out_batches(items: Items[Any], size: int, rank: int, world_size: int) -> Iterator[list[Any]]:
    """Batches of one rank, as many on every rank; together the ranks have every item once.

    Args:
        items: the held-out records.
        size: items of a batch at most.
        rank: of this process.
        world_size: number of processes.

    Yields:
        (index, item) pairs; none where the others have the last ones.
    """
    number = len(items)
    for first in range(0, number, size * world_size):
        start = first + rank * size
        yield [items[index] for index in range(start, min(start + size, number))]


def without_weight(metrics: Metrics) -> Metrics:
    """The same names, of which nothing counts."""
    return {
        name: (torch.zeros_like(total), torch.zeros_like(weight)) for name, (total, weight) in metrics.items()
    }


def measure_of(config: TrainConfig, held_out: Items[Any]) -> str:
    """A hash of what evaluations depend on: figures of two that differ in it cannot be compared.

    Args:
        config: the settings.
        held_out: the records.
    """
    values = config.model_dump(mode="json")
    sampled = values.get("num_generations_eval") is not None
    names = (*_MEASURED_BY, *_SAMPLED_BY) if sampled else _MEASURED_BY
    told = [held_out.fingerprint(), {name: values[name] for name in names if name in values}]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
