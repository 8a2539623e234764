"""The plan of a pass under FSDP against what one of four processes holds, whose messages go nowhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench._measure import peak_allocated
from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.objectives import dift_objective
from fourdthinker.settings import make_config
from fourdthinker.trainers.plan import make_plan
from fourdthinker.trainers.settings import DiftConfig
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_plan import ANSWER, CACHED, PROMPT, batch_of

PROCESSES = 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, str]:
    made, folder = tiny_checkpoint(hidden=128, layers=6), tmp_path_factory.mktemp("model")
    save_checkpoint(folder, made)  # which the first of several processes alone would write
    return made, str(folder)


@pytest.fixture
def first_of_four(saved: tuple[Checkpoint, str]) -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("first_of_four")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_under_fsdp_holds_what_the_plan_says(
    saved: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch, bf16: bool, checkpointing: bool
) -> None:
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    values: dict[str, Any] = {"model": saved[1], "use_cpu": True, "max_prompt_tokens": PROMPT, "fsdp": True}
    values |= {"frames": {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}, "override_policy": True}
    values |= CACHED | {"bf16": bf16, "gradient_checkpointing": checkpointing}
    plan = make_plan(make_config(DiftConfig, values), world_size=PROCESSES, on_cpu=True)
    backbone = copy.deepcopy(saved[0].backbone)
    options: dict[str, Any] = {"mesh": init_device_mesh("cpu", (PROCESSES,))}
    if bf16:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    batch = batch_of(backbone, 1, 1, False)
    if bf16:
        batch["vision_features"] = batch["vision_features"].bfloat16()
    backbone.freeze_vision()
    backbone.train()
    if checkpointing:
        backbone.gradient_checkpointing_enable()
    else:
        recompute_cheap_layers(backbone)
    for layer in backbone.hf.model.language_model.layers:
        fully_shard(layer, **options)
    fully_shard(backbone, **options)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, *_ = backbone(batch, lambda *a: dift_objective(*a, num_tokens=100.0, num_latents=20.0))
        loss.backward()

    step()  # the first one sets up what stays
    backbone.zero_grad(set_to_none=True)
    static = sum(plan.parts[name] for name in ("weights", "optimizer"))
    planned = plan.phases["training"] - static - batch["vision_features"].nbytes
    assert planned == pytest.approx(peak_allocated(step), rel=0.15)


def test_slices_stay_of_gradients_and_of_the_rest_all_at_the_end(saved: tuple[Checkpoint, str]) -> None:
    """With several forwards an update all slices are there all the time."""
    values: dict[str, Any] = {"model": saved[1], "max_prompt_tokens": PROMPT, "fsdp": True}
    one, several = (
        make_plan(make_config(DiftConfig, values | CACHED | {"gradient_accumulation_steps": n}), world_size=4)
        for n in (1, 2)
    )
    more = several.phases["training"] - one.phases["training"]
    assert 0 < more <= several.parts["gradients"] == one.parts["gradients"]
