"""JSON of others: what is no JSON, too deep or out of range is one ValueError; files are named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.files import parse_json, read_json_object
from fourdthinker.files.reading_json import DEEPEST

WRONG = {
    b'{"a": 1': "Expecting ',' delimiter",
    b"": "Expecting value",
    b"\xff": "not UTF-8 at byte 0; save the file as UTF-8",
    '{"a": 1}'.encode("utf-16"): "not UTF-8 at byte 0",
    b'{"a": "x\0y"}': "Invalid control character",
    b"[NaN]": "NaN is no JSON number",
    b"[-Infinity]": "-Infinity is no JSON number",
    b"[1e999]": "the number 1e999 is beyond the range of a float",
    b"[1" + b"0" * 400 + b"]": "an integer of 401 digits is beyond the range of a float",
    b"[" * 200_000: "nested deeper than 100 levels",
    b"[" * 200_000 + b"]" * 200_000: "nested deeper than 100 levels",
    b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1): "nested deeper than 100 levels",
}


@pytest.mark.parametrize(("data", "message"), WRONG.items(), ids=[message[:24] for message in WRONG.values()])
def test_what_is_wrong_is_said_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"[" * DEEPEST + b"]" * DEEPEST, b"[" + b"[]," * 500 + b"1]", b'"[[[["'])
def test_wide_or_deep_enough_is_read(data: bytes) -> None:
    assert parse_json(data) == parse_json(data.decode())


def test_what_is_asked_for() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1, "a": 2.5}') == {"a": 2.5}
    with pytest.raises(ValueError, match="key 'a' appears twice"):
        parse_json('{"a": 1, "a": 2}', unique_keys=True)
    assert parse_json("[-1e999, NaN, 5]", finite=False) == [
        -math.inf,
        pytest.approx(math.nan, nan_ok=True),
        5,
    ]
    assert parse_json(str(10**300)) == 10**300
    assert parse_json("-1e-999") == 0.0


def test_a_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}')
    assert read_json_object(path, "mend it") == {"a": [1]}
    for text, message in (
        ("[1]", "a JSON list, not an object"),
        ("[" * 5000, "malformed JSON .nested deeper"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=rf"^{path}: {message}.*; mend it$"):
            read_json_object(path, "mend it", error=CheckpointError)
    path.unlink()
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read \(No such file or directory\)"):
        read_json_object(path, "mend it")
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"a\.json is a named pipe, not a regular file"):
        read_json_object(path, "mend it", error=CheckpointError)
