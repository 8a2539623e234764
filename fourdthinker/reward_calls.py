"""Reward functions of a run: loaded by import path with their arguments, and called for many completions.

There are four kinds: ``reward(text, record) -> float`` for one completion, ``reward(completions) -> list``
for all of a batch (its first parameter has this name), and both as ``async def``. An import path may also
name a class: its instance, made of the arguments, is the function. None is no opinion: others decide.

With a time-out, plain functions are called in a thread that lasts for one micro-batch. Each async one has an
event loop that lasts for the run: a client that belongs to a loop can be kept.

What goes wrong with one completion costs that completion and nothing else: it has no reward, and is counted.
Whether a run shall go on after that is the caller's choice, but for `RewardFailedError`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.reward_runs import PATIENCE, Calls, NoAnswerError, Patience
from fourdthinker.rewards import Completion

ON_REQUEST = ("extra", "length", "finish_reason", "tokens", "latents", "max_length")
_BATCH = "completions"  # the name of the first parameter of a batched function
LARGEST = 1e18  # size of a reward at most: float32 holds the sum of the squares of a group


class RewardFailedError(FourdError):
    """A reward could not be had for a completion, through no fault of the run: it is left out and counted."""


@dataclass(frozen=True)
class Reward:
    """A reward function that can be called.

    Attributes:
        name: of the function, for metrics and messages.
        function: as imported, or the instance of a class.
        arguments: passed to every call, by name.
        wanted: which of `ON_REQUEST` it has parameters for.
        batched: whether it takes all completions at a time.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    batched: bool = False

    @functools.cached_property
    def calls(self) -> Calls:
        """What makes the calls, and knows which of them hang."""
        return Calls(awaited=self.is_async)

    @property
    def is_async(self) -> bool:
        """Whether calls must be awaited."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004  # of an instance
        )

    def call(self, completions: Sequence[Completion]) -> Any:
        """The function's own result (or coroutine) for one completion, or where batched for several."""
        if self.batched:
            return self.function(list(completions), **self.arguments)
        (one,) = completions
        asked = {name: getattr(one, name) for name in self.wanted}
        return self.function(one.text, one.record, **asked, **self.arguments)


def reward_name(path: str) -> str:
    """What a reward is called in the settings, metrics and messages.

    Args:
        path: ``"package.module:function"``, or with another name behind it, ``"package.module:Class#name"``.

    Returns:
        The name.
    """
    function, _, name = path.rpartition(":")[2].partition("#")
    return name or function


def load_reward(path: str, arguments: Mapping[str, Any] | None = None) -> Reward:
    """Import a reward function.

    Args:
        path: ``"package.module:function"``, or of a class whose instances are called; ``"...#name"`` gives
            it another name, so that one function can be there twice.
        arguments: passed to every call by name; to a class when the instance is made.

    Returns:
        The function.

    Raises:
        ConfigError: the path has another form, the module cannot be imported, it has no such callable, or one
            that wants arguments which there are not, or does not take those that are given.
    """
    module_name, _, attribute = path.partition("#")[0].partition(":")
    name = reward_name(path)
    if not (module_name and attribute) or path.endswith("#"):
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
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"reward {path!r}: {module_name!r} has no function {attribute!r}; "
            f"it has {', '.join(sorted(public)) or 'none'}"
        )
    given = dict(arguments or {})
    if inspect.isclass(function):
        try:
            function, given = function(**given), {}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward_arguments.{name}: {' '.join(str(error).split())}") from error
        if not callable(function):
            raise ConfigError(
                f"reward {path!r} is a class whose instances cannot be called; give it __call__"
            )
    return _checked(path, name, function, given)


