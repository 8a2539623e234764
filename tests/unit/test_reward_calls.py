"""Reward functions: how they are loaded, called, and what their failures cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import re
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fourdthinker import reward_runs, rewards
from fourdthinker.errors import ConfigError
from fourdthinker.reward_calls import (
    Reward,
    RewardFailedError,
    call_reward,
    described,
    load_reward,
)
from fourdthinker.reward_runs import MOST_HANGING, hanging
from fourdthinker.rewards import Completion, accuracy_reward, format_reward


@pytest.fixture(autouse=True)
def none_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs since another test is not counted."""
    monkeypatch.setattr(reward_runs, "_left", [])


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

    for _ in range(2):
        assert call_reward(Reward("mine", remembers), [completion()], timeout=9.0).values == [1.0]
    assert loops[0] is loops[1]


_FREE = threading.Event()


async def _misdeed(text: str, record: Any) -> float:
    if text == "cancels":
        raise asyncio.CancelledError
    if text == "exits":
        raise SystemExit(3)
    while text == "swallows":
        try:
            await asyncio.sleep(2)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            text = "swallowed"
    if text == "blocks":
        _FREE.wait(20)
    await asyncio.sleep(0.01)
    return 1.0


@pytest.mark.parametrize("misdeed", ["cancels", "exits", "swallows", "blocks"])
def test_a_coroutine_that_misbehaves_costs_no_other(misdeed: str) -> None:
    completions = [completion(text) for text in ("right", misdeed, "right", "right")]
    began = time.perf_counter()
    together = 1 if misdeed == "swallows" else 2
    _FREE.clear()
    scores = call_reward(Reward("mine", _misdeed), completions, timeout=0.2, concurrency=together)
    _FREE.set()
    assert time.perf_counter() - began < 10, "nobody waits for one that was cancelled"
    assert scores.values == [1.0, None, 1.0, 1.0]
    assert list(scores.failures) == [1]
    assert call_reward(Reward("mine", _misdeed), [completion("right")], timeout=9.0).values == [1.0]


@pytest.mark.parametrize("later", [False, True])
def test_a_function_that_always_hangs_is_given_up(later: bool) -> None:
    """Its time-outs would add up to more than the other ranks wait."""
    free, called = threading.Event(), []

    def hangs(text: str, record: Any) -> float:
        called.append(text)
        free.wait(20)
        return 1.0

    async def hangs_later(text: str, record: Any) -> float:
        called.append(text)
        await asyncio.sleep(20)
        return 1.0

    reward = Reward("mine", hangs_later if later else hangs)
    scores = call_reward(reward, [completion()] * 40, timeout=0.02, concurrency=1)
    free.set()
    assert scores.values == [None] * 40
    assert len(called) == (2 if later else MOST_HANGING)
    assert "no answer within 0.02 seconds" in str(scores.failures[0])
    why = "others before gave no answer" if later else "8 calls of rewards before do not come back"
    assert f"not called, for {why}" in str(scores.failures[39])


@pytest.mark.parametrize("blocks", [False, True])
def test_the_rows_behind_one_that_hangs_are_called(blocks: bool) -> None:
    free = threading.Event()

    def hangs(text: str, record: Any) -> float:
        return float(text != "hang" or free.wait(20))

    async def later(text: str, record: Any) -> float:
        return hangs(text, record)

    texts = ["hang", "right", "right", "hang", *["right"] * 4, "hang", *["right"] * 3]
    reward = Reward("mine", later if blocks else hangs)
    scores = call_reward(reward, [completion(text) for text in texts], timeout=0.1, concurrency=2)
    free.set()
    assert list(scores.failures) == [0, 3, 8]
    assert [value for value in scores.values if value is not None] == [1.0] * 9


def test_a_coroutine_that_goes_on_when_it_is_cancelled_is_counted() -> None:
    free = asyncio.Event()

    async def swallows(text: str, record: Any) -> float:
        while text == "hang" and not free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await free.wait()
        return await asyncio.sleep(20 * (text == "late"), 1.0)

    completions = [completion(text) for text in ("hang", "late", "right")]
    assert call_reward(Reward("mine", swallows), completions, timeout=0.1).values == [None, None, 1.0]
    assert hanging() == 1, "not the one that lets itself be cancelled"
    reward_runs._shared_loop().call_soon_threadsafe(free.set)
    wait_for_none()


def wait_for_none() -> None:
    until = time.perf_counter() + 5
    while hanging() and time.perf_counter() < until:
        time.sleep(0.01)
    assert hanging() == 0


def test_a_thread_that_hangs_keeps_its_own_completion_alone() -> None:
    free = threading.Event()

    def hangs(text: str, record: Any) -> float:
        return float(text == "hang" and free.wait(20))

    completions = [completion(text, latents=torch.zeros(2, 4)) for text in ("right", "hang", "right")]
    kept = [weakref.ref(one.latents) for one in completions]
    scores = call_reward(Reward("mine", hangs), completions, timeout=0.1)
    assert scores.values == [0.0, None, 0.0]
    del completions
    until = time.perf_counter() + 5
    while (alive := [one() is not None for one in kept]).count(True) > 1 and time.perf_counter() < until:
        time.sleep(0.01)  # the last thread is about to end
        gc.collect()
    free.set()
    assert alive == [False, True, False]


@pytest.mark.parametrize("later", [False, True])
def test_calls_that_hang_for_ever_are_counted_and_bounded(later: bool) -> None:
    """Each holds a thread; where it is a coroutine, that of the event loop which it blocks."""
    free = threading.Event()

    def hangs(text: str, record: Any) -> float:
        free.wait(20)
        return 1.0

    async def blocks(text: str, record: Any) -> float:
        return hangs(text, record)

    reward = Reward("mine", blocks if later else hangs)
    for number in range(2, MOST_HANGING + 1, 2):
        assert call_reward(reward, [completion()] * 2, timeout=0.02, concurrency=1).values == [None] * 2
        assert hanging() == number
    (error, _) = call_reward(reward, [completion()] * 2, timeout=0.02, concurrency=1).failures.values()
    assert re.search(f"not called, for {MOST_HANGING} calls .* async def", str(error))
    assert hanging() == MOST_HANGING
    free.set()
    wait_for_none()
    assert call_reward(reward, [completion()], timeout=9.0).values == [1.0]
