"""The reward functions; `fourdthinker.answers` finds the answer in a completion.

A reward is any callable ``reward(text: str, record: Record) -> float``: ``text`` is one decoded completion
(without its end-of-sequence token), ``record`` the line of data its prompt was made from. One that has a
parameter named like an attribute of `Completion` gets that too: ``reward(text, record, length,
finish_reason)``. `load_reward` imports one by path.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourdthinker.answers import answer_text, normalised, parse_answer, thought_and_answer
from fourdthinker.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.records import Record

Reward = Callable[..., float]


@dataclass(frozen=True)
class Completion:
    """What a reward function can be told about a completion.

    Attributes:
        text: decoded, without its end-of-sequence token.
        record: the line of data that its prompt was made of.
        length: ids, the end-of-sequence token and latents included.
        finish_reason: "eos", "stop" or "length".
        tokens: int64 [length], the ids.
        latents: [N, H], its latent vectors, in order.
    """

    text: str
    record: Record
    length: int
    finish_reason: str
    tokens: Tensor
    latents: Tensor

    @property
    def extra(self) -> dict[str, Any]:
        """The keys of the record that have no meaning here: those that a line holds under `extra`."""
        return dict(self.record.extra.get("extra", {}))


ON_REQUEST = ("extra", "length", "finish_reason", "tokens", "latents")

_THINKING = re.compile(r"<(/?)think(?:ing)?>")
_CENTRE = re.compile(r"(Camera|Object) Center: \[([^\[\]]{0,200})\]")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def accuracy_reward(text: str, record: Record) -> float:
    """1.0 for the right option, else 0.0.

    Args:
        text: a decoded completion; `parse_answer` finds the option in it.
        record: the question, with options and the right answer.

    Returns:
        1.0 or 0.0.

    Raises:
        ConfigError: the record has no options or no answer, so nothing can be right.
    """
    if not record.options or record.answer is None:
        raise ConfigError(
            f"{record.where}: accuracy_reward needs options and an answer, the record has options "
            f"{sorted(record.options)} and answer {record.answer!r}; use another reward for open questions"
        )
    return 1.0 if parse_answer(text, record.options) == record.answer else 0.0


def format_reward(text: str, record: Record) -> float:
    """1.0 for ``<think>...</think>``, then ``<answer>...</answer>`` and nothing else; else 0.0.

    Each tag stands exactly once (whatever its case), only whitespace stands around the two parts, and the
    answer is not empty. Imagery blocks may stand inside the thinking.

    Args:
        text: a decoded completion.
        record: not used.

    Returns:
        1.0 or 0.0.
    """
    parts = thought_and_answer(text)
    return 1.0 if parts is not None and parts[1].strip() else 0.0


def st_reward(text: str, record: Record) -> float:
    """The spatio-temporal reward of MLLM-4D.

    0.2 format (half of it for a thinking and an answer part, 0.4 for naming both kinds of centre, 0.1 for
    thinking of more than 20 characters) + 0.6 the right answer + 0.1 camera centres + 0.1 object centres.
    Centres are `Camera Center: [x, y, z]` and `Object Center: [x, y, z]`, in the order of the solution,
    `null` ones left out on both sides; they score exp(-mean distance), 0 when their number differs, 1 when
    rightly there are none.

    Args:
        text: a decoded completion.
        record: the question, with a `solution`.

    Returns:
        A number in [0, 1].

    Raises:
        ConfigError: the record has no solution.
    """
    solution = record.extra.get("solution")
    if not solution:
        raise ConfigError(
            f"{record.where}: st_reward needs the key 'solution' with answer, camera_center and "
            "object_center; use another reward for records without it"
        )
    truth = solution[0]
    thinking, answer = _thinking(text), answer_text(text)
    form = 0.5 * (thinking is not None and answer is not None)
    form += 0.4 * ("Object Center: [" in text and "Camera Center: [" in text)
    form += 0.1 * (thinking is not None and len(thinking) > 20)
    if record.options and record.answer is not None:
        right = parse_answer(text, record.options) == record.answer
    else:
        right = answer is not None and normalised(answer) == normalised(truth["answer"])
    camera = _centres_score(text, "Camera", truth.get("camera_center"))
    objects = _centres_score(text, "Object", truth.get("object_center"))
    return 0.2 * form + 0.6 * right + 0.1 * camera + 0.1 * objects


def _thinking(text: str) -> str | None:
    """What stands between the first thinking tag and the next closing one."""
    opened: int | None = None
    for tag in _THINKING.finditer(text):
        if tag.group(1) and opened is not None:
            return text[opened : tag.start()].strip()
        if not tag.group(1) and opened is None:
            opened = tag.end()
    return None


def _centres_score(text: str, kind: str, truth: Any) -> float:
    said = [match.group(2) for match in _CENTRE.finditer(text) if match.group(1) == kind]
    points = [[float(n) for n in _NUMBER.findall(inside)] for inside in said if "null" not in inside]
    wanted = [point for point in truth or [] if point is not None]
    if [len(point) for point in points] != [len(point) for point in wanted]:
        return 0.0
    if not points:
        return 1.0
    distances = [math.dist(point, goal) for point, goal in zip(points, wanted, strict=True)]
    return math.exp(-sum(distances) / len(distances))


def load_reward(path: str) -> Reward:
    """Import a reward function.

    Args:
        path: ``"package.module:function"``.

    Returns:
        The function: of a decoded completion and its record, a finite number.

    Raises:
        ConfigError: the path has another form, the module cannot be imported, it has no such callable, or one
            that wants arguments which there are not.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"reward {path!r} is no import path; write it as 'package.module:function', "
            "for example 'fourdthinker.rewards:accuracy_reward'"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"reward {path!r}: cannot import {module_name!r} ({error}); "
            "install it or put its folder on PYTHONPATH"
        ) from error
    reward = getattr(module, name, None)
    if not callable(reward):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"reward {path!r}: {module_name!r} has no function {name!r}; "
            f"it has {', '.join(sorted(public)) or 'none'}"
        )
    _requested(path, reward)
    return reward


