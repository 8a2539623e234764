"""The plan of a run against what a step of it holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench._measure import peak_allocated
from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import CONVERTED_IDS
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.samples import Batch
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import main
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.master_weights import MasterWeights
from fourdthinker.trainers.model import reference_model
from fourdthinker.trainers.plan import make_plan
from fourdthinker.trainers.plan_time import Device, Work
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.tiny import tiny_checkpoint

PROMPT, VISION, ANSWER = 300, 100, 64
CACHED = {"cache_dir": "none", "cache_video": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, str]:
    made, folder = tiny_checkpoint(hidden=64, layers=3), tmp_path_factory.mktemp("model")
    save_checkpoint(folder, made)
    return made, str(folder)


def test_live_bytes_are_those_of_the_allocator() -> None:
    def work() -> None:
        kept = [torch.ones(1000) for _ in range(3)]
        (kept[0] + kept[1]).sum()
        del kept[1]
        torch.ones(500)

    with LiveBytes() as live:
        work()
    assert live.peak == pytest.approx(4 * 4 * 1000, abs=64)
    assert live.held == 0


def batch_of(backbone: Backbone, rows: int, prompts: int, share: bool) -> dict[str, Any]:
    length = PROMPT + (rows if share else 1) * ANSWER
    position = torch.arange(length)
    part = torch.where(position < PROMPT, 0, 1 + (position - PROMPT) // ANSWER)
    answers = [b * length + p for b in range(prompts) for p in range(PROMPT, length)]
    vision = [b * length + p for b in range(prompts) for p in range(VISION)]
    batch: dict[str, Any] = {
        "input_ids": torch.randint(0, 300, (prompts, length)),
        "position_ids": position.expand(3, prompts, length),
        "vision_index": torch.tensor(vision),
        "vision_features": torch.randn(len(vision), backbone.hidden_size * (1 + backbone.deepstack_levels)),
    }
    if not share:
        target = torch.full((prompts, length), -100)
        target.view(-1)[answers] = 5
        latents = torch.tensor(answers).view(prompts, -1)[:, 8:16].flatten()
        more = {"latent_index": latents, "latents": torch.randn(len(latents), backbone.hidden_size)}
        return batch | more | {"target": target, "rows": torch.tensor(answers)}
    count = len(answers)
    batch |= {"segments": part.expand(prompts, length).int(), "source_index": torch.tensor(answers) - 1}
    batch |= {"chosen_ids": torch.randint(0, 300, (count,)), "completion_index": torch.arange(count)}
    numbers = torch.randn(prompts * rows, ANSWER)
    return batch | {
        "policy_mask": numbers.isfinite(),
        "rollout_logprobs": numbers,
        "advantages": numbers[:, 0],
    }


@pytest.mark.parametrize(
    ("trainer", "checkpointing", "bf16"),
    [
        ("dift", False, False),
        ("bottleneck", False, False),
        ("bottleneck", True, True),
        ("dift", True, False),
        ("dift", False, True),
        ("grpo", False, False),
        ("grpo", False, True),
        ("grpo", True, False),
        ("grpo", True, True),
    ],
)
def test_the_plan_of_a_step_is_what_it_holds(
    checkpoint: tuple[Checkpoint, str],
    monkeypatch: pytest.MonkeyPatch,
    trainer: str,
    checkpointing: bool,
    bf16: bool,
) -> None:
    """Forward and backward of a tiny model, as torch's allocator counts them, within 15 %."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    loaded, folder = checkpoint
    backbone = copy.deepcopy(loaded.backbone)
    values: dict[str, Any] = {"model": folder, "use_cpu": True, "per_device_train_batch_size": 2}
    values |= {"max_prompt_tokens": PROMPT, "gradient_checkpointing": checkpointing, "bf16": bf16}
    frames = {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}
    values |= {"frames": frames, "override_policy": True}
    if trainer != "grpo":
        barred = trainer == "bottleneck"
        config = make_config(DiftConfig, values | CACHED | {"latent_bottleneck": barred})
        plan = make_plan(config, on_cpu=True)
        batch = batch_of(backbone, 1, 2, False)
        if barred:
            kinds = (torch.arange(PROMPT + ANSWER) < VISION).int().expand(2, -1)
            batch |= {"segments": torch.ones_like(kinds), "bottleneck": kinds}
        objective: Any = lambda *a: dift_objective(*a, num_tokens=100.0, num_latents=20.0)  # noqa: E731
    else:
        more = {"num_generations": 4, "max_completion_length": ANSWER, "loss": {"beta": 0.0}}
        sampled = make_config(GrpoConfig, values | more)
        plan = make_plan(sampled, on_cpu=True)
        batch = batch_of(backbone, 4, 2, True)
        objective = lambda *a: grpo_objective(*a, options=sampled.loss, num_items=8.0)  # noqa: E731
    assert (plan.shape.vision, plan.shape.positions) == (VISION, batch["input_ids"].numel())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, *_ = backbone(batch, objective)
        loss.backward()

    backbone.freeze_vision()
    backbone.train()
    if checkpointing:
        backbone.gradient_checkpointing_enable()
    else:
        recompute_cheap_layers(backbone)
    backbone.zero_grad(set_to_none=True)
    measured = peak_allocated(step)
    # On top of weights, optimizer and the batch, which are there before.
    static = sum(plan.parts[name] for name in ("weights", "master weights", "optimizer", "reference"))
    given = batch["vision_features"].nbytes
    assert plan.phases["training"] - static - given == pytest.approx(measured, rel=0.15)
    parameters = list(backbone.parameters())
    assert plan.parameters == sum(p.numel() for p in parameters)
    assert plan.trained == sum(p.numel() for p in parameters if p.requires_grad)


