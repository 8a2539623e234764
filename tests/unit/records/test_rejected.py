"""The file of rejected lines is emptied only where it is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.records import empty_rejected, read_records

GOOD = b'{"where": "a:1", "reason": "r", "line": "x"}\n'


@pytest.mark.parametrize(
    "data", [b"", GOOD, GOOD + b'{"where": "a:2", "reason": "gone"}\n', GOOD + GOOD[:30]]
)
def test_what_a_reading_wrote_is_emptied(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.rejected.jsonl"
    empty_rejected(path)
    assert not path.exists()
    path.write_bytes(data)
    empty_rejected(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "data",
    [
        b'{"id": "a", "question": "?"}\n',
        GOOD + b'{"where": "a", "reason": "b", "line": "c", "id": 1}\n',
        b"[1]\n",
        b"half",
        b"no json\n",
    ],
)
def test_anything_else_stays(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.rejected.jsonl"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"rejected\.jsonl:[12]: no line of a file of rejected records"):
        empty_rejected(path)
    assert path.read_bytes() == data


def test_it_knows_what_reading_writes(tmp_path: Path) -> None:
    data, rejected = tmp_path / "data.jsonl", tmp_path / "rejected.jsonl"
    data.write_text('{"id": "a", "question": "?"}\nno json \\ "quoted"\n')
    read_records(data, kind="ask", on_bad_record="skip", rejected=rejected)
    assert rejected.read_bytes().count(b"\n") == 1
    empty_rejected(rejected)
    assert rejected.read_bytes() == b""
