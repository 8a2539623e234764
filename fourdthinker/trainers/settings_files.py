"""Settings from YAML files and `key=value` arguments, and back into a file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fourdthinker.errors import ConfigError
from fourdthinker.files import write_text
from fourdthinker.settings import make_config, origins, parse_yaml, read_yaml, settings_text
from fourdthinker.trainers.settings import TrainConfig

RESOLVED_CONFIG = "config.yaml"
C = TypeVar("C", bound=TrainConfig)


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

    keys = [".".join(names) for names, _ in given]
    return make_config(cls, values, origin=origins(path, keys))


def _read(path: str | Path) -> dict[str, Any]:
    values = read_yaml(path)
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = os.path.realpath(Path(path).parent / values["deepspeed"])
    return values


def _override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"argument {text!r}: write key=value, for example max_steps=100")
    try:
        return names, parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"argument {text!r}: {error}") from error


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
    arguments = parser.parse_intermixed_args(argv)
    return load_config(cls, arguments.config, arguments.overrides), arguments.dry_run


def save_config(config: TrainConfig, folder: str | Path) -> Path:
    """Write the resolved settings to `folder`/config.yaml; `load_config` reads them back equal."""
    path = Path(folder) / RESOLVED_CONFIG
    write_text(path, resolved(config))
    return path


def resolved(config: TrainConfig) -> str:
    """The settings as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)
