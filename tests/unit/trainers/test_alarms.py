"""Every alarm is given where it should be, with its remedy, and not where all is well."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.kernels import GrpoOptions
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.settings import make_config
from fourdthinker.trainers.alarms import ALARMS, Alarms
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.experience import rollout_metrics
from fourdthinker.trainers.packing import make_chunk
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.settings_sections import LoraSettings
from tests.e2e.training import BARE, metrics, samples
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_packing import N, checkpoint, experience, rolled

WELL = {
    "loss": 0.1,
    "sampler_gap": 0.001,
    "kl": 0.02,
    "grad_norm": 1.0,
    "completion_length": 200.0,
    "equal_groups": 0.4,
    "empty_blocks": 0.0,
    "latents": 6.0,
    "blocks_allowed": 8.0,
    "latent_direction": 0.7,
    "failed_rewards": 0.0,
    "hanging_rewards": 0.0,
}
ILL = {
    "sampler_gap": ({"sampler_gap": 0.2}, "loss.sampler_cap"),
    "kl": ({"kl": 3.0}, "loss.beta"),
    "grad_norm": ({"grad_norm": 50.0}, "learning_rate"),
    "completion_length": ({"completion_length": 20.0}, "rollouts.jsonl"),
    "equal_groups": ({"equal_groups": 1.0}, "refill_rounds"),
    "empty_blocks": ({"empty_blocks": 0.5}, "grammar"),
    "no_blocks": ({"latents": 0.0}, "train_start"),
    "latent_direction": ({"latent_direction": 0.999}, "latent_term=cosine"),
    "failed_rewards": ({"failed_rewards": 0.5}, "reward_timeout"),
    "hanging_rewards": ({"hanging_rewards": 1.0}, "time-out of its own"),
}


@pytest.mark.parametrize("name", [alarm.name for alarm in ALARMS])
def test_each_alarm_names_its_remedy(name: str, caplog: pytest.LogCaptureFixture) -> None:
    change, remedy = ILL[name]
    before = [WELL] * 12
    alarms = Alarms()
    with caplog.at_level(logging.WARNING):
        assert alarms.check(WELL, before) == 0
        assert not caplog.records
        assert alarms.check(WELL | change, before) == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"alarm {name}: ")
    assert remedy in record.getMessage()


def test_updates_on_earlier_rollouts_tell_nothing_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """With num_iterations=2 every second line has no metrics of rollouts."""
    repeated = {name: WELL[name] for name in ("loss", "sampler_gap", "kl", "grad_norm")}
    before, alarms = [WELL, repeated] * 12, Alarms()
    assert alarms.check(repeated, before) == 0
    with caplog.at_level(logging.WARNING):
        for line in [WELL | {"equal_groups": 1.0}, repeated] * 3:
            alarms.check(line, before)
    assert len(caplog.records) == 1, "warned of once, though lines between say nothing"


def test_remedies_name_settings_that_exist() -> None:
    known = {*DiftConfig.model_fields, *GrpoConfig.model_fields}
    known |= {f"loss.{field.name}" for field in fields(GrpoOptions)} | {
        f"lora.{name}" for name in LoraSettings.model_fields
    }
    setting = r"(?:loss|lora)\.\w+|\b\w+(?==)|\b[a-z_]+_(?:rate|norm|timeout|weight)\b"
    named = {name for alarm in ALARMS for name in re.findall(setting, alarm.remedy)}
    assert len(named) >= 10
    assert named - known == set()


@pytest.mark.parametrize(
    "name", [alarm.name for alarm in ALARMS if alarm.name not in ("equal_groups", "no_blocks")]
)
def test_a_number_that_is_none_is_alarming(name: str) -> None:
    (key,) = ILL[name][0]
    assert Alarms().check(WELL | {key: math.nan}, [WELL] * 12) == 1
    assert Alarms().check(WELL, [WELL | {key: math.nan}] * 3 + [WELL] * 12) == 0


def test_the_usual_norm_is_that_of_updates_that_trained() -> None:
    """Most updates of a hard data set may train nothing, and have a norm of 0."""
    idle = WELL | {"grad_norm": 0.0}
    before = [idle] * 30 + [WELL] * 12
    assert Alarms().check(WELL, before) == 0
    assert Alarms().check(WELL | {"grad_norm": 50.0}, before) == 1
    assert Alarms().check(WELL, [idle] * 40) == 0


def test_a_record_unlike_those_before_it_is_alarmed_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model has learnt one record by heart when the other one comes."""
    made = tiny_checkpoint(hidden=32, layers=1)
    usual, other = samples(made, 2)
    values = BARE | {"learning_rate": 3e-2, "lr_scheduler_type": "constant", "shuffle_dataset": False}
    config = make_config(DiftConfig, values | {"output_dir": str(tmp_path)})
    with caplog.at_level(logging.WARNING, "fourdthinker"):
        train_dift(config, checkpoint=made, samples=[usual] * 25 + [other])
    assert [line["alarms"] for line in metrics(tmp_path)] == [0] * 25 + [1]
    assert [r.getMessage() for r in caplog.records if "alarm grad_norm: the norm of" in r.getMessage()]


