"""Reward functions: how they are loaded, called, and what their failures cost."""

from __future__ import annotations

import asyncio
import math
import re
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fourdthinker import rewards
from fourdthinker.errors import ConfigError
from fourdthinker.reward_calls import (
    Reward,
    RewardFailedError,
    call_reward,
    described,
    load_reward,
    reward_name,
)
from fourdthinker.rewards import Completion, accuracy_reward, format_reward


def completion(text: str = "<answer>B</answer>", **fields: Any) -> Completion:
    record = SimpleNamespace(id="r7", where="train.jsonl:7", extra={"extra": {"depth": 2}})
    record.options, record.answer = {"A": "left", "B": "right"}, "B"
    values = {"text": text, "record": record, "length": 3, "finish_reason": "length", "max_length": 9}
    return Completion(**values | {"tokens": torch.arange(3), "latents": torch.zeros(4, 8)} | fields)


def test_load_reward() -> None:
    assert load_reward("fourdthinker.rewards:format_reward").function is format_reward
    for path in ("accuracy", "fourdthinker.rewards:", ":accuracy_reward", ""):
        with pytest.raises(ConfigError, match=r"package\.module:function"):
            load_reward(path)
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module'.*PYTHONPATH"):
        load_reward("no_such_module:reward")
    with pytest.raises(ConfigError, match=r"has no function 'acuracy'.*accuracy_reward"):
        load_reward("fourdthinker.rewards:acuracy")
    with pytest.raises(ConfigError, match="has no function '_NUMBER'"):
        load_reward(f"{rewards.__name__}:_NUMBER")


def test_a_reward_may_have_another_name() -> None:
    assert reward_name("fourdthinker.judges:HttpJudge") == "HttpJudge"
    for most in (3, 7):
        reward = load_reward(f"{HERE}:Counted#style-{most}", {"most": most})
        assert reward.name == f"style-{most}"
        assert call_reward(reward, [completion()]).values == [most]
    with pytest.raises(ConfigError, match=r"reward_arguments\.style: .*'most'"):
        load_reward(f"{HERE}:Counted#style")
    with pytest.raises(ConfigError, match=r"'mine:judge#' is no import path"):
        load_reward("mine:judge#")


def everything(
    text: str, record: Any, *, extra: Any, length: int, finish_reason: str, tokens: Any, latents: Any
) -> float:
    assert (text, record.id, finish_reason) == ("<answer>B</answer>", "r7", "length")
    return float(extra["depth"] * 1000 + length * 100 + len(tokens) * 10 + len(latents))


def some(text: str, record: Any, finish_reason: str, scale: float = 0.5) -> float:
    return scale * (finish_reason == "length")


def lengths(completions: list[Completion], unit: float = 1.0) -> list[float]:
    return [len(one.text) * unit for one in completions]


async def later(text: str, record: Any, max_length: int) -> float:
    await asyncio.sleep(0.001)
    return len(text) / max_length


class Counted:
    def __init__(self, *, most: int) -> None:
        self.most = most

    async def __call__(self, completions: list[Completion]) -> list[float]:
        return [min(len(one.text), self.most) / 1 for one in completions]


HERE = "tests.unit.test_reward_calls"


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("everything", {}, 2334.0),
        ("some", {}, 0.5),
        ("some", {"scale": 3}, 3.0),
        ("lengths", {"unit": 2.0}, 36.0),
        ("later", {}, 2.0),
        ("Counted", {"most": 7}, 7.0),
    ],
)
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_every_kind_gets_what_it_has_parameters_for(
    name: str, arguments: dict[str, Any], value: float, timeout: float | None
) -> None:
    reward = load_reward(f"{HERE}:{name}", arguments)
    scores = call_reward(reward, [completion(), completion()], timeout=timeout)
    assert (scores.values, scores.failures) == ([value, value], {})
    assert call_reward(reward, [], timeout=timeout).values == []


def test_the_accuracy_reward() -> None:
    assert call_reward(Reward("accuracy", accuracy_reward), [completion()], timeout=5.0).values == [1.0]


def _one(text: str) -> float:
    return 0.0


def _unknown(text: str, record: Any, *, colour: str) -> float:
    return 0.0


