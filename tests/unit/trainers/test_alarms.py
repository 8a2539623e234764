"""Every alarm is given where it should be, with its remedy, and not where all is well."""

from __future__ import annotations

import logging
import math

import pytest

from fourdthinker.trainers.alarms import ALARMS, Alarms

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