def test_an_alarm_that_lasts_is_given_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    alarms, ill = Alarms(), WELL | {"kl": 3.0}
    with caplog.at_level(logging.WARNING):
        for _ in range(51):
            assert alarms.check(ill, []) == 1
        assert len(caplog.records) == 2
        alarms.check(WELL, [])
        alarms.check(ill, [])
    assert len(caplog.records) == 3, "one that comes back is given at once"


def test_text_alone_needs_no_blocks_and_young_runs_have_no_habits() -> None:
    assert Alarms().check(WELL | {"latents": 0.0, "blocks_allowed": 0.0}, []) == 0
    assert Alarms().check(WELL | {"grad_norm": 50.0, "completion_length": 2.0}, [WELL] * 9) == 0
    assert Alarms().check({"loss": 1.0}, []) == 0


def of_rollouts(**changed: Any) -> list[str]:
    """The alarms of an update on rollouts of which something was changed."""
    made = experience([True] * 4 * N)
    made = replace(made, rollout=replace(made.rollout, **changed.pop("rollout", {})), **changed)
    found = rollout_metrics(made, N, checkpoint().backbone.latents, 8)
    line = {name: float(total / weight) for name, (total, weight) in found.items() if weight}
    return names_of_holding(line, [WELL] * 12)


def names_of_holding(line: dict[str, float], before: list[dict[str, float]]) -> list[str]:
    told = [alarm for alarm in ALARMS if alarm.metric in line]
    return [alarm.name for alarm in told if alarm.check(line, before) is not None]


def test_rollouts_provoke_the_alarms() -> None:
    spec, rollout = checkpoint().backbone.latents, rolled()
    ordinary = of_rollouts()
    assert ordinary == ["completion_length"], "22 tokens, where there were 200"
    empty = rollout.tokens.clone()
    opened = (empty == spec.start_id).nonzero()[0]
    empty[opened[0], opened[1] + 1] = spec.end_id
    assert of_rollouts(rollout={"tokens": empty}) == [*ordinary, "empty_blocks"]
    none: dict[str, Any] = {
        name: getattr(rollout, name)[:0] for name in ("latents", "latent_rows", "latent_steps")
    }
    assert of_rollouts(rollout=none) == [*ordinary, "no_blocks"]
    one = torch.ones_like(rollout.latents) * torch.rand(len(rollout.latents), 1)
    assert of_rollouts(rollout={"latents": one}) == [*ordinary, "latent_direction"]
    assert of_rollouts(equal=torch.ones(4 * N, dtype=torch.bool)) == [*ordinary, "equal_groups"]
    some = torch.arange(4 * N) % 3 == 0
    without = torch.arange(4.0 * N).masked_fill(some, math.nan)
    assert of_rollouts(rewards=without) == ordinary, "no opinion is no failure"
    assert of_rollouts(rewards=without, failed=some) == [*ordinary, "failed_rewards"]
    long = {"lengths": torch.full_like(rollout.lengths, 60)}
    assert of_rollouts(rollout=long) == []


def test_another_policy_provokes_the_alarms_of_its_distance() -> None:
    """Log-probs of the sampler and of the reference that are off by a nat."""
    made = experience([True] * 4 * N)
    logprobs = made.rollout.logprobs - 1.0
    made = replace(made, rollout=replace(made.rollout, logprobs=logprobs), ref_logprobs=logprobs - 1.0)
    batch = make_chunk(made, list(range(4 * N)), 0, share=True).batch
    hidden, options = torch.randn(*batch["input_ids"].shape, 32), GrpoConfig(loss={"beta": 0.1}).loss
    _, found, _ = grpo_objective(checkpoint().backbone, hidden, batch, options=options, num_items=4 * N)
    line = {name: float(total / weight) for name, (total, weight) in found.items()}
    assert names_of_holding(line, []) == ["sampler_gap", "kl"]


def test_latents_of_one_direction_are_alarming_in_dift_too() -> None:
    backbone = checkpoint().backbone
    batch = {"rows": torch.tensor([2]), "target": torch.tensor([[-100, 0, 5, -100, -100, -100, -100, -100]])}
    batch |= {"latent_index": torch.tensor([3, 4, 5, 6]), "latents": torch.randn(4, 32)}
    for hidden, expected in ((torch.ones(1, 8, 32), ["latent_direction"]), (torch.randn(1, 8, 32), [])):
        _, found = dift_objective(backbone, hidden, batch, num_tokens=1, num_latents=4)
        line = {name: float(total / weight) for name, (total, weight) in found.items()}
        assert names_of_holding(line, []) == expected
