"""Reward functions that hang, block, swallow or cancel: what that costs, and that it comes to an end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import threading
import time
import weakref
from typing import Any

import pytest
import torch

from fourdthinker.reward_calls import Reward, call_reward
from fourdthinker.reward_runs import MOST_HANGING, PATIENCE, Patience
from tests.unit.test_reward_calls import completion


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
    await asyncio.sleep(0.01)
    return 1.0


@pytest.mark.parametrize("misdeed", ["cancels", "exits", "swallows"])
def test_a_coroutine_that_misbehaves_costs_no_other(misdeed: str) -> None:
    completions = [completion(text) for text in ("right", misdeed, "right", "right")]
    began = time.perf_counter()
    together = 1 if misdeed == "swallows" else 2
    reward = Reward("mine", _misdeed)
    scores = call_reward(reward, completions, timeout=0.2, concurrency=together)
    assert time.perf_counter() - began < 10, "nobody waits for one that was cancelled"
    assert scores.values == [1.0, None, 1.0, 1.0]
    assert list(scores.failures) == [1]
    assert call_reward(reward, [completion("right")], timeout=9.0).values == [1.0]


def test_a_coroutine_that_blocks_its_loop_is_named_and_no_row_is_asked_again() -> None:
    free, asked = threading.Event(), []

    async def blocks(text: str, record: Any) -> float:
        asked.append(text)
        free.wait(20)
        return 1.0

    reward = Reward("judge", blocks)
    completions = [completion(str(row)) for row in range(32)]
    began = time.perf_counter()
    first = call_reward(reward, completions, timeout=0.3)
    assert time.perf_counter() - began < 0.3 * (PATIENCE + 2)
    assert first.values == [None] * 32
    for row in (0, 31):
        assert "blocks its event loop; do not block" in str(first.failures[row]).replace(":", ";")
    again = call_reward(reward, completions[:1], timeout=0.1)
    assert str(again.failures[0]).startswith("not called, for a call before blocks its event loop")
    quick = Reward("accuracy", lambda text, record: 1.0)
    assert call_reward(quick, completions[:1], timeout=9.0).values == [1.0], "others are called"
    free.set()
    wait_for_none(reward)
    assert asked == ["0"], "the others had not begun"
    assert call_reward(reward, [completion("later")], timeout=9.0).values == [1.0]


def test_a_coroutine_that_keeps_others_from_their_turn_is_named() -> None:
    asked = []

    async def blocks(text: str, record: Any) -> float:
        asked.append(text)
        time.sleep(0.3)
        return 1.0

    scores = call_reward(Reward("mine", blocks), [completion(str(row)) for row in range(8)], timeout=0.2)
    assert "blocks its event loop" in str(scores.failures[0])
    assert len(set(asked)) == len(asked), "none is asked again"


def test_a_coroutine_that_blocks_for_little_more_than_its_time_costs_its_own_row() -> None:
    async def blocks(text: str, record: Any) -> float:
        time.sleep(0.5 * (text == "slow"))
        return 1.0

    completions = [completion(text) for text in ("right", "slow", "right", "slow", "right")]
    scores = call_reward(Reward("mine", blocks), completions, timeout=0.4, concurrency=1)
    assert scores.values == [1.0, None, 1.0, None, 1.0]


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
    scores = call_reward(reward, [completion()] * 40, timeout=0.3, concurrency=1)
    free.set()
    assert scores.values == [None] * 40
    assert len(called) == PATIENCE
    assert "no answer within 0.3 seconds" in str(scores.failures[0])
    assert "not called, for rewards of this update gave no answer for 1.2 seconds" in str(scores.failures[39])


def test_calls_that_are_late_together_cost_their_time_once() -> None:
    async def late(text: str, record: Any) -> float:
        return await asyncio.sleep(20 * (text == "hang"), 1.0)

    completions = [completion(text) for text in ["hang"] * 16 + ["right"] * 16]
    scores = call_reward(Reward("mine", late), completions, timeout=0.3, patience=Patience(0.9))
    assert scores.values == [None] * 16 + [1.0] * 16


def test_slow_answers_cost_no_patience() -> None:
    reward = Reward("mine", lambda text, record: time.sleep(0.02))
    scores = call_reward(reward, [completion()] * 20, timeout=5.0, patience=Patience(0.2))
    assert not scores.failures


def test_the_rows_behind_one_that_hangs_are_called() -> None:
    free = threading.Event()

    def hangs(text: str, record: Any) -> float:
        return float(text != "hang" or free.wait(20))

    texts = ["hang", "right", "right", "hang", *["right"] * 4, "hang", *["right"] * 3]
    completions = [completion(text) for text in texts]
    scores = call_reward(Reward("mine", hangs), completions, timeout=0.3, patience=Patience())
    free.set()
    assert list(scores.failures) == [0, 3, 8]
    assert [value for value in scores.values if value is not None] == [1.0] * 9


def test_a_coroutine_that_goes_on_when_it_is_cancelled_is_counted() -> None:
    free = threading.Event()

    async def swallows(text: str, record: Any) -> float:
        while text == "hang" and not free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return await asyncio.sleep(20 * (text == "late"), 1.0)

    completions = [completion(text) for text in ("hang", "late", "right")]
    reward = Reward("mine", swallows)
    assert call_reward(reward, completions, timeout=0.1).values == [None, None, 1.0]
    assert reward.calls.hanging == 1, "not the one that lets itself be cancelled"
    free.set()
    wait_for_none(reward)


def wait_for_none(reward: Reward) -> None:
    until = time.perf_counter() + 5
    while reward.calls.hanging and time.perf_counter() < until:
        time.sleep(0.01)
    assert reward.calls.hanging == 0


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


def test_calls_that_hang_for_ever_are_counted_and_bounded_by_function() -> None:
    """Each holds a thread."""
    free = threading.Event()

    def hangs(text: str, record: Any) -> float:
        free.wait(20)
        return 1.0

    reward, other = Reward("mine", hangs), Reward("mine", lambda text, record: 1.0)
    for number in range(2, MOST_HANGING + 1, 2):
        scores = call_reward(reward, [completion()] * 2, timeout=0.02, patience=Patience())
        assert scores.values == [None] * 2
        assert reward.calls.hanging == number
    (error, _) = call_reward(reward, [completion()] * 2, timeout=0.02).failures.values()
    assert re.search(f"not called, for {MOST_HANGING} calls of it .* async def", str(error))
    assert reward.calls.hanging == MOST_HANGING
    assert call_reward(other, [completion()], timeout=9.0).values == [1.0], "others are called"
    free.set()
    wait_for_none(reward)
    assert call_reward(reward, [completion()], timeout=9.0).values == [1.0]


def test_the_loop_of_a_function_ends_with_it() -> None:
    async def right(text: str, record: Any) -> float:
        return 1.0

    reward = Reward("mine", right)
    assert call_reward(reward, [completion()], timeout=9.0).values == [1.0]
    (thread,) = [one for one in threading.enumerate() if one is reward.calls._runner.thread]  # type: ignore[union-attr]
    del reward
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
