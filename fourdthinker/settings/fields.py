"""Classes and types of settings, and sections that are declared elsewhere, as dataclasses with help texts."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)

from fourdthinker.errors import ConfigError
from fourdthinker.settings.messages import explain, problem_text, unknown


def number(value: Any) -> Any:
    """`value`, or the number that a text such as "1e-6" writes. YAML 1.1 reads that as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{value!r} holds NUL, which no path or name can; remove it")
    return value


Int = Annotated[int, Strict()]
Float = Annotated[float, BeforeValidator(number), Strict(), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), AfterValidator(_without_nul)]
Name = Annotated[str, Strict(), Field(min_length=1), AfterValidator(_without_nul)]  # of a file, a module, ...
Names = Annotated[list[Name], BeforeValidator(_one_or_more)]
_STRICT: dict[Any, Any] = {int: Int, float: Float, bool: Bool, str: Text}


class Section(BaseModel):
    """Settings that belong together. Unknown keys are refused; nothing can be changed after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class Settings(Section):
    """All settings of a job.

    Raises:
        ConfigError: when made from values that are unknown, of the wrong type, out of range, or contradict
            each other.
    """

    derived: ClassVar[dict[str, str]] = {}  # keys of sections that follow from another setting
    groups: ClassVar[dict[str, str]] = {}  # the first setting of each group of `--help` -> the group's title

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self))) from error


S = TypeVar("S", bound=Settings)


def make_config(
    cls: type[S], values: Mapping[Any, Any], *, origin: Callable[[str], str] = lambda key: ""
) -> S:
    """Settings from plain values, as YAML gives them.

    Args:
        cls: the class of settings.
        values: by key; nested sections are mappings.
        origin: where the value of a dotted key was given, for messages.

    Returns:
        The settings.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, or values that do not fit together.
    """
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{origin(str(key))}: the key {key!r} is no text; write `key: value` lines")
    try:
        return cls(**values)
    except ConfigError as error:
        if isinstance(error.__cause__, ValidationError):
            raise ConfigError(explain(error.__cause__, cls, origin)) from error
        raise


def make_section(cls: type[Any], value: Any, key: str, **derived: Any) -> Any:
    """The instance of a dataclass that a mapping describes; anything else is returned as it is.

    The dataclass checks ranges itself when it is made; names and types are checked here.

    Args:
        cls: the dataclass.
        value: what was given for the section.
        key: its name, for messages.
        derived: values of fields that are not given.

    Returns:
        The instance, or `value`.

    Raises:
        ValueError: an unknown field, a wrong type, or what the dataclass raises.
    """
    if not isinstance(value, Mapping):
        return value
    hints = typing.get_type_hints(cls)
    for name in value:
        if name not in hints:
            raise ValueError(unknown(f"{key}.{name}", [f"{key}.{known}" for known in hints]))
    return cls(**derived | {name: _checked(hints[name], v, f"{key}.{name}") for name, v in value.items()})


def _checked(hint: Any, value: Any, key: str) -> Any:
    try:
        return TypeAdapter(_strict(hint)).validate_python(value)
    except ValidationError as error:
        raise ValueError(problem_text(key, dict(error.errors(include_url=False)[0]))) from error


def _strict(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [_strict(member) for member in typing.get_args(hint)]
        return members[0] | members[1]
    return _STRICT.get(hint, hint)


def field_bounds(field: dataclasses.Field[Any]) -> tuple[tuple[str, ...], list[str]]:
    """The choices of a field and its bounds in words, from its metadata."""
    bounds = {"minimum": ">= {}", "above": "> {}", "maximum": "<= {:g}"}
    found = [text.format(field.metadata[name]) for name, text in bounds.items() if name in field.metadata]
    return field.metadata.get("choices", ()), found
