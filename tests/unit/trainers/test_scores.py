"""The rewards of rollouts by all functions together: weights, failures, and the time that they may take."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any

import pytest
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.records import Record
from fourdthinker.reward_calls import Reward
from fourdthinker.reward_runs import PATIENCE, Patience
from fourdthinker.rewards import Completion
from fourdthinker.settings import make_config
from fourdthinker.trainers.experience import patience_with, score
from fourdthinker.trainers.settings import GrpoConfig


def completions_of(*texts: str) -> list[Completion]:
    record = Record("rl", "a", "?", where="f.jsonl:3")
    return [Completion(text, record, 2, "eos", torch.tensor([5, 6]), torch.zeros(0, 4), 9) for text in texts]


def test_rewards_are_weighted() -> None:
    completions = completions_of("ab", "c")
    rewards = [Reward("length", lambda text, _: float(len(text))), Reward("one", lambda text, _: 1.0)]
    config = make_config(GrpoConfig, {"reward_weights": [0.5, 2.0]})
    judged = score(completions, rewards, config, Patience())
    assert judged.rewards.tolist() == [3.0, 2.5]
    assert not judged.failed.any()
    assert (judged.late, judged.failure) == (False, "")
    assert judged.parts["length"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("weights", [[1e30], [2.0], [-2.0, 1.0]])
def test_values_whose_weighted_sum_float32_cannot_hold_are_no_rewards(weights: list[float]) -> None:
    def large(text: str, record: Record) -> float:
        return 1e18 if text == "ab" else 1e-14

    async def lies(text: str, record: Record) -> float:
        return large(text, record)

    completions = completions_of("ab", "c")
    values: dict[str, Any] = {
        "rewards": ["mine:large", "mine:one"][: len(weights)],
        "reward_weights": weights,
    }
    others = [Reward("one", lambda text, record: 1.0)][: len(weights) - 1]
    config, skipping = (make_config(GrpoConfig, values | {"on_reward_error": e}) for e in ("raise", "skip"))
    with pytest.raises(ConfigError, match=r"reward large: .*1e\+18 is above .* in size .*mend the func"):
        score(completions, [Reward("large", large), *others], config, Patience())
    judges = [Reward("large", large), Reward("lies", lies)]
    for judge, settings in zip(judges, (skipping, config), strict=True):
        judged = score(completions, [judge, *others], settings, Patience())
        assert judged.rewards.isnan().tolist() == judged.failed.tolist() == [True, False]
        assert f"reward {judge.name}: ValueError for record 'a'" in judged.failure


def test_no_opinion_is_no_failure() -> None:
    completions = completions_of("ab", "c")
    values: dict[str, Any] = {"rewards": ["mine:some"], "reward_weights": [1.0]}
    rewards = [Reward("some", lambda text, _: None if text == "ab" else 1.0)]
    judged = score(completions, rewards, make_config(GrpoConfig, values), Patience())
    assert judged.rewards.isnan().tolist() == [True, False]
    assert not judged.failed.any()


@pytest.mark.parametrize("misdeed", ["late", "nan", "raises"])
def test_an_async_reward_that_fails_never_ends_the_run(misdeed: str) -> None:
    def fails() -> float:
        if misdeed == "raises":
            raise OSError("status 500")
        return math.nan

    async def judge(text: str, record: Record) -> float:
        if text == "c":
            return 1.0
        await asyncio.sleep(20 * (misdeed == "late"))
        return fails()

    completions = completions_of("ab", "c")
    values = {"rewards": ["mine:judge"], "reward_weights": [1.0], "reward_timeout": 0.2}
    config = make_config(GrpoConfig, values)
    judged = score(completions, [Reward("judge", judge)], config, Patience())
    assert judged.late == (misdeed == "late")
    assert judged.rewards.isnan().tolist() == judged.failed.tolist() == [True, False]
    if misdeed != "late":
        with pytest.raises(ConfigError, match=r"reward plain: .*on_reward_error=skip would leave it out"):
            score(completions, [Reward("plain", lambda text, _: fails())], config, Patience())


def test_a_plain_reward_that_hangs_ends_the_run_at_its_first_time_out() -> None:
    free, asked = threading.Event(), []

    def hangs(text: str, record: Record) -> float:
        asked.append(text)
        return float(free.wait(20))

    completions = completions_of(*"cccccccc")
    values = {"rewards": ["mine:hangs"], "reward_weights": [1.0], "reward_timeout": 0.05}
    with pytest.raises(ConfigError, match=r"reward hangs: no answer within 0\.05 seconds"):
        score(completions, [Reward("hangs", hangs)], make_config(GrpoConfig, values), Patience())
    free.set()
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["plain", "async", "blocks"])
def test_the_time_outs_of_an_update_have_one_budget(kind: str) -> None:
    """Whatever the number of micro-batches and functions: other processes wait."""
    free = threading.Event()

    def hangs(text: str, record: Record) -> float:
        return float(text == "hang" and free.wait(20))

    async def later(text: str, record: Record) -> float:
        return float(text != "hang" or await asyncio.sleep(20, 0.0))

    async def blocks(text: str, record: Record) -> float:
        return hangs(text, record)

    completions = completions_of("hang", "right", "hang")
    function = {"plain": hangs, "async": later, "blocks": blocks}[kind]
    values = {"rewards": ["a:a", "b:b"], "reward_weights": [1.0, 1.0], "reward_timeout": 0.1}
    config = make_config(GrpoConfig, values | {"on_reward_error": "skip", "reward_concurrency": 1})
    rewards, patience = [Reward("a", function), Reward("b", function)], patience_with(config)
    began = time.perf_counter()
    judged = [score(completions, rewards, config, patience) for _ in range(20)]
    assert time.perf_counter() - began < 0.1 * (PATIENCE + 5), (
        "20 micro-batches of 2 rewards with 2 time-outs"
    )
    assert all(one.failed.tolist()[::2] == [True, True] for one in judged)
    assert all(one.late for one in judged)
    patience.renew()
    free.set()
    if kind == "async":
        (right,) = score(completions[1:2], rewards, config, patience).rewards.tolist()
        assert right == 2.0


def test_the_budget_stays_below_what_other_processes_wait() -> None:
    for timeout, limit, seconds in ((60.0, 1800, 240.0), (600.0, 1800, 600.0), (None, 1800, math.inf)):
        config = make_config(GrpoConfig, {"reward_timeout": timeout, "ddp_timeout": limit})
        assert patience_with(config).seconds == seconds