def _requested(name: str, reward: Reward) -> list[str]:
    """Which of `ON_REQUEST` a reward function has parameters for."""
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return []
    wanted = [p.name for p in parameters if p.name in ON_REQUEST]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    takes_two = len(positional) >= 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
    unknown = [n for n in required if n not in ON_REQUEST and n not in [p.name for p in positional[:2]]]
    if not takes_two or unknown or any(p.name in ON_REQUEST for p in positional[:2]):
        raise ConfigError(
            f"reward {name!r} takes {inspect.signature(reward)}; it is called as reward(text, record), with "
            f"any of {', '.join(ON_REQUEST)} besides that it has a parameter for"
        )
    return wanted


def call_reward(name: str, reward: Reward, completion: Completion, timeout: float | None = None) -> float:
    """The reward of one completion.

    Args:
        name: of the function, for messages.
        reward: the function.
        completion: what it is told of.
        timeout: seconds that it may take; None: any time.

    Returns:
        What the function returned, a finite number.

    Raises:
        ConfigError: it raised something, took too long, or gave no finite number; names reward and record.
    """
    asked = {wanted: getattr(completion, wanted) for wanted in _requested(name, reward)}
    result: list[Any] = []

    def call() -> None:
        try:
            result.append(reward(completion.text, completion.record, **asked))
        except Exception as error:  # noqa: BLE001  # a user's function may raise anything
            result.append(error)

    if timeout is None:
        call()
    else:  # a thread that hangs ends with the process
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(timeout)
    where = f"for record {completion.record.id!r} ({completion.record.where})"
    if not result:
        raise ConfigError(
            f"reward {name}: no answer within {timeout:g} seconds {where}; make it faster, or raise "
            "reward_timeout"
        )
    (value,) = result
    if isinstance(value, Exception):
        said = " ".join(str(value).split())
        raise ConfigError(
            f"reward {name}: {type(value).__name__} {where}: {said}; mend the function"
        ) from value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"reward {name} is {value!r} {where}; it must be a finite number")
    return number