def dift_passes(backbone: Backbone, batch: Batch) -> Callable[[], None]:
    """Forward and backward pass of a DIFT step with a frozen tower, as a run makes them ready."""
    backbone.freeze_vision()
    backbone.train()
    recompute_cheap_layers(backbone)

    def passes() -> None:
        loss, *_ = backbone(batch, lambda *a: dift_objective(*a, num_tokens=100.0, num_latents=20.0))
        loss.backward()

    return passes


@pytest.mark.parametrize(("dtype", "accumulation"), [("float32", 2), ("bfloat16", 2), ("bfloat16", 1)])
def test_gradients_of_former_forwards_are_counted(
    checkpoint: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch, dtype: str, accumulation: int
) -> None:
    """The second forward of an update, with all gradients of the first; in bfloat16 as float32 sums."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    backbone = copy.deepcopy(checkpoint[0].backbone).to(getattr(torch, dtype))
    values: dict[str, Any] = {"model": checkpoint[1], "use_cpu": True, "max_prompt_tokens": PROMPT}
    values |= {"frames": {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}, "override_policy": True}
    values |= CACHED | {"dtype": dtype, "gradient_accumulation_steps": accumulation}
    plan = make_plan(make_config(DiftConfig, values), on_cpu=True)
    batch = batch_of(backbone, 1, 1, False)
    passes = dift_passes(backbone, batch)
    masters = MasterWeights(backbone)

    def step() -> None:
        with masters.sums() if accumulation > 1 else nullcontext():
            passes()

    before = 0
    if accumulation > 1:
        step()
        before = sum(
            p.grad.nbytes for p in (*backbone.parameters(), *masters.wide.values()) if p.grad is not None
        )
        assert before == plan.parts["gradients"] + plan.parts["gradient sums"]
    static = sum(plan.parts[name] for name in ("weights", "master weights", "optimizer", "reference"))
    given = batch["vision_features"].nbytes // (2 if dtype == "bfloat16" else 1)
    planned = plan.phases["training"] - static - given
    assert planned == pytest.approx(before + peak_allocated(step), rel=0.15)


def test_shorter_records_fill_a_budget_up(
    checkpoint: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of full length leave room in the budget, and four shorter ones none."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    values: dict[str, Any] = {"model": checkpoint[1], "use_cpu": True, "max_prompt_tokens": PROMPT}
    values |= {"frames": {"fps": 1.0, "max_frames": 8, "max_pixels": 25 * 28 * 28}, "override_policy": True}
    values |= CACHED | {"per_device_train_batch_size": 8, "max_tokens_per_forward": 1000}
    plan = make_plan(make_config(DiftConfig, values), on_cpu=True)
    assert plan.shape.positions == 2 * (PROMPT + ANSWER)
    monkeypatch.setattr("tests.unit.trainers.test_plan.PROMPT", 250 - ANSWER)
    backbone = copy.deepcopy(checkpoint[0].backbone)
    batch = batch_of(backbone, 1, 4, False)
    step = dift_passes(backbone, batch)
    step()  # of which the gradients are there
    whole = sum(plan.parts[name] for name in ("weights", "master weights", "optimizer", "gradients"))
    measured = peak_allocated(step) + batch["vision_features"].nbytes
    assert plan.phases["training"] - whole == pytest.approx(measured, rel=0.15)
    small = make_plan(make_config(DiftConfig, values | {"per_device_train_batch_size": 2}), on_cpu=True)
    assert small.phases["training"] < plan.phases["training"]


def test_ddp_copies_what_it_reduces(checkpoint: tuple[Checkpoint, str], tmp_path: Path) -> None:
    values: dict[str, Any] = {"model": checkpoint[1], "max_prompt_tokens": PROMPT}
    plan = make_plan(make_config(DiftConfig, values), world_size=2)
    alone = make_plan(make_config(DiftConfig, values))
    backbone = copy.deepcopy(checkpoint[0].backbone)
    backbone.freeze_vision()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    try:
        sizes = DistributedDataParallel(backbone)._get_ddp_logging_data()["bucket_sizes"]
        held = sum(int(size) for size in str(sizes).split(","))
    finally:
        dist.destroy_process_group()
    assert plan.parts["DDP buckets"] == pytest.approx(held, rel=0.02)
    for name in ("training", "optimizer step"):
        assert plan.phases[name] == alone.phases[name] + plan.parts["DDP buckets"]


@pytest.mark.parametrize("open_tower", [False, True])
def test_a_reference_beside_more_than_an_adapter_is_a_copy(
    checkpoint: tuple[Checkpoint, str], open_tower: bool
) -> None:
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "freeze_vision": not open_tower}
    values |= {"lora": {"r": 4, "train_embeddings": not open_tower}, "loss": {"beta": 0.1}, "use_cpu": True}
    config = make_config(GrpoConfig, values)
    copied = reference_model(config, SimpleNamespace(device="cpu"), None, *checkpoint[:1] * 2)  # type: ignore[arg-type]
    mine = {p.data_ptr() for p in checkpoint[0].backbone.parameters()}
    measured = sum(p.nbytes for p in copied.parameters() if p.data_ptr() not in mine)
    plan = make_plan(config)
    assert plan.parts["reference"] == measured > 0
    without = make_plan(make_config(GrpoConfig, values | {"loss": {"beta": 0.0}}))
    assert plan.phases["training"] - without.phases["training"] >= measured
    assert plan.phases["rollouts"] - without.phases["rollouts"] == measured


def test_masks_of_short_sequences_on_a_gpu_are_counted(
    checkpoint: tuple[Checkpoint, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of samples that stand behind each other, and of a bottleneck; in the bytes of one mask at least."""
    monkeypatch.setattr("fourdthinker.trainers.plan._ANSWER", ANSWER)
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "per_device_train_batch_size": 2}
    length = PROMPT + ANSWER

    def training(**extra: Any) -> int:
        return make_plan(make_config(DiftConfig, values | extra)).phases["training"]

    padded, packed = training(self_feed=1.0), training()
    assert packed - padded >= 4 * (2 * length) ** 2
    assert training(self_feed=1.0, latent_bottleneck=True) - padded >= 2 * 4 * length**2
    monkeypatch.setattr("fourdthinker.trainers.plan_trace.FLEX_FROM", 2 * length)
    assert training() == training(latent_bottleneck=True) == padded


