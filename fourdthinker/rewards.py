"""The reward functions; `fourdthinker.answers` finds the answer in a completion.

A reward is any callable ``reward(text: str, record: Record) -> float``: ``text`` is one decoded completion
(without its end-of-sequence token), ``record`` the line of data its prompt was made from. One that has a
parameter named like an attribute of `Completion` gets that too: ``reward(text, record, length,
finish_reason)``. `fourdthinker.reward_calls` loads and calls them, batched and async ones too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourdthinker.answers import answer_text, normalised, parse_answer, thought_and_answer
from fourdthinker.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.records import Record


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
        max_length: ids that it could have had at most.
    """

    text: str
    record: Record
    length: int
    finish_reason: str
    tokens: Tensor
    latents: Tensor
    max_length: int

    @property
    def extra(self) -> dict[str, Any]:
        """The keys of the record that have no meaning here: those that a line holds under `extra`."""
        return dict(self.record.extra.get("extra", {}))


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
            f"{sorted(record.options)} and answer {record.answer!r}; judge open questions by another reward, "
            "such as fourdthinker.judges:HttpJudge, and name it in rewards in place of this one"
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


def soft_overlong_reward(
    text: str, record: Record, length: int, max_length: int, *, buffer: int = 128
) -> float:
    """The soft punishment of DAPO (arXiv 2503.14476): falls from 0 to -1 over the last tokens that there are.

    Args:
        text: not used.
        record: not used.
        length: tokens of the completion.
        max_length: that it may have (`max_completion_length`).
        buffer: tokens over which the reward falls.

    Returns:
        A number in [-1, 0].

    Raises:
        ConfigError: a buffer that no completion fits before.
    """
    if not 0 < buffer <= max_length:
        raise ConfigError(
            f"soft_overlong_reward: buffer is {buffer}; it must be 1 to max_completion_length = {max_length}"
        )
    return -min(max(length - max_length + buffer, 0) / buffer, 1.0)
