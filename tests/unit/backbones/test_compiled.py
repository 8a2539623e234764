"""Compiled decoder layers: the same values, one compilation for all layers and lengths, training alone.

The layers are captured and run as they were captured. `FOURDTHINKER_INDUCTOR=1` has them compiled to C++ and
checkpointed too, which takes minutes.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.compiled import compile_layers
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import Batch, collate
from tests.e2e.training import relative_difference, samples
from tests.tiny import tiny_checkpoint

CASES = [("eager", False)]
if "FOURDTHINKER_INDUCTOR" in os.environ:
    CASES += [("eager", True), ("inductor", False), ("inductor", True)]


def gradients(backbone: Backbone, batch: Batch) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    loss, _ = backbone.train()(batch, partial(dift_objective, num_tokens=9, num_latents=4))
    loss.backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("backend", "checkpointed"), CASES)
def test_layers_are_compiled_once(backend: str, checkpointed: bool) -> None:
    torch._dynamo.reset()
    checkpoint, counter = tiny_checkpoint(layers=2), CompileCounterWithBackend(backend)
    plain, backbone = tiny_checkpoint(layers=2).backbone, checkpoint.backbone
    items, pad_id = samples(checkpoint, 6), backbone.vision.pad_id
    for model in (plain, backbone):
        model.freeze_vision()
        if checkpointed:
            model.gradient_checkpointing_enable()
    compile_layers(backbone, counter)
    counts = []
    for chosen, packed in (([0, 1], False), ([3, 4], False), ([2, 4, 5], False), ([0, 3], True)):
        batch = collate([items[i] for i in chosen], pad_id, packed=packed)
        got, wanted = gradients(backbone, batch), gradients(plain, batch)
        assert got.keys() == wanted.keys()
        difference = relative_difference(got, wanted, [name for name in wanted if wanted[name].any()])
        assert max(difference.values()) <= 1e-5, difference
        counts.append(counter.frame_count)
    assert counts[0] >= 1
    assert len(set(counts)) == 1, "another length, another number of rows, packed"
    with torch.no_grad():
        backbone.eval()(collate([items[5]], pad_id), lambda _, hidden, batch: hidden)
    assert counter.frame_count == counts[0]
