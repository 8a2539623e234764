"""Gradients of many forwards, added up by a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import Sample, collate


def added(checkpoint: Checkpoint, items: Sequence[Sample]) -> list[dict[str, torch.Tensor]]:
    """The gradients of an update with a forward for each sample: the exact sums, and those of bfloat16."""
    backbone = checkpoint.backbone
    backbone.freeze_vision()
    sums: list[dict[str, Any]] = [{}, {}]
    tokens, latents = sum(map(supervised, items)), sum(item.latent_index.numel() for item in items)
    for item in items:
        batch = collate([item], backbone.vision.pad_id)
        loss, *_ = backbone(batch, lambda *a: dift_objective(*a, num_tokens=tokens, num_latents=latents))
        loss.backward()
        for name, parameter in backbone.named_parameters():
            if parameter.grad is not None:
                for total, dtype in zip(sums, (torch.float64, torch.bfloat16), strict=True):
                    total[name] = total.get(name, 0.0) + parameter.grad.to(dtype)
        backbone.zero_grad()
    return sums


def supervised(item: Sample) -> int:
    return int((item.labels[1:] != -100).sum())


def difference(ours: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([each[name].double().flatten() for name in sorted(right)]) for each in (ours, right))
    return float((a - b).norm() / b.norm())
