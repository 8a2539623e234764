"""The journal of an evaluation: one JSON line per answered question, so that a killed run goes on where it
was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.results import Question


class Journal:
    """Append-only file; the first line holds the settings the answers belong to.

    Opening an existing journal reads what is there. A last line cut short by a kill is dropped, anything
    else that is no valid line is an error, and so are other settings than the present ones.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.settings = settings
        self.done: dict[str, Question] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()
        if not self.path.exists() or self.path.stat().st_size == 0:
            append_lines(self.path, [{"settings": settings}])

    def add(self, questions: Iterable[Question]) -> None:
        """Append in one write and flush to the disk."""
        new = list(questions)
        append_lines(self.path, [q.to_dict() for q in new])
        self.done.update((q.id, q) for q in new)

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        # split at newlines only: str.splitlines would also split at U+2028, which JSON strings may hold
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check(entry["settings"])
                else:
                    question = Question.from_dict(entry)
                    self.done[question.id] = question
            except ConfigError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path}:{number}: not a line of an evaluation journal ({error}); "
                    "delete the file to start anew"
                ) from error

    def _check(self, found: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))  # tuples become lists, as in the file
        different = sorted(key for key in {*found, *now} if found.get(key) != now.get(key))
        if different:
            shown = "; ".join(f"{key}: {found.get(key)!r} there, {now.get(key)!r} now" for key in different)
            raise ConfigError(
                f"{self.path}: holds the answers of another evaluation ({shown}); "
                "delete it to start anew, or choose another folder"
            )


def append_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append a JSON line for each entry, in one write, and flush it to the disk."""
    data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        while data:  # one write in practice; a full disk raises, a short write goes on
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
