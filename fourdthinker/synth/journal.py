"""What has been done: one SQLite file in the output folder, written by one process at a time.

A row is an item and a stage, with the key of everything that the result depends on. Its result (`payload`)
stands in the same row, so that a stage is done exactly when its result is there, whenever the process dies.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

from fourdthinker.errors import OutputError
from fourdthinker.files import PathLike, close_locked, make_folder, open_locked

State = Literal["done", "rejected", "failed"]
QUARANTINED = "quarantined"  # failed so often that it is left alone
NAME, LOCK = "journal.sqlite", "journal.lock"
_TABLES = """
CREATE TABLE IF NOT EXISTS stages (
    item TEXT NOT NULL, stage TEXT NOT NULL, key TEXT NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT NOT NULL, attempts INTEGER NOT NULL, computed INTEGER NOT NULL, seconds REAL NOT NULL,
    payload BLOB, PRIMARY KEY (item, stage));
CREATE INDEX IF NOT EXISTS by_source ON stages (source);
CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, digest TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """The last outcome of a stage of an item.

    Attributes:
        item: a source, a window of one, a clip or a question.
        stage: one of `settings.STAGES`.
        key: of everything that the result depends on.
        source: name of the source that the item is of.
        state: "done", "rejected" (the content is of no use) or "failed" (may be tried once more).
        reason: why it was rejected, or the error.
        attempts: how often it has failed under this key.
        computed: how often it has been done under this key; 1, unless work was repeated.
        seconds: that the last attempt took.
        payload: the result.
    """

    item: str
    stage: str
    key: str
    source: str
    state: State
    reason: str = ""
    attempts: int = 0
    computed: int = 0
    seconds: float = 0.0
    payload: bytes | None = None


class Journal:
    """The journal of an output folder, locked for this process until it is closed.

    Every method raises OutputError where the disk is full or the file damaged.
    """

    def __init__(self, folder: PathLike) -> None:
        """Open or create it.

        Raises:
            OutputError: another run has the folder, it cannot be written, or the file is no journal.
        """
        self.folder = make_folder(folder)
        self._lock = open_locked(self.folder / LOCK, str(folder), "folder")
        try:
            # autocommit: every statement is a transaction of its own
            self._database = sqlite3.connect(self.folder / NAME, isolation_level=None)
            # A killed process loses nothing by it; a machine without power perhaps the last rows.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_TABLES)
        except sqlite3.Error as error:
            close_locked(self._lock)
            raise OutputError(
                f"{self.folder / NAME}: not a journal, or not writable ({error}); name another folder"
            ) from error

    def _execute(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        """Run one statement, and return the rows that it finds; OutputError where it cannot be run."""
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.folder / NAME}: cannot be read or written ({error}); free space on its disk, or mend "
                "it, and start the same command again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back."""
        self._database.close()
        close_locked(self._lock)

    def find(self, item: str, stage: str, key: str) -> Entry | None:
        """The outcome of a stage under a key.

        Args:
            item: of the stage.
            stage: its name.
            key: that it must have; an outcome of other content or settings is none.

        Returns:
            The entry, or None.
        """
        rows = self._execute(
            "SELECT * FROM stages WHERE item = ? AND stage = ? AND key = ?", (item, stage, key)
        )
        return _entry(rows[0]) if rows else None

    def record(self, entry: Entry, *, tried: bool = True) -> Entry:
        """Note an outcome, and return it with `attempts` and `computed`, which are counted here.

        Args:
            entry: the outcome.
            tried: whether a failure counts as an attempt.

        Returns:
            The entry with its counts.
        """
        before = self.find(entry.item, entry.stage, entry.key)
        attempts = (before.attempts if before else 0) + (tried and entry.state == "failed")
        computed = (before.computed if before else 0) + (entry.state == "done")
        values = (entry.item, entry.stage, entry.key, entry.source, entry.state, entry.reason, attempts)
        self._execute(
            "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, computed, entry.seconds, entry.payload),
        )
        return replace(entry, attempts=attempts, computed=computed)

    def of_source(self, source: str) -> list[Entry]:
        """All entries of a source, its windows, clips and questions, in the order of their items."""
        rows = self._execute("SELECT * FROM stages WHERE source = ? ORDER BY item, stage", (source,))
        return [_entry(row) for row in rows]

    def digest(self, path: str, size: int, modified: int) -> str | None:
        """The digest of a file that was noted with the same size and time of modification (nanoseconds)."""
        rows = self._execute(
            "SELECT digest FROM digests WHERE path = ? AND size = ? AND modified = ?", (path, size, modified)
        )
        return str(rows[0][0]) if rows else None

    def note_digest(self, path: str, size: int, modified: int, digest: str) -> None:
        """Keep a digest, so that an unchanged file is not read for it in the next run."""
        self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", (path, size, modified, digest))


def _entry(row: tuple[object, ...]) -> Entry:
    return Entry(*row)  # type: ignore[arg-type]  # the columns, in the order of the fields