def _checked(path: str, name: str, function: Callable[..., Any], given: dict[str, Any]) -> Reward:
    """The reward with what it has parameters for; ConfigError where it takes something else."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return Reward(name, function, given)
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    batched = positional[:1] == [_BATCH]
    own = positional[: 1 if batched else 2]
    free = any(p.kind == p.VAR_KEYWORD for p in parameters)
    others = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    others = [p for p in others if p.name not in own]
    wanted = () if batched else tuple(p.name for p in others if p.name in ON_REQUEST and p.name not in given)
    missing = [p.name for p in others if p.default is p.empty and p.name not in (*wanted, *given)]
    takes_two = len(positional) >= 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if not (batched or takes_two) or missing or not set(own).isdisjoint(ON_REQUEST):
        raise ConfigError(
            f"reward {path!r} takes {inspect.signature(function)}; it is called as reward(text, record), "
            f"with any of {', '.join(ON_REQUEST)} besides that it has a parameter for, or as reward({_BATCH})"
            + (f"; reward_arguments.{name} can give {', '.join(missing)}" if missing else "")
        )
    unknown = [key for key in given if not free and key not in [p.name for p in others]]
    if unknown:
        raise ConfigError(
            f"reward_arguments.{name}.{unknown[0]}: {path} has no such parameter; it takes "
            f"{inspect.signature(function)}"
        )
    return Reward(name, function, given, wanted, batched)


@dataclass(frozen=True)
class Scores:
    """What a reward function said about R completions.

    Attributes:
        values: [R] its numbers; None where it had no opinion, or failed.
        failures: row -> what went wrong there.
    """

    values: list[float | None]
    failures: dict[int, Exception]


def call_reward(
    reward: Reward,
    completions: Sequence[Completion],
    *,
    timeout: float | None = None,
    concurrency: int = 16,
    patience: Patience | None = None,
    largest: float = LARGEST,
) -> Scores:
    """The rewards of R completions by one function.

    Args:
        reward: the function.
        completions: [R].
        timeout: seconds that a call may take, of a batched function one for all of them; None: any time.
        concurrency: calls of an async function that run at a time.
        patience: what calls without an answer may still take; None: `PATIENCE` time-outs.
        largest: size of a reward at most.

    Returns:
        Its numbers, and what went wrong. A call that does not come back is left to itself.
    """
    patience = patience or Patience(PATIENCE * (timeout or 0.0))
    rows_of = (
        [list(range(len(completions)))] if reward.batched else [[row] for row in range(len(completions))]
    )
    calls = [functools.partial(reward.call, [completions[row] for row in rows]) for rows in rows_of]
    if not completions:
        return Scores([], {})
    results = reward.calls.make(calls, timeout, concurrency, patience)
    values: list[float | None] = [None] * len(completions)
    failures: dict[int, Exception] = {}
    for rows, result in zip(rows_of, results, strict=True):
        split = _split(result, len(rows), largest, batched=reward.batched)
        for row, value in zip(rows, split, strict=True):
            if isinstance(value, Exception):
                failures[row] = value
            else:
                values[row] = value
    return Scores(values, failures)


def described(name: str, completion: Completion, error: Exception) -> str:
    """What went wrong, with the function, the record and the remedy.

    Args:
        name: of the function.
        completion: what it was called for.
        error: what it raised, or was found wrong about its result.

    Returns:
        One line.
    """
    where = f"for record {completion.record.id!r} ({completion.record.where})"
    said = " ".join(str(error).split())
    if isinstance(error, (RewardFailedError, NoAnswerError)):
        return f"reward {name}: {said} {where}"
    return f"reward {name}: {type(error).__name__} {where}: {said}; mend the function"


def _split(result: Any, rows: int, largest: float, *, batched: bool) -> list[Any]:
    """Of each row of a call its number, None, or an exception."""
    if isinstance(result, Exception):
        return [result] * rows
    if not batched:
        return [_number(result, largest)]
    if callable(listed := getattr(result, "tolist", None)):  # of numpy, torch or pandas
        result = listed()
    if not isinstance(result, Sequence) or isinstance(result, str) or len(result) != rows:
        length = f" of {len(result)}" if isinstance(result, Sequence) else ""
        wrong = TypeError(
            f"a {type(result).__name__}{length} for {rows} completions; return one number for each"
        )
        return [wrong] * rows
    return [_number(value, largest) for value in result]


def _number(value: Any, largest: float) -> float | Exception | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one of a tensor of several
        number = math.nan
    if not math.isfinite(number):
        return ValueError(f"{reprlib.repr(value)} is no finite number")
    if abs(number) <= largest:
        return number
    return ValueError(f"{number:g} is above {largest:g} in size (a weighted sum may have {LARGEST:g})")
