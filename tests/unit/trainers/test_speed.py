"""Speed: shares of time by phase, tokens and rollouts a second, operations against torch's own count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fourdthinker.backbones.self_feed import with_own_latents
from fourdthinker.samples import IGNORE, Sample, collate
from fourdthinker.settings import make_config
from fourdthinker.trainers import speed as module
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.operations import Costs, Counts, patches_of, self_fed
from fourdthinker.trainers.packing import counts_of
from fourdthinker.trainers.plan_time import known_device
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.speed import Speed
from tests.e2e.training import BARE, samples
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_packing import N, prompts, rolled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: time.now)
    return time


def spend(speed: Speed, clock: SimpleNamespace, **seconds: float) -> None:
    for phase, passed in seconds.items():
        speed.enter(phase)
        clock.now += passed


def shown(speed: Speed, world_size: int = 1) -> dict[str, float]:
    return {name: float(a / b) for name, (a, b) in speed.take(world_size).items() if b}


def test_shares_of_time_and_what_is_done_by_the_second(clock: SimpleNamespace) -> None:
    speed = Speed(rate=1000.0)
    assert speed.take(1) == {}, "nothing has begun"
    spend(speed, clock, reading=1.0, passes=5.0, optimizer=2.0, saving=1.0, evaluation=0.5, reading_more=0.5)
    speed.add(tokens=1700, rollouts=17, operations=4250.0)
    line = shown(speed)
    assert [line.pop(f"time_{name}") for name in ("passes", "optimizer", "evaluation")] == [0.5, 0.2, 0.05]
    assert sum(value for name, value in line.items() if name.startswith("time_")) == pytest.approx(0.25)
    # 8.5 seconds without saving and evaluation
    assert (line["tokens_per_second"], line["rollouts_per_second"], line["mfu"]) == (200.0, 2.0, 0.5)
    clock.now += 2.0  # in the last phase
    spend(speed, clock, passes=2.0)
    line = shown(speed, world_size=4)
    assert (line["time_reading_more"], line["time_passes"], line["time_evaluation"]) == (0.5, 0.5, 0.0)
    assert line["tokens_per_second"] == 0.0, "each line counts its own"


def test_tokens_a_second_are_those_of_all_ranks(clock: SimpleNamespace) -> None:
    """What ranks add up: twice the tokens, and the time that passed once."""
    speed = Speed()
    spend(speed, clock, passes=2.0)
    speed.add(tokens=10)
    metrics = speed.take(2)
    total, weight = metrics["tokens_per_second"]
    assert 2 * total / (2 * weight) == 10.0
    assert [value.item() for value in metrics["mfu"]] == [0.0, 0.0], "the rate of the device is not known"
    assert "rollouts_per_second" not in metrics, "in DIFT"


def test_ranks_on_unlike_devices_have_the_same_names(clock: SimpleNamespace) -> None:
    """Their sums are added up in one tensor, by position."""
    lines = []
    for speed in (Speed(), Speed(rate=1000.0)):
        spend(speed, clock, passes=2.0)
        speed.add(tokens=10, operations=500.0)
        lines.append(speed.take(2))
    assert list(lines[0]) == list(lines[1])
    (total, weight), (more, others) = (line["mfu"] for line in lines)
    assert (total + more) / (weight + others) == 0.25, "of the devices that are known"
    sums = MetricSums()
    sums.add(lines[0])
    assert "mfu" not in sums.take(lambda values: values, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_boards_by_their_names(name: str, known: str | None) -> None:
    device = known_device(name)
    assert (None if device is None else device.name) == known


def test_operations_are_those_that_torch_counts() -> None:
    """Of a forward and backward pass; eager attention on the CPU makes all pairs, and not half of them."""
    backbone = tiny_checkpoint(hidden=64, layers=2).backbone
    backbone.freeze_vision()
    costs, config = Costs.of(backbone), make_config(DiftConfig, {})
    length, rows = 40, 17
    batch = {"input_ids": torch.randint(0, 300, (1, length))}
    batch |= {"position_ids": torch.arange(length).expand(3, 1, length)}
    batch |= {name: torch.zeros(0, dtype=torch.long) for name in ("latent_index", "vision_index")}
    with backbone.set_attention("eager"), FlopCounterMode(display=False) as counter:
        hidden = backbone(batch, lambda _, found, __: found)
        loss = (hidden[0, :rows] @ backbone.head_weight.T).sum()
        loss.backward()
    counts = Counts(length, length**2, rows)
    assert costs.training(counts, config) == pytest.approx(counter.get_total_flops(), rel=0.03)
    frozen, half = make_config(DiftConfig, {"lora": {"r": 4}}), costs.inference(counts)
    assert costs.training(counts, frozen) == pytest.approx(2 * half)
    assert costs.training(counts, config, recomputed=True) == pytest.approx(3 * half + costs.forward(counts))
    seen = Counts(patches=8)
    opened = make_config(DiftConfig, {"freeze_vision": False})
    assert costs.training(seen, config) == 0.0
    assert costs.training(seen, opened) == 3 * costs.inference(seen) > 0


def test_passes_that_make_own_latents_are_counted() -> None:
    """As torch counts them where nothing is padded: two samples of one length, their blocks elsewhere."""
    checkpoint = tiny_checkpoint(hidden=64, layers=2)
    backbone, K = checkpoint.backbone, 4
    made = []
    for start in (20, 34):
        ids = torch.full((60,), 7)
        ids[start : start + K] = backbone.latents.pad_id
        index, labels = (ids == backbone.latents.pad_id).nonzero()[:, 0], torch.full((60,), IGNORE)
        places = torch.arange(60).expand(3, 60)
        made.append(Sample(ids, places, labels, latents=torch.randn(K, 64), latent_index=index))
    with backbone.set_attention("eager"), FlopCounterMode(display=False) as counter:
        with_own_latents(backbone, collate(made, backbone.vision.pad_id))
    counts = self_fed(made, K)
    assert counts.tokens == 2 * (19 + K * 41)
    # Eager attention makes all pairs: of the first pass 19 by 19, of the others 41 by 60.
    assert counts.pairs == 19**2 + K * (60**2 - 19**2)
    every = Counts(counts.tokens, 2 * (19**2 + K * 41 * 60))
    assert Costs.of(backbone).inference(every) == pytest.approx(counter.get_total_flops(), rel=0.03)
    text = Sample(made[0].input_ids[:9], places[:, :9], labels[:9])
    assert self_fed([*made, text], K).tokens == counts.tokens + 9
    assert self_fed([text], K).tokens == 8 + K


def test_an_update_on_own_latents_counts_their_passes(tmp_path: Path) -> None:
    counted, checkpoint = [], tiny_checkpoint(hidden=32, layers=1)
    add = Speed.add

    def spy(self: Speed, **done: Any) -> None:
        counted.append(done["operations"])
        add(self, **done)

    values = BARE | {"max_steps": 4, "self_feed": 0.5, "per_device_train_batch_size": 6}
    items = samples(checkpoint, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speed, "add", spy)
        config = make_config(DiftConfig, values | {"output_dir": str(tmp_path)})
        train_dift(config, checkpoint=checkpoint, samples=items)
    extra = Costs.of(checkpoint.backbone).inference(self_fed(items, 4))
    assert counted[0] == counted[1]
    assert counted[2] == counted[3] == pytest.approx(counted[0] + extra)


@pytest.mark.parametrize("share", [True, False])
def test_what_goes_through_is_counted_a_position_at_a_time(share: bool) -> None:
    asked, rollout = prompts(patches=True), rolled()
    rows = [0, 1, 2 * N, 2 * N + 2, 3 * N]
    tokens = pairs = logits = patches = 0
    met: set[int] = set()
    for row in rows:
        prompt, length = asked[int(rollout.group[row])], int(rollout.lengths[row])
        before = prompt.input_ids.numel()
        if not share or int(rollout.group[row]) not in met:
            tokens += before
            pairs += sum(range(1, before + 1))
            patches += patches_of(prompt.vision)
        met.add(int(rollout.group[row]))
        tokens += length
        pairs += sum(before + step + 1 for step in range(length))
        logits += int(rollout.policy_mask[row].sum())
    scored = SimpleNamespace(rollout=rollout, prompts=asked)
    found = counts_of(scored, rows, share=share)  # type: ignore[arg-type]
    assert (found.tokens, found.logits, found.patches) == (tokens, logits, patches)
    assert found.pairs == pytest.approx(pairs, rel=0.06), "a position sees itself"
    assert patches == 16 * (5 if share else 6), "one of the prompts has no picture"