def test_the_cpu_converts_some_ids_of_a_head_of_16_bits_at_a_time(checkpoint: tuple[Checkpoint, str]) -> None:
    values = {"model": checkpoint[1], "use_cpu": True, "max_prompt_tokens": PROMPT}
    config = make_config(DiftConfig, values | {"dtype": "bfloat16"})
    gpu, cpu = make_plan(config).parts, make_plan(config, on_cpu=True).parts
    plain = make_plan(make_config(DiftConfig, values), on_cpu=True).parts
    vocabulary, width = checkpoint[0].backbone.head_weight.shape
    assert cpu["logits chunk"] == plain["logits chunk"] + 4 * min(CONVERTED_IDS, vocabulary) * width
    assert cpu["weights"] == gpu["weights"]


def test_parts_of_bfloat16_and_lora(checkpoint: tuple[Checkpoint, str]) -> None:
    _, folder = checkpoint
    values = {"model": folder, "dtype": "bfloat16", "max_prompt_tokens": PROMPT}
    half = make_plan(make_config(GrpoConfig, values))
    assert half.parts["weights"] == 2 * half.parameters
    assert half.parts["optimizer"] == 2 * half.parts["master weights"] == 8 * half.trained
    assert 0 < half.parts["reference"] < half.parts["weights"]
    moving = make_plan(make_config(GrpoConfig, values | {"sync_ref_model": True}))
    assert moving.parts["reference"] == half.parts["reference"] + 4 * half.trained
    adapter = make_plan(make_config(GrpoConfig, values | {"lora": {"r": 4}}))
    assert adapter.parts["reference"] == 0
    assert adapter.trained < 0.1 * half.trained
    budget = make_plan(make_config(GrpoConfig, values | {"max_tokens_per_forward": 900}))
    assert budget.shape.positions <= 900
    assert budget.phases["training"] < half.phases["training"]


