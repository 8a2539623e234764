"""The settings as text: for `--help`, and for docs/settings.md."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fourdthinker.settings.fields import Settings, field_bounds
from fourdthinker.settings.messages import section_in

_BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}"}


@dataclass(frozen=True)
class Setting:
    """One setting in words.

    Attributes:
        key: dotted, as it is written on the command line.
        kind: what may be given: type, choices, bounds.
        default: as YAML writes it.
        text: the explanation.
    """

    key: str
    kind: str
    default: str
    text: str


def settings_of(config: type[Settings]) -> list[tuple[str, list[Setting]]]:
    """The settings of a class in words.

    Args:
        config: the class.

    Returns:
        (title, settings) of each group, in the order in which they are declared.
    """
    groups: list[tuple[str, list[Setting]]] = []
    for name, info in config.model_fields.items():
        if name in config.groups:
            groups.append((config.groups[name], []))
        shown = _setting(name, info)
        groups[-1][1].extend(setting for setting in shown if setting.key not in config.derived)
    return groups


def _setting(name: str, info: FieldInfo) -> list[Setting]:
    section = section_in(info.annotation)
    default = info.get_default(call_default_factory=True)
    text = info.description or ""
    if section is None:
        return [Setting(name, _kind(info.annotation, _bounds(info)), _yaml(default), text)]
    inner = _inner(section, default)
    head = [Setting(name, "a section, below", _yaml(default), text)] if default is None else []
    return head + [Setting(f"{name}.{s.key}", s.kind, s.default, s.text) for s in inner]


def _inner(section: type[Any], default: Any) -> list[Setting]:
    if issubclass(section, BaseModel):
        return [s for name, info in section.model_fields.items() for s in _setting(name, info)]
    hints = typing.get_type_hints(section)
    settings = []
    for f in dataclasses.fields(section):
        choices, bounds = field_bounds(f)
        kind = ", ".join(choices) if choices else _kind(hints[f.name], bounds)
        value = f.default if default is None else getattr(default, f.name)
        settings.append(Setting(f.name, kind, _yaml(value), _sentence(f.metadata["help"])))
    return settings


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _kind(annotation: Any, bounds: list[str]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_kind(a, bounds) for a in arguments if a is not type(None)]
        return " or ".join([*members, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is typing.Annotated:
        return _kind(arguments[0], bounds)
    if origin in (list, tuple):
        inner = _kind(arguments[0], [])
        return f"list of {inner}" if typing.get_origin(arguments[0]) is Literal else f"list of {inner}s"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    kind = "mapping" if origin is dict else names.get(annotation, str(annotation))
    return " ".join([kind, " and ".join(bounds)]).strip()


def _bounds(info: FieldInfo) -> list[str]:
    found = [(limit, getattr(m, limit)) for m in info.metadata for limit in _BOUNDS if hasattr(m, limit)]
    return [_BOUNDS[limit].format(value) for limit, value in found]


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


def settings_text(config: type[Settings]) -> str:
    """All settings for a terminal, wrapped to its width.

    Args:
        config: the class.

    Returns:
        Lines of text.
    """
    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    lines = ["settings, with their defaults:"]
    for title, settings in settings_of(config):
        lines += ["", f"{title}:"]
        for setting in settings:
            lines += _wrapped(f"{setting.key} = {setting.default}", width, 2, 10)
            lines += _wrapped(f"{setting.text} ({setting.kind})", width, 6, 6)
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: int, other: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def settings_tables(groups: list[tuple[str, list[Setting]]]) -> list[str]:
    """The tables of docs/settings.md for some groups of settings.

    Args:
        groups: as `settings_of` returns them.

    Returns:
        Lines of Markdown, one table a group.
    """
    lines = []
    for title, settings in groups:
        lines += ["", f"### {title}", "", "| setting | default | values | |", "|---|---|---|---|"]
        lines += [f"| `{s.key}` | `{s.default}` | {s.kind} | {s.text} |" for s in settings]
    return lines
