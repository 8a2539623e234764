"""YAML as settings are written in it: one mapping, no key twice."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from fourdthinker.errors import ConfigError

# Besides what the parser finds: a date that does not exist, a number too long to read, endless nesting.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


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


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """What a YAML file holds.

    Args:
        path: the file.

    Returns:
        Its mapping; {} for an empty file.

    Raises:
        ConfigError: a file that cannot be read, is not YAML, has a key twice, or holds something else.
    """
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); give a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot read the config ({error}); save it as UTF-8") from error
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: not valid YAML ({_one_line(error)})") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}; write `key: value` lines")
    return dict(loaded or {})


def parse_yaml(text: str) -> Any:
    """The value that a text writes in YAML.

    Args:
        text: as it stands behind `key=` on a command line.

    Returns:
        The value.

    Raises:
        ConfigError: no YAML, or a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except _NOT_YAML as error:
        raise ConfigError(f"the value is not valid YAML ({_one_line(error)})") from error


def origins(path: str | Path | None, given: Collection[str]) -> Callable[[str], str]:
    """Says where the value of a dotted key stands, for messages.

    Args:
        path: the file of settings; None: there is none.
        given: the dotted keys that the command line gives.

    Returns:
        key -> the file, "command line", or both for a problem of several values (the key "").
    """

    def origin(key: str) -> str:
        if path is None or any(f"{key.partition('[')[0]}.".startswith(f"{name}.") for name in given):
            return "command line"
        return f"{path} and command line" if not key and given else str(path)

    return origin


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
