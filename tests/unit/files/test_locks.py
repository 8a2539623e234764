"""One process writes a file or a folder; the second is refused by name."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from fourdthinker.errors import OutputError
from fourdthinker.files import JsonLines, check_output, locks, write_text
from fourdthinker.synth.journal import Journal


def test_the_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = JsonLines(path)
    for write in (JsonLines, check_output):
        with pytest.raises(OutputError, match="journal: another process is writing this file; wait"):
            write(path)
    first.append([{"id": 1}, {"id": 2}])
    first.keep([b'{"id": 2}'])  # the file is another one now, and still locked
    with pytest.raises(OutputError, match="another process"):
        JsonLines(path)
    first.close()
    check_output(path)
    JsonLines(path).close()


def test_a_file_replaced_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = tmp_path / "journal", locks.lock
    path.write_bytes(b'{"old": 1}\n')

    def replaced_first(handle: int, name: str, what: str) -> None:
        monkeypatch.setattr(locks, "lock", lock)
        write_text(path, '{"new": 1}\n')  # what another process does that holds the lock until now
        lock(handle, name, what)

    monkeypatch.setattr(locks, "lock", replaced_first)
    with JsonLines(path) as file:
        file.append([{"new": 2}])
    assert path.read_bytes() == b'{"new": 1}\n{"new": 2}\n'


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_system_without_locks_is_a_warning(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    path = tmp_path / "out"
    with JsonLines(path) if what == "file" else Journal(path):
        pass
    assert [
        f"{path}: this file system has no locks (No locks available); let no other process write this {what}"
    ] == [record.getMessage() for record in caplog.records]
    assert path.exists()