def _swapped(text: str, length: int, record: Any) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("_one", {}, r"takes \(.*called as reward\(text, record\), with any of ext"),
        ("_unknown", {}, r"takes \(.*reward_arguments\._unknown can give colour"),
        ("_swapped", {}, r"takes \(.*called as reward\(text, record\), with any of ext"),
        ("some", {"colour": 1}, r"reward_arguments\.some\.colour: .* has no such parameter"),
        ("Counted", {}, r"reward_arguments\.Counted: .*'most'"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused_when_it_is_loaded(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_reward(f"{HERE}:{name}", arguments)


def _by_text(text: str, record: Any) -> Any:
    """What a function may do: one misdeed for each text."""
    if text == "hang":
        time.sleep(30)
    if text == "raise":
        raise KeyError("depth")
    return {"nan": math.nan, "text": "good", "none": None, "right": 1.0}[text]


async def _by_text_later(text: str, record: Any) -> Any:
    if text == "hang":
        await asyncio.sleep(30)
    return _by_text(text, record)


@pytest.mark.parametrize("function", [_by_text, _by_text_later])
def test_a_failure_costs_its_completion_and_nothing_else(function: Any) -> None:
    texts = ["right", "hang", "raise", "nan", "right", "text", "none", "right"]
    completions = [completion(text) for text in texts]
    began = time.perf_counter()
    scores = call_reward(Reward("mine", function), completions, timeout=0.3, concurrency=2)
    assert time.perf_counter() - began < 10
    assert scores.values == [1.0, None, None, None, 1.0, None, None, 1.0]
    said = {row: described("mine", completions[row], error) for row, error in scores.failures.items()}
    assert said == {
        1: "reward mine: no answer within 0.3 seconds; make it faster, or raise reward_timeout for record "
        "'r7' (train.jsonl:7)",
        2: "reward mine: KeyError for record 'r7' (train.jsonl:7): 'depth'; mend the function",
        3: "reward mine: ValueError for record 'r7' (train.jsonl:7): nan is no finite number; mend the "
        "function",
        5: "reward mine: ValueError for record 'r7' (train.jsonl:7): 'good' is no finite number; mend the "
        "function",
    }, "None is no failure"


def test_a_batch_fails_as_a_whole_or_row_by_row() -> None:
    two = [completion(), completion()]
    for result, failed in (([1.0], [0, 1]), ("ab", [0, 1]), ([1.0, math.inf], [1]), ([None, 2], [])):
        reward = Reward("mine", lambda completions, result=result: result, batched=True)
        assert list(call_reward(reward, two, timeout=5.0).failures) == failed


def test_calls_of_an_async_function_run_together_but_not_too_many() -> None:
    running, most = 0, 0

    async def counted(text: str, record: Any) -> float:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.01)
        running -= 1
        return 1.0

    scores = call_reward(Reward("mine", counted), [completion()] * 9, timeout=5.0, concurrency=3)
    assert scores.values == [1.0] * 9
    assert most == 3


def test_a_reward_may_say_itself_that_it_failed() -> None:
    def refuses(text: str, record: Any) -> float:
        raise RewardFailedError("the endpoint is down")

    (error,) = call_reward(Reward("mine", refuses), [completion()]).failures.values()
    assert isinstance(error, RewardFailedError)
    assert described("mine", completion(), error) == (
        "reward mine: the endpoint is down for record 'r7' (train.jsonl:7)"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (10**400, "is no finite number"),
        (torch.ones(2), "is no finite number"),
        ("x" * 10**6, "is no finite number"),
        (1e39, "above 1e\\+18"),
        (-1e19, "above 1e\\+18"),
    ],
    ids=["integer", "tensor", "text", "float", "negative"],
)
def test_what_float32_cannot_hold_is_no_reward(value: Any, said: str) -> None:
    (error,) = call_reward(Reward("mine", lambda text, record: value), [completion()]).failures.values()
    assert isinstance(error, ValueError)
    assert re.search(said, str(error))
    assert len(str(error)) < 200


@pytest.mark.parametrize("made", [np.array, torch.tensor, tuple])
def test_a_batch_may_come_as_an_array(made: Any) -> None:
    reward = Reward("mine", lambda completions: made([0.5, 2.0]), batched=True)
    assert call_reward(reward, [completion()] * 2).values == [0.5, 2.0]


def test_a_time_out_of_the_functions_own_is_its_own() -> None:
    def late(text: str, record: Any) -> float:
        raise TimeoutError("the database is busy")

    async def later(text: str, record: Any) -> float:
        return late(text, record)

    for function in (late, later):
        (error,) = call_reward(Reward("mine", function), [completion()], timeout=9.0).failures.values()
        assert described("mine", completion(), error) == (
            "reward mine: TimeoutError for record 'r7' (train.jsonl:7): the database is busy; mend the "
            "function"
        )


def test_gradient_mode_goes_with_the_calls() -> None:
    async def later(text: str, record: Any) -> float:
        return float(torch.is_grad_enabled())

    def now(text: str, record: Any) -> float:
        return float(torch.is_grad_enabled())

    for function in (now, later):
        for enabled in (False, True, False):
            with torch.set_grad_enabled(enabled):
                scores = call_reward(Reward("mine", function), [completion()], timeout=9.0)
            assert scores.values == [float(enabled)]


def test_the_event_loop_lasts_so_that_a_client_can_be_kept() -> None:
    loops = []

    async def remembers(text: str, record: Any) -> float:
        loops.append(asyncio.get_running_loop())
        return 1.0

    reward = Reward("mine", remembers)
    for _ in range(2):
        assert call_reward(reward, [completion()], timeout=9.0).values == [1.0]
    assert loops[0] is loops[1]
