"""The rewards, mostly on replies that try to pass for right without being right."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourdthinker import rewards
from fourdthinker.answers import parse_answer
from fourdthinker.errors import ConfigError
from fourdthinker.rewards import (
    Completion,
    accuracy_reward,
    call_reward,
    format_reward,
    load_reward,
    st_reward,
)

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


def test_load_reward() -> None:
    assert load_reward("fourdthinker.rewards:format_reward") is format_reward
    for path in ("accuracy", "fourdthinker.rewards:", ":accuracy_reward", ""):
        with pytest.raises(ConfigError, match=r"package\.module:function"):
            load_reward(path)
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module'.*PYTHONPATH"):
        load_reward("no_such_module:reward")
    with pytest.raises(ConfigError, match=r"has no function 'acuracy'.*accuracy_reward"):
        load_reward("fourdthinker.rewards:acuracy")
    with pytest.raises(ConfigError, match="has no function '_TAG'"):
        load_reward(f"{rewards.__name__}:_TAG")


def completion(**fields: Any) -> Completion:
    values = {"text": "<answer>B</answer>", "record": record(id="r7", extra={"extra": {"depth": 2}})}
    values |= {
        "length": 3,
        "finish_reason": "length",
        "tokens": torch.arange(3),
        "latents": torch.zeros(4, 8),
    }
    return Completion(**values | fields)


def test_a_reward_gets_what_it_has_parameters_for() -> None:
    def everything(
        text: str, record: Any, *, extra: Any, length: int, finish_reason: str, tokens: Any, latents: Any
    ) -> float:
        assert (text, record.id, finish_reason) == ("<answer>B</answer>", "r7", "length")
        return extra["depth"] * 1000 + length * 100 + len(tokens) * 10 + len(latents)

    def some(text: str, record: Any, finish_reason: str, scale: float = 0.5) -> float:
        return scale * (finish_reason == "length")

    assert call_reward("everything", everything, completion()) == 2334
    assert call_reward("some", some, completion()) == 0.5
    assert call_reward("accuracy", accuracy_reward, completion(), 5.0) == 1.0
    assert completion(record=record(id="r", extra={})).extra == {}


def _none(text: str, record: Any) -> None:
    return None


def _raises(text: str, record: Any) -> float:
    raise KeyError("depth")


def _slow(text: str, record: Any) -> float:
    time.sleep(30)
    return 1.0


@pytest.mark.parametrize("timeout", [None, 0.2])
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (_none, "is None for record 'r7' (train.jsonl:7); it must be a finite number"),
        (_raises, ": KeyError for record 'r7' (train.jsonl:7): 'depth'; mend the function"),
        (lambda text, record: math.nan, "is nan for record 'r7' (train.jsonl:7); it must be a finite number"),
        (lambda text, record: "good", "is 'good' for record 'r7' (train.jsonl:7); it must be"),
    ],
)
def test_what_goes_wrong_in_a_reward_names_it_and_the_record(
    reward: Any, said: str, timeout: float | None
) -> None:
    with pytest.raises(ConfigError) as error:
        call_reward("mine", reward, completion(), timeout)
    assert str(error.value).startswith("reward mine")
    assert said in str(error.value)


def test_a_reward_that_hangs_is_named() -> None:
    began = time.perf_counter()
    with pytest.raises(
        ConfigError, match=r"reward mine: no answer within 0.2 seconds for record 'r7' \(train"
    ):
        call_reward("mine", _slow, completion(), 0.2)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("name", ["_one", "_unknown", "_swapped"])
def test_a_reward_that_wants_what_there_is_not_is_refused_when_it_is_loaded(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name}' takes \(.*called as reward\(text, record\), with any of ext"
    ):
        load_reward(f"tests.unit.test_rewards:{name}")


def _one(text: str) -> float:
    return 0.0


def _unknown(text: str, record: Any, *, colour: str) -> float:
    return 0.0


def _swapped(text: str, length: int, record: Any) -> float:
    return 0.0
