"""Metrics of a forward are made before the ranks agree on it, and count only where they do."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.passes import PassTrainer


class Metrics(dict[str, Any]):
    """For whose sums there is no memory."""

    def items(self) -> Any:
        raise torch.OutOfMemoryError("no room for sums")


def one_of_two(agreed: list[int]) -> Any:
    """As much of one process of two as a pass needs; `agreed` gets what it tells the other."""
    trainer: Any = object.__new__(PassTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = trainer._skip_update = False
    trainer.state, trainer.watch = SimpleNamespace(global_step=0), SimpleNamespace(enter=lambda *_: None)
    trainer.compute_loss_context_manager = contextlib.nullcontext
    trainer.accelerator = SimpleNamespace(backward=lambda _: agreed.append(-1))
    trainer.metric_sums, trainer._failure, trainer._bad, trainer._attempt = MetricSums(), None, [], 0
    return trainer


@pytest.mark.parametrize(("metrics", "loss"), [("none", 1.0), ("some", math.nan), ("some", 1.0)])
def test_metrics_of_a_forward(monkeypatch: pytest.MonkeyPatch, metrics: str, loss: float) -> None:
    said: list[int] = []
    monkeypatch.setattr(dist, "all_reduce", lambda outcome, **_: said.append(int(outcome)))
    trainer, one = one_of_two(said), torch.ones(())
    made = Metrics() if metrics == "none" else {"ce": (one, one)}
    forward = SimpleNamespace(batch={}, number=0, items=torch.tensor([3]), objective=None)

    def step() -> None:
        trainer._forward_backward(lambda *_: (torch.tensor(loss), made), forward, alone=True)

    if metrics == "none":  # the others hear of it in the agreement, where they wait
        with pytest.raises(torch.OutOfMemoryError, match="no room for sums"):
            step()
        assert said == [0]
        return
    step()
    sound = math.isfinite(loss)
    assert said == ([2, -1] if sound else [1])
    assert trainer.metric_sums.since_mark("ce").tolist() == [sound, sound]
