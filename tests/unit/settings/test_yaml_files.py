"""YAML of settings: one mapping, no key twice, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.settings import origins, parse_yaml, read_yaml


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 3\nmedia: {rate: 2}\n")
    assert read_yaml(path) == {"steps": 3, "media": {"rate": 2}}
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "the key 'a' stands in lines 1 and 2; keep one"),
        ("b: {a: 1, a: 2}\n", "the key 'a' stands twice; keep one"),
        ("- 1\n", "holds a list; write `key: value` lines"),
        ("a: [\n", "not valid YAML"),
        ("a: 2026-13-40\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_what_is_no_file_of_settings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"give a readable file|not a regular file"):
            read_yaml(path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="cannot read the config"):
        read_yaml(tmp_path / "latin.yaml")


def test_values_of_the_command_line() -> None:
    assert parse_yaml("[1, two]") == [1, "two"]
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        parse_yaml("[1")


def test_where_a_value_stands() -> None:
    origin = origins("a.yaml", {"media.rate", "data"})
    assert origin("media.rate") == origin("data[0]") == "command line"
    assert origin("media") == origin("steps") == "a.yaml"
    assert origin("") == "a.yaml and command line"
    assert origins(None, set())("steps") == "command line"
