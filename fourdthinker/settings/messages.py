"""What is wrong with settings, in one line: the value, where it stands, and what to give instead."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_BOUNDS = {
    "greater_than_equal": ("ge", "at least {}"),
    "greater_than": ("gt", "a number above {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "a number below {}"),
}
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
    "dict_type": "`key: value` lines",
    "model_type": "`key: value` lines",
    "dataclass_type": "`key: value` lines",
}


def explain(
    error: ValidationError, settings: type[BaseModel], origin: Callable[[str], str] = lambda key: ""
) -> str:
    """All problems of an error in one line.

    Args:
        error: what pydantic raised.
        settings: the class whose values were wrong; its keys are what unknown ones are compared with.
        origin: where the value of a dotted key was given, such as a file; "" when nobody knows.
    """
    problems = []
    for problem in error.errors(include_url=False):
        key = _dotted(problem["loc"])
        where = origin(key)
        if problem["type"] == "extra_forbidden":
            text = unknown(key, keys(settings))
        else:
            text = problem_text(key, dict(problem))
        problems.append(f"{where}: {text}" if where else text)
    return "; ".join(problems)


def _dotted(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def problem_text(key: str, problem: dict[str, Any]) -> str:
    """One problem, as pydantic describes it, in our words."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    if kind == "value_error":
        text = str(context["error"])
        return f"{key}: {text}" if key and not text.startswith(key) else text
    if kind in _BOUNDS:
        name, wanted = _BOUNDS[kind]
        return f"{key} is {shown}; give {wanted.format(context[name])}"
    if kind == "literal_error":
        return f"{key} is {shown}; choose one of {_plain(context['expected'])}"
    if kind == "too_short":
        return f"{key} is empty; name at least one"
    if kind == "string_too_short":
        return f"{key} is empty; give a text"
    if kind == "finite_number":
        return f"{key} is {shown}; give a finite number"
    wanted = _KINDS.get(kind, problem["msg"])
    return f"{key} is {shown} ({type(value).__name__}); give {wanted}"


def _plain(choices: str) -> str:
    return choices.replace("'", "").replace(" or ", ", ")


def unknown(key: str, known: Sequence[str]) -> str:
    """Says that there is no such key, and which of the `known` ones are nearest."""
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near += [name for name in known if name.rpartition(".")[2] == key and name not in near]
    near = near or difflib.get_close_matches(key, known, n=3, cutoff=0.0)
    return f"unknown key {key!r}, the nearest are {', '.join(near)}"


def keys(settings: type[Any]) -> list[str]:
    """The dotted keys of a class of settings, those of nested sections included."""
    names: list[str] = []
    for name, annotation in fields_of(settings).items():
        names.append(name)
        if (inner := section_in(annotation)) is not None:
            names += [f"{name}.{key}" for key in keys(inner)]
    return names


def fields_of(settings: type[Any]) -> dict[str, Any]:
    """The settings of a section (a pydantic model or a dataclass) and their types."""
    if issubclass(settings, BaseModel):
        return {name: info.annotation for name, info in settings.model_fields.items()}
    return typing.get_type_hints(settings)


def section_in(annotation: Any) -> type[Any] | None:
    """The nested section that a setting of this type holds, or None."""
    for option in (annotation, *typing.get_args(annotation)):
        if isinstance(option, type) and (dataclasses.is_dataclass(option) or issubclass(option, BaseModel)):
            return option
    return None
