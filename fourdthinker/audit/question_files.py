"""Questions as an audit sees them: text alone, no media. One reader for every form of file.

Read are JSONL and JSON lists of records (DIFT, 4DRL, our superset, MLLM-4D, plain questions), VLM4D's and
Dyn-Bench's lists, DSR's object of lists by video, and its Parquet. What a file is, its keys say.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourdthinker.answers import answer_text
from fourdthinker.errors import RecordError, install
from fourdthinker.files import LETTERS, PathLike, parse_json, read_regular, write_bytes
from fourdthinker.records import letter_of, options_in, options_of, source_name

_QUESTION = ("question", "Question", "text_input")
_TYPE = ("type", "Type", "task_type", "question_type")
_ANSWER = ("answer", "Correct", "correct_answer")
_OPTIONS = ("options", "choices")
_VIDEOS = ("video", "video_path", "videoID")
_FRAMES = ("frame_paths", "frames", "image_input")
_IMAGES = ("images", "image")
_LETTERED = re.compile(r"\s*\(?([A-Z])[.):]\s+(.*)", re.DOTALL)


@dataclass(frozen=True)
class ChoiceQuestion:
    """One multiple-choice question.

    Attributes:
        id: its name.
        group: the video that it is about. Folds never part a group.
        type: kind of question, "" where the file names none.
        question: without the options.
        options: their texts, in the order of the letters.
        answer: index of the right one.
        index: number of the question in its file, questions without options counted.
    """

    id: str
    group: str
    type: str
    question: str
    options: tuple[str, ...]
    answer: int
    index: int

    @property
    def right(self) -> tuple[bool, ...]:
        """Of each option, whether it is right: two options with the text of the answer both are."""
        return tuple(text == self.options[self.answer] for text in self.options)


@dataclass(frozen=True)
class QuestionFile:
    """A file of questions.

    Attributes:
        path: the file.
        items: its multiple-choice questions.
        open_questions: how many questions have no options, and are not audited.
        rewrite: gives the bytes of the file without the questions of these numbers.
    """

    path: Path
    items: tuple[ChoiceQuestion, ...]
    open_questions: int
    rewrite: Callable[[set[int]], bytes]


def read_questions(path: PathLike) -> QuestionFile:
    """Read a file of questions. Media are not looked for.

    Args:
        path: JSONL, JSON or Parquet.

    Returns:
        Its questions.

    Raises:
        ConfigError: the file cannot be read.
        RecordError: names file, question and remedy: malformed JSON, no question text, an answer that is no
            option, fewer than two options, no multiple-choice question at all.
    """
    name, raw = os.fspath(path), read_regular(path)
    entries, rewrite = _entries(name, raw)
    items, without = [], 0
    for index, (where, group, data) in enumerate(entries):
        item = _item(data, where, group, index)
        if item is None:
            without += 1
        else:
            items.append(item)
    if not items:
        raise RecordError(
            f"{name}: no question has options; an audit needs multiple-choice questions "
            "(options, choices, or keys A, B, ...)"
        )
    return QuestionFile(Path(path), tuple(items), without, rewrite)


def write_without(file: QuestionFile, dropped: Iterable[int], out: PathLike) -> None:
    """Write a file of the same form without some questions; those without options stay.

    Args:
        file: what was read.
        dropped: `index` of the items that are left out.
        out: the file to write, replaced at once.
    """
    write_bytes(out, file.rewrite(set(dropped)))


Entry = tuple[str, str | None, dict[str, Any]]  # where, the video if the file's form says it, the object


def _entries(name: str, raw: bytes) -> tuple[list[Entry], Callable[[set[int]], bytes]]:
    if raw.startswith(b"PAR1"):
        return _parquet(name, raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{name}: not UTF-8 at byte {error.start}; save the file as UTF-8 JSON or JSONL"
        ) from error
    try:
        whole = parse_json(text, finite=False)
    except ValueError:  # JSONL; its lines say what is wrong
        return _lines(name, text)
    if isinstance(whole, list):
        entries: list[Entry] = [(f"{name}: question {i + 1}", None, data) for i, data in enumerate(whole)]
        return _objects(entries), lambda dropped: _dump([x for i, x in enumerate(whole) if i not in dropped])
    by_video = isinstance(whole, dict) and whole and all(isinstance(value, list) for value in whole.values())
    if by_video and "conversations" not in whole:  # which is a record, in a file of one line
        entries = [
            (f"{name}: {video}, question {i + 1}", video, data)
            for video, questions in whole.items()
            for i, data in enumerate(questions)
        ]
        return _objects(entries), lambda dropped: _dump(_without(whole, dropped))
    return _lines(name, text)


def _parquet(name: str, raw: bytes) -> tuple[list[Entry], Callable[[set[int]], bytes]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{name} is Parquet, which needs pyarrow, which is not installed; {install('eval')}"
        ) from error
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(raw))
        rows = table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise RecordError(f"{name}: no readable Parquet ({error}); fetch the file once more") from error

    def rewrite(dropped: set[int]) -> bytes:
        out = io.BytesIO()
        kept = [index for index in range(table.num_rows) if index not in dropped]
        pyarrow.parquet.write_table(table.take(kept), out)
        return out.getvalue()

    return [(f"{name}: row {i + 1}", None, row) for i, row in enumerate(rows)], rewrite


def _lines(name: str, text: str) -> tuple[list[Entry], Callable[[set[int]], bytes]]:
    entries: list[Entry] = []
    kept: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            entries.append((where, None, parse_json(line, finite=False)))
        except ValueError as error:
            raise RecordError(
                f"{where}: malformed JSON ({error}); give JSONL, a JSON list, or an object of lists by video"
            ) from error
        kept.append(line.rstrip("\r"))
    return _objects(entries), lambda dropped: "".join(
        f"{line}\n" for index, line in enumerate(kept) if index not in dropped
    ).encode()


def _objects(entries: list[Entry]) -> list[Entry]:
    for where, _, data in entries:
        if not isinstance(data, dict):
            raise RecordError(
                f"{where}: a JSON {type(data).__name__}, not an object; write one object {{...}}"
            )
    return entries


def _dump(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _without(whole: Mapping[str, list[Any]], dropped: set[int]) -> dict[str, list[Any]]:
    kept, index = {}, 0
    for video, questions in whole.items():
        kept[video] = [q for i, q in enumerate(questions, index) if i not in dropped]
        index += len(questions)
    return {video: questions for video, questions in kept.items() if questions}


def _item(data: dict[str, Any], where: str, group: str | None, index: int) -> ChoiceQuestion | None:
    if data.get("conversations") is not None:
        data = _plain(data, where)
    key = next((key for key in _QUESTION if key in data), None)
    if key is None or not isinstance(data[key], str):
        raise RecordError(f"{where}: no question; its text belongs under {' or '.join(_QUESTION)}")
    options = _options(data, where) or options_in(data[key])
    if not options:
        return None
    kind = next((str(data[key]) for key in _TYPE if data.get(key)), "")
    texts = tuple(options.values())
    return ChoiceQuestion(
        id=f"question {index + 1}" if data.get("id") is None else str(data["id"]),
        group=group or _group(data) or f"question {index + 1}",
        type=kind,
        question="\n".join(line for line in data[key].splitlines() if not _LETTERED.match(line)).strip(),
        options=texts,
        answer=_answer(data, options, where),
        index=index,
    )


def _plain(data: dict[str, Any], where: str) -> dict[str, Any]:
    """A record of MLLM-4D as a question with an answer."""
    turns = data["conversations"]
    if not isinstance(turns, list):
        raise RecordError(f"{where}: key 'conversations' is {turns!r:.60}; it must be a list of turns")
    turns = {str(turn.get("from")): turn.get("value") for turn in turns if isinstance(turn, dict)}
    question = turns.get("user") or turns.get("human")
    if not isinstance(question, str):
        raise RecordError(f"{where}: key 'conversations' holds no turn of the user; add it")
    found: dict[str, Any] = {**data, "question": question}
    solution = data.get("solution")
    if isinstance(solution, list) and solution and isinstance(solution[0], dict):
        found.setdefault("answer", solution[0].get("answer"))
    found.setdefault("text_output", turns.get("gpt") or turns.get("assistant"))
    return found


def _options(data: dict[str, Any], where: str) -> dict[str, str]:
    """Letter to text; {} where the object has none."""
    lettered = {letter: data[letter] for letter in LETTERS if letter in data}
    for given in (*(data.get(key) for key in _OPTIONS), lettered):
        texts = given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]
        if given != "" and any(text is not None for text in texts):  # all None: Parquet has a column of them
            return options_of(where, given)
    return {}


def _answer(data: dict[str, Any], options: dict[str, str], where: str) -> int:
    label = next((data[key] for key in _ANSWER if data.get(key) is not None), None)
    if label is None:
        label = answer_text(str(data.get("text_output") or ""))
    if label is None:
        raise RecordError(f"{where}: no answer; name the right option under {' or '.join(_ANSWER)}")
    texts = list(options.values())
    if str(label).strip() in texts:  # VLM4D answers with the text, and a text may be a letter or a number
        return texts.index(str(label).strip())
    letter = letter_of(str(label), options)
    if letter is None:
        listed = ", ".join(f"{k}. {v}" for k, v in options.items())
        raise RecordError(f"{where}: the answer {label!r:.60} is no option; options are {listed}")
    return list(options).index(letter)


def _group(data: dict[str, Any]) -> str | None:
    """What a question is about, whatever its file calls it, as `source_of` has it of a record."""
    videos, frames, images = (_paths(data, keys) for keys in (_VIDEOS, _FRAMES, _IMAGES))
    return source_name(data.get("source"), videos, [] if videos else frames, images)


def _paths(data: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """The paths under the first of these keys that holds some."""
    value: Any = next((data[key] for key in keys if data.get(key)), [])
    paths = value if isinstance(value, list) else [value]
    return paths if all(isinstance(path, str) for path in paths) else []
