"""Settings from YAML files and `key=value` arguments, and back into a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fourdthinker.errors import ConfigError
from fourdthinker.files import write_text
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_errors import explain
from fourdthinker.trainers.settings_help import settings_text

RESOLVED_CONFIG = "config.yaml"
# Besides what the parser finds: a date that does not exist, a number too long to read, endless nesting.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

C = TypeVar("C", bound=TrainConfig)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which no mapping has a key twice; of two, YAML itself takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in lines:
                    both = f"in lines {lines[key.value]} and {line}" if lines[key.value] != line else "twice"
                    raise yaml.YAMLError(f"the key {key.value!r} stands {both}; keep one")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def make_config(
    cls: type[C], values: Mapping[str, Any], *, origin: Callable[[str], str] = lambda key: ""
) -> C:
    """Settings from plain values, as YAML gives them.

    Args:
        cls: `DiftConfig` or `GrpoConfig`.
        values: by key; nested sections are mappings.
        origin: where the value of a dotted key was given, for messages.

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


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Settings from a YAML file and `key=value` overrides; `frames.fps=2` reaches into a nested section.

    Args:
        cls: `DiftConfig` or `GrpoConfig`.
        path: the file; None: overrides alone. The path of a DeepSpeed config in it is relative to its folder.
        overrides: what replaces values of the file. Values are YAML: `report_to=[]`, `cache_dir=null`.

    Raises:
        ConfigError: as `make_config`, and for a file that cannot be read or is not YAML; the message names
            the file or "command line", wherever the value stands.
    """
    values = {} if path is None else _read(path)
    given = [_override(text) for text in overrides]
    for names, value in given:
        section = values
        for name in names[:-1]:
            inner = section.get(name)
            section[name] = dict(inner) if isinstance(inner, dict) else {}
            section = section[name]
        section[names[-1]] = value

    def origin(key: str) -> str:
        ours = any(f"{key}.".startswith(f"{'.'.join(names)}.") for names, _ in given)
        everywhere = "command line" if path is None else str(path)
        if not key and path is not None and given:
            return f"{path} and command line"
        return "command line" if ours else everywhere

    return make_config(cls, values, origin=origin)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config ({error}); give an existing YAML file") from error
    except NOT_YAML as error:
        raise ConfigError(f"{path}: not valid YAML ({_one_line(error)})") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}; write `key: value` lines")
    values = dict(loaded or {})
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = str((Path(path).parent / values["deepspeed"]).resolve())
    return values


def _override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"argument {text!r}: write key=value, for example max_steps=100")
    try:
        return names, yaml.load(value, _UniqueKeys)
    except NOT_YAML as error:
        raise ConfigError(f"argument {text!r}: the value is not valid YAML ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse_command_line(
    cls: type[C], argv: Sequence[str] | None, *, program: str, description: str
) -> tuple[C, bool]:
    """What a command line asks for: `[--config FILE] [--dry-run] [key=value ...]`.

    Args:
        cls: `DiftConfig` or `GrpoConfig`.
        argv: the arguments; None: those of the process.
        program: how the command is called, for `--help`.
        description: what it does, for `--help`.

    Returns:
        The settings, and whether only the plan of the run is wanted.

    Raises:
        ConfigError: as `load_config`.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=settings_text(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the run would need, and end")
    arguments = parser.parse_args(argv)
    return load_config(cls, arguments.config, arguments.overrides), arguments.dry_run


def save_config(config: TrainConfig, folder: str | Path) -> Path:
    """Write the resolved settings to `folder`/config.yaml; `load_config` reads them back equal."""
    path = Path(folder) / RESOLVED_CONFIG
    write_text(path, resolved(config))
    return path


def resolved(config: TrainConfig) -> str:
    """The settings as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)