def test_dry_run_prints_the_plan_and_ends(
    checkpoint: tuple[Checkpoint, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["--dry-run", f"model={checkpoint[1]}", "data=none.jsonl", f"output_dir={run}", "dtype=bfloat16"])
    said = capsys.readouterr().out
    for word in (
        "largest forward",
        "weights",
        "optimizer",
        "activations",
        "logits chunk",
        "fits RTX 4090 (24 GB), L40S",
    ):
        assert word in said
    assert not run.exists()


def test_the_time_is_operations_over_the_rates_of_the_table(
    checkpoint: tuple[Checkpoint, str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "num_generations": 4}
    values |= {"max_completion_length": ANSWER, "loss": {"beta": 0.0}}
    plan = make_plan(make_config(GrpoConfig, values))
    layers = sum(p.numel() for p in checkpoint[0].backbone.hf.model.language_model.layers.parameters())
    head = checkpoint[0].backbone.head_weight.numel()
    pairs = PROMPT**2 / 2 + 4 * ANSWER * (PROMPT + ANSWER / 2)
    forward = 2 * layers * (PROMPT + 4 * ANSWER) + 4 * 3 * 64 * pairs
    assert plan.work.training == pytest.approx(3 * forward + 6 * head * 4 * ANSWER)
    assert plan.work.decoded > ANSWER * 4 * (layers + head)
    device = Device("x", 80, 100.0, 1000.0)
    training, sampling = Work(4e13, 8e13, 6e11).seconds(device)
    assert (training, sampling) == (pytest.approx(1.0), pytest.approx(2.0 + 1.0))
    twice = make_plan(make_config(GrpoConfig, values | {"num_iterations": 2})).work
    assert twice.training == plan.work.training
    assert twice.decoded == plan.work.decoded / 2
    shares = make_plan(make_config(GrpoConfig, values | {"steps_per_generation": 4}))
    assert shares.work.training == plan.work.training
    # Of three updates in four the policy that sampled sees the rollouts once more.
    whole = forward + 2 * head * 4 * ANSWER
    assert shares.work.sampling - plan.work.sampling == pytest.approx(0.75 * whole)
    assert shares.parts["vision"] - plan.parts["vision"] == pytest.approx(3 * plan.cache[0])
    adapters = [{"r": 4, "train_embeddings": trained} for trained in (False, True)]
    below, beside = (make_plan(make_config(GrpoConfig, values | {"lora": lora})).work for lora in adapters)
    # No gradient of a head that is not trained: two products of its logits' size, and not three.
    assert beside.training - below.training == pytest.approx(2 * head * 4 * ANSWER)
    plain = make_plan(make_config(GrpoConfig, values | {"share_prompt": False})).work
    assert plain.training > plan.work.training
    assert plain.decoded == plan.work.decoded
    main(["--dry-run", f"model={checkpoint[1]}", "data=none.jsonl", "cache_dir=none", "latent_size=4"])
    said = capsys.readouterr().out
    assert "cache on disk: " in said
    assert "KB an imagery picture" in said
    assert "H100" in said


@pytest.mark.parametrize("device", ["none", "cpu"])
def test_optimizer_is_elsewhere_only_where_it_is_offloaded(
    checkpoint: tuple[Checkpoint, str], tmp_path: Path, device: str
) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": device}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "deepspeed": str(tmp_path / "zero.json")}
    assert bool(make_plan(make_config(GrpoConfig, values)).parts["optimizer"]) == (device == "none")


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_offload"])
def test_gradients_that_deepspeed_adds_up_in_float32(checkpoint: tuple[Checkpoint, str], name: str) -> None:
    path = Path(__file__).parents[3] / "train" / "configs" / f"{name}.json"
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "bf16": True, "deepspeed": str(path)}
    plan = make_plan(make_config(DiftConfig, values), world_size=2)
    assert plan.parts["gradients"] == (4 if name == "zero2" else 2) * plan.trained // 2


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_what_is_divided_and_what_rollouts_gather(
    checkpoint: tuple[Checkpoint, str], tmp_path: Path, engine: str
) -> None:
    values: dict[str, Any] = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "loss": {"beta": 0.1}}
    plain = make_plan(make_config(GrpoConfig, values), world_size=4)
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    values |= {"fsdp": True} if engine == "fsdp" else {"deepspeed": str(tmp_path / "zero.json")}
    plan = make_plan(make_config(GrpoConfig, values), world_size=4)
    for name in ("weights", "gradients", "optimizer"):
        assert plan.parts[name] == plain.parts[name] // 4
    assert plan.parts["reference"] == plain.parts["reference"]
    whole = plain.parts["weights"]
    assert plan.parts["gathered weights"] == whole
    if engine == "zero3":  # less than 10^9 parameters all stay gathered, with its default
        few = {"stage": 3, "stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 1000}
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": few}))
        in_slices = make_plan(make_config(GrpoConfig, values), world_size=4)
        layer = max(
            sum(p.numel() for p in layer.parameters())
            for layer in checkpoint[0].backbone.hf.model.language_model.layers
        )
        assert plan.phases["training"] - in_slices.phases["training"] == whole - 4 * (1000 + layer)
    kept = sum(plain.parts[name] // 4 for name in ("weights", "optimizer")) + plan.parts["reference"]
    assert plan.phases["rollouts"] >= kept + whole + plan.parts["KV cache"]
    if engine == "fsdp":  # ZeRO-3 cannot recompute norms
        assert plan.phases["training"] < plain.phases["training"]
    layers = [
        sum(p.numel() for p in layer.parameters())
        for layer in checkpoint[0].backbone.hf.model.language_model.layers
    ]
    in_turn = plan.phases["rollouts"] - 4 * (sum(layers) - max(layers))
    others = [size for name, size in plan.phases.items() if name != "rollouts"]
    assert plan.least == max(in_turn, *others)
    assert plain.least == plain.peak
    assert plan.phases.get("start") == (whole + plan.parts["reference"] if engine == "fsdp" else None)


def test_slices_of_fsdp_are_float32_under_bf16(checkpoint: tuple[Checkpoint, str]) -> None:
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "fsdp": True, "bf16": True}
    parts = [
        make_plan(make_config(GrpoConfig, values | {"dtype": dtype}), world_size=2).parts
        for dtype in ("bfloat16", "float32")
    ]
    assert parts[0]["optimizer"] == parts[1]["optimizer"] == 2 * parts[0]["gradients"]
    assert parts[0]["master weights"] == 0
    assert parts[0]["gradients"] < parts[0]["weights"] < parts[1]["weights"]  # of the tower, bfloat16 is kept


@pytest.mark.parametrize(
    ("text", "said"), [("{", "malformed JSON"), ('{"zero_optimization": 3}', "is 3; give")]
)
def test_a_deepspeed_file_that_cannot_be_read_is_named(
    checkpoint: tuple[Checkpoint, str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "zero.json").write_text(text)
    values = {"model": checkpoint[1], "max_prompt_tokens": PROMPT, "deepspeed": str(tmp_path / "zero.json")}
    with pytest.raises(ConfigError, match=said):
        make_plan(make_config(GrpoConfig, values))
