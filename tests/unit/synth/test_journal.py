"""The journal: outcomes by key, attempts, the lock, damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fourdthinker.errors import OutputError
from fourdthinker.synth.journal import LOCK, NAME, Entry, Journal
from tests.full_disk import largest_file

HOLD = """
import sys
from fourdthinker.synth.journal import Journal
with Journal(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def entry(state="done", key="k", reason="", payload: bytes | None = b"x", item="clip") -> Entry:
    return Entry(item, "motion", key, "video", state, reason, payload=payload)


def test_an_outcome_is_found_under_its_key_alone(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record(entry())
        found = journal.find("clip", "motion", "k")
        assert found is not None
        assert (found.state, found.payload, found.computed, found.attempts) == ("done", b"x", 1, 0)
        assert journal.find("clip", "motion", "other settings") is None
    with Journal(tmp_path) as journal:
        assert journal.find("clip", "motion", "k") == found


def test_attempts_count_under_one_key(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for expected in (1, 2, 3):
            journal.record(entry("failed", reason="no memory", payload=None))
            found = journal.find("clip", "motion", "k")
            assert found is not None
            assert found.attempts == expected
        journal.record(entry("failed", key="new", reason="no memory", payload=None))
        fresh = journal.find("clip", "motion", "new")
        assert fresh is not None
        assert fresh.attempts == 1


def test_work_done_twice_is_counted(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record(entry())
        journal.record(entry())
        found = journal.find("clip", "motion", "k")
        assert found is not None
        assert found.computed == 2


def test_of_source_has_the_entries_of_that_source_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for item in ("b", "a"):
            journal.record(entry(item=item))
        journal.record(Entry("z", "motion", "k", "another video", "done"))
        assert [found.item for found in journal.of_source("video")] == ["a", "b"]


def test_a_digest_is_forgotten_when_the_file_changed(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.note_digest("/a", 5, 17, "d")
        assert journal.digest("/a", 5, 17) == "d"
        assert journal.digest("/a", 5, 18) is None
        assert journal.digest("/a", 6, 17) is None


def test_a_second_run_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process is writing this folder"):
            Journal(tmp_path)
        other.kill()
    with Journal(tmp_path):  # a killed run leaves no lock behind
        assert (tmp_path / LOCK).exists()


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(OutputError, match=NAME):
        Journal(tmp_path)
    with pytest.raises(OutputError, match=NAME):  # the lock has been given back
        Journal(tmp_path)


def test_a_full_disk_is_named_and_what_was_recorded_stays(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        kept = journal.record(entry(item="first"))
        said = f"{NAME}: cannot be read or written .*free space"
        with largest_file(100_000), pytest.raises(OutputError, match=said):
            journal.record(entry(item="large", payload=bytes(200_000)))
        assert journal.find("first", "motion", "k") == kept
        journal.record(entry(item="last"))  # there is space again
    with Journal(tmp_path) as journal:
        assert journal.find("last", "motion", "k") is not None


def test_a_journal_that_is_damaged_behind_its_head_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(200):
            journal.record(entry(item=str(number), payload=bytes(1_000)))
    size = (tmp_path / NAME).stat().st_size
    with open(tmp_path / NAME, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    with Journal(tmp_path) as journal, pytest.raises(OutputError, match=f"{NAME}: cannot be read"):
        journal.of_source("video")
