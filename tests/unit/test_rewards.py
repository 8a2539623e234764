"""The rewards, mostly on replies that try to pass for right without being right."""

from __future__ import annotations

import math
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from fourdthinker.answers import parse_answer
from fourdthinker.errors import ConfigError
from fourdthinker.rewards import accuracy_reward, format_reward, soft_overlong_reward, st_reward

MOVES = {"A": "dolly in", "B": "truck left", "C": "pan right", "D": "Tilt up"}


def record(**fields: Any) -> Any:
    return SimpleNamespace(**{"options": MOVES, "answer": "B", "where": "train.jsonl:7", **fields})


def test_accuracy_reward() -> None:
    assert accuracy_reward("<answer>truck left</answer>", record()) == 1.0
    assert accuracy_reward("<answer>A</answer>", record()) == 0.0
    assert accuracy_reward("B", record()) == 0.0
    with pytest.raises(ConfigError, match=r"train\.jsonl:7: .*options.*another reward"):
        accuracy_reward("<answer>B</answer>", record(options={}, answer=None))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>it moves</think><answer>B</answer>", 1.0),
        ("\n<think>\nit <|latent_start|><|latent_end|> moves\n</think>\n\n<answer> B </answer>\n", 1.0),
        ("<Think>x</THINK> <answer>B</answer>", 1.0),
        ("<think></think><answer>B</answer>", 1.0),
        ("<answer>B</answer>", 0.0),
        ("<think>x</think>", 0.0),
        ("<think>x</think><answer></answer>", 0.0),
        ("<think>x</think><answer>B</answer> and more", 0.0),
        ("well <think>x</think><answer>B</answer>", 0.0),
        ("<think>x</think> so <answer>B</answer>", 0.0),
        ("<think>x</think><think>y</think><answer>B</answer>", 0.0),
        ("<think>x</think><answer>A</answer><answer>B</answer>", 0.0),
        ("<think><answer>A</answer></think><answer>B</answer>", 0.0),
        ("<answer>B</answer><think>x</think>", 0.0),
        ("<think>x<answer>B</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_reward(text: str, score: float) -> None:
    assert format_reward(text, record()) == score


def test_hostile_text_takes_linear_time() -> None:
    began = time.perf_counter()
    for text in (
        "<think>" * 20_000,
        "<answer>" * 20_000 + "A" * 50_000,
        "<think>" + " \n" * 50_000,
        "(" * 100_000,
    ):
        assert format_reward(text, record()) == 0.0
        assert parse_answer(text, MOVES) is None
        assert parse_answer(f"<answer>{text}</answer>", MOVES) is None
        st_reward(text + "<thinking>" * 20_000, record(extra={"solution": [SOLUTION]}))
    assert time.perf_counter() - began < 2.0


SOLUTION = {
    "answer": "B",
    "camera_center": [[0.0, 0.0, 0.0], [1, 0, 0]],
    "object_center": [None, [2.0, 0, -1.5]],
}
STATE = (
    "Camera Center: [0, 0.0, 0]\nObject Center: [null, null, null]\n"
    "Camera Center: [1.0, 0, -0]\nObject Center: [2, 0, -1.5e0]\n"
)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (f"<thinking>{STATE}</thinking><answer>B</answer>", 1.0),
        (f"<thinking>{STATE}</thinking><answer>truck left</answer>", 1.0),
        (f"<thinking>{STATE}</thinking><answer>A</answer>", 0.4),
        (f"<thinking>{STATE}</thinking>", 0.2 * 0.5 + 0.2),
        (f"<thinking>short</thinking>{STATE}<answer>B</answer>", 1.0 - 0.2 * 0.1),
        (
            f"<think>{STATE.replace('-1.5e0', '1.5')}</think><answer>B</answer>",
            0.9 + 0.1 * math.exp(-3.0),
        ),
        (f"<think>{STATE}{STATE}</think><answer>B</answer>", 0.8),
        ("<think>no centres, but long enough</think><answer>B</answer>", 0.2 * 0.6 + 0.6),
        ("<think>Camera Center: [1, 2] Camera Center: [1,2]</think>", 0.2 * 0.1),
        ("Camera Center: [9e999, 0, 0] Camera Center: [1, 0, 0]", 0.0),
        ("", 0.0),
    ],
)
def test_st_reward(text: str, score: float) -> None:
    assert st_reward(text, record(extra={"solution": [SOLUTION]})) == pytest.approx(score)


def test_st_reward_of_open_questions_and_without_centres() -> None:
    solution = {"answer": "2.5 m", "camera_center": None, "object_center": []}
    open_question = record(options={}, answer=None, extra={"solution": [solution]})
    assert st_reward("<answer> 2.5  M</answer>", open_question) == pytest.approx(0.8)
    assert st_reward("<answer>2.5</answer> Object Center: [1, 2, 3]", open_question) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match=r"train\.jsonl:7: st_reward needs the key 'solution'"):
        st_reward("", record(extra={}))


def test_the_last_tokens_cost() -> None:
    cost = partial(soft_overlong_reward, "", record(), max_length=100, buffer=20)
    assert [cost(length=n) for n in (0, 80, 81, 90, 100)] == [0.0, 0.0, -0.05, -0.5, -1.0]
    for buffer in (0, 101):
        with pytest.raises(ConfigError, match="max_completion_length = 100"):
            soft_overlong_reward("", record(), 5, 100, buffer=buffer)
