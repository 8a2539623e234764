"""The journal of an evaluation: one JSON line per answered question, from which it can be resumed.

What a run is worth does not depend on how long it took or how often it was killed, so the seconds stand in a
file of their own: twice the same evaluation gives twice the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.results import AnsweredQuestion
from fourdthinker.files import JsonLines, PathLike, make_folder, parse_json


class Journal:
    """File of one evaluation; the first line holds the settings the answers belong to.

    Opening an existing journal reads what is there. A last line cut short by a kill is dropped, anything
    else that is no valid line is an error, and so are other settings than the present ones.
    """

    def __init__(self, path: PathLike | JsonLines, settings: dict[str, Any]) -> None:
        """Open or create the journal.

        Args:
            path: the file; one that is open stays open when the journal is closed.
            settings: what the answers belong to.

        Raises:
            ConfigError: the file holds something else than answers of this evaluation; it stays as it is.
            OutputError: it cannot be written, or another process is writing it.
        """
        self.settings = settings
        self.seconds = 0.0  # spent on what is in the file, by all runs together
        self.done: dict[str, AnsweredQuestion] = {}
        file = Path(path.name if isinstance(path, JsonLines) else path)
        self._stack = ExitStack()
        if isinstance(path, JsonLines):
            self._file = path
        else:
            make_folder(file.parent)
            self._file = self._stack.enter_context(JsonLines(path))
        try:
            self._times = self._stack.enter_context(JsonLines(file.with_name(f"{file.stem}.seconds.jsonl")))
            lines = self._file.lines()
            self._load(lines)
            self._file.keep(lines)
            times = self._times.lines() if lines else []  # [] of answers that were deleted
            self._load_times(times)
            self._times.keep(times)
            if not lines:
                self._file.append([{"settings": settings}])
        except BaseException:
            self._stack.close()
            raise

    @property
    def name(self) -> str:
        """Of the file, as it was given."""
        return self._file.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, questions: Iterable[AnsweredQuestion], seconds: float) -> None:
        """Append questions, and the seconds that answering them took, and flush to the disk."""
        new = list(questions)
        self._file.append(q.to_dict() for q in new)
        self._times.append([{"questions": len(new), "seconds": round(seconds, 6)}])
        self.seconds += seconds
        self.done.update((q.id, q) for q in new)

    def finish(self, ids: Iterable[str]) -> None:
        """Put the answers into the order of these ids, each once, as in a run that nothing interrupted."""
        first, *lines = self._file.lines()
        last = {parse_json(line)["id"]: line for line in lines}
        self._file.keep([first, *(last[id] for id in ids)])

    def _load(self, lines: Iterable[bytes]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                entry = parse_json(line)
                if number == 1:
                    self._check(entry["settings"])
                else:
                    question = AnsweredQuestion.from_dict(entry)
                    self.done[question.id] = question
            except ConfigError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self._file.name}:{number}: not a line of an evaluation journal ({error}); "
                    "delete the file to start anew"
                ) from error

    def _load_times(self, lines: Iterable[bytes]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                self.seconds += float(parse_json(line)["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{self._times.name}:{number}: not the seconds of an evaluation ({error!r}); "
                    "delete the file"
                ) from error

    def _check(self, found: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))  # tuples become lists, as in the file
        different = sorted(key for key in {*found, *now} if found.get(key) != now.get(key))
        if different:
            shown = "; ".join(f"{key}: {found.get(key)!r} there, {now.get(key)!r} now" for key in different)
            raise ConfigError(
                f"{self._file.name}: holds the answers of another evaluation ({shown}); "
                "delete it to start anew, or choose another folder"
            )
