"""What a benchmark is, and how its rows become records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourdthinker.answers import normalised
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.benchmarks.tables import TableRow, find_table, read_rows
from fourdthinker.evaluate.numeric import parse_number
from fourdthinker.records import Record, letter_of

NUMBER = (
    "There are no options to choose from. Put the answer, as a number in digits and nothing else, between "
    "<answer> and </answer>."
)


@dataclass
class BenchmarkData:
    """The questions of a benchmark that were found.

    Attributes:
        records: what is asked; a video that is missing stays named, and its questions count as wrong.
        left_out: id of a question that is not asked -> why: known to be bad, there already, or there with
            another answer.
        files: that were read.
        twins: id -> name of the set of questions that are one question under symmetry (DSI-Bench).
        notes: what differs from the benchmark as published.
    """

    records: list[Record] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    twins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The media that are named and not there, each once."""
        named = [r.video for r in self.records if r.video is not None and not os.path.exists(r.video)]
        return list(dict.fromkeys(named))


Read = Callable[["Collector", Path], None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can be read.

    Attributes:
        name: on the command line.
        title: what its authors call it.
        source: where it is published.
        needs: the files it is read from.
        read: puts the questions of a folder (or file) into a collector.
        types: kinds of question, in the authors' order; (): as found.
        tasks: type -> the task it is part of: the authors report tasks, and the mean of a task's types.
        counts: numbers of questions of its published versions; (): not known.
        known_bad: id -> what is wrong with the question.
    """

    name: str
    title: str
    source: str
    needs: str
    read: Read
    types: tuple[str, ...] = ()
    tasks: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    known_bad: Mapping[str, str] = field(default_factory=dict)


class Collector:
    """Makes records of rows, and keeps apart what cannot be asked."""

    def __init__(self, benchmark: Benchmark, media: Path) -> None:
        """Collect questions whose media lie in `media`.

        Raises:
            ConfigError: that is no folder.
        """
        if not media.is_dir():
            raise ConfigError(f"{media} is no folder; name the one that holds the videos as --media-root")
        self.benchmark = benchmark
        self.media = Path(os.path.realpath(media))
        self.data = BenchmarkData()
        self._ids: dict[str, str] = {}

    def rows(self, path: Path, *patterns: str) -> Iterator[TableRow]:
        """The rows of the benchmark's table, of all its parts (`tables.find_table`), which is noted.

        Yields:
            Row by row.

        Raises:
            ConfigError: it is not there, or a part of it.
            RecordError: it cannot be read.
        """
        files = find_table(path, patterns, self.benchmark.needs)
        self.data.files += files
        for file in files:
            yield from read_rows(file)

    def video(self, row: TableRow, *names: str) -> str:
        """The path of a video: of these names within the media the first that is there, else the first.

        Raises:
            RecordError: a name leads out of the media.
        """
        paths = [self._within(row, name) for name in names]
        return next((path for path in paths if os.path.exists(path)), paths[0])

    def choice(
        self, row: TableRow, id: str, question: str, options: Mapping[str, str], answer: str, **media: Any
    ) -> None:
        """Add a multiple-choice question.

        Args:
            row: that it stands in.
            id: unique within the benchmark.
            question: without the options.
            options: letter to text (`records.options_of`).
            answer: letter of the right one.
            **media: `video` or `frames`, and `type`, of the record.
        """
        record = Record("rl", id, question, dict(options), answer, where=row.where, **media)
        _check_characters(record)
        reason = self.benchmark.known_bad.get(id)
        text = normalised(options[answer])
        if reason is None and sum(normalised(option) == text for option in options.values()) > 1:
            reason = f"the right text {options[answer]!r} stands under two letters"
        self._add(record, reason)

    def number(self, row: TableRow, id: str, question: str, answer: Any, **media: Any) -> None:
        """Add a question with a number for its answer; other arguments as for `choice`.

        Raises:
            RecordError: the answer is no number.
        """
        target = parse_number(f"<answer>{answer}</answer>")
        if target is None:
            raise RecordError(f"{row.where}: the answer {answer!r:.60} is no number")
        record = Record("rl", id, f"{question}\n\n{NUMBER}", {}, target, where=row.where, **media)
        _check_characters(record)
        self._add(record, self.benchmark.known_bad.get(id))

    def _add(self, record: Record, reason: str | None) -> None:
        if record.id in self._ids:
            raise RecordError(
                f"{record.where}: id {record.id!r} is already used at {self._ids[record.id]}; is a file "
                "there twice?"
            )
        self._ids[record.id] = record.where
        if reason is None:
            self.data.records.append(record)
        else:
            self.data.left_out[record.id] = reason

    def _within(self, row: TableRow, name: str) -> str:
        try:
            path = os.path.realpath(self.media / name)
        except ValueError as error:  # a NUL, or half of a surrogate pair
            raise RecordError(f"{row.where}: {name!r:.60} is no path ({error}); mend it there") from error
        if os.path.commonpath([path, self.media]) != str(self.media):
            raise RecordError(f"{row.where}: {name!r} leads out of {self.media}; set --media-root above it")
        return path


def _check_characters(record: Record) -> None:
    if not record.id or not record.question.strip():
        raise RecordError(f"{record.where}: no id, or no question")
    try:
        "".join([record.id, record.question, record.type or "", *record.options.values()]).encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{record.where}: half of a surrogate pair, which is no character; write the text as UTF-8"
        ) from error


def answer_of(row: TableRow, value: Any, options: Mapping[str, str], *, text: bool = False) -> str:
    """The letter of the right option.

    Args:
        row: for errors.
        value: a letter; with `text` the text of an option, also as an integer.
        options: as `records.options_of` gives them.
        text: whether the file answers with texts, one of which may look like a letter.

    Returns:
        A letter.

    Raises:
        RecordError: no option is meant.
    """
    label = str(value).strip()
    if text:
        same = [letter for letter, option in options.items() if option == label]
        if same:
            return same[0]
    letter = letter_of(label, options)
    if letter is None:
        listed = ", ".join(f"{k}. {v}" for k, v in options.items())
        raise RecordError(f"{row.where}: the answer {label!r:.60} is no option; options are {listed}")
    return letter
