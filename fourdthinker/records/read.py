"""Records: the lines of data that training and evaluation read, validated before anything else runs.

Forms of line are told apart by their keys: DIFT (`text_input`), 4DRL (`Question`), MLLM-4D
(`conversations`), our superset of the first two, and plain questions (`question`) that only want an answer.
What every form holds is in `Record`; `records/forms.py` says which keys a form has.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.files import PathLike, append_lines, atomic_writer
from fourdthinker.frames import FramePolicy, Frames, read_frames, read_images
from fourdthinker.records.forms import parse_line
from fourdthinker.records.line import MediaRoot, Record, options_in

__all__ = ["Record", "options_in", "read_media", "read_records", "write_records"]

LINE_BYTES = 32 << 20  # longer lines are not records
logger = logging.getLogger(__name__)


def read_records(
    path: PathLike,
    *,
    media_root: PathLike | None = None,
    kind: Literal["dift", "rl", "ask"] | None = None,
    on_bad_record: Literal["raise", "skip"] = "raise",
    rejected: PathLike | list[dict[str, str]] | None = None,
    check: Callable[[list[Record]], Sequence[str | None]] | None = None,
    left_out: Collection[str] | None = None,
) -> list[Record]:
    """Read a JSONL file (UTF-8, one object a line; blank lines are ignored) and validate every line of it.

    Args:
        path: the file.
        media_root: the folder that relative paths start from and that no path may leave, by `..`, by an
            absolute path or by a link; None: the folder of the file.
        kind: what the records are for: "dift" needs text_output, "rl" a right answer, "ask" nothing but the
            question. None: as each line says.
        on_bad_record: "raise" at the first bad line, or "skip" bad lines; each is logged.
        rejected: a JSONL file, or a list, that skipped lines are appended to, as {"where", "reason", "line"}.
        check: checks the valid records further, their media for example; gives for each of them what is
            wrong, or None. What is wrong makes its line a bad one.
        left_out: lines that an earlier reading skipped, and this one does too, without a word. Files of the
            others may be gone or empty by now. None: there was no earlier one.

    Returns:
        The valid records, at least one, in the order of the file.

    Raises:
        RecordError: names file, line, key and remedy: malformed JSON, missing or unknown key, wrong type,
            missing or empty file, path outside media_root, placeholders that do not match the overlays, an
            answer that is no option, control tokens in text, what `check` finds; and when no record is left.
    """
    if on_bad_record not in ("raise", "skip"):
        raise ConfigError(f"on_bad_record is {on_bad_record!r}; choose 'raise' or 'skip'")
    if kind not in (None, "dift", "rl", "ask"):
        raise ConfigError(f"kind is {kind!r}; choose 'dift', 'rl', 'ask' or None")
    name = os.fspath(path)
    if "\0" in name or not name:
        raise RecordError(f"{name!r} is no path of a record file; give a file of JSON lines")
    root = MediaRoot(
        os.path.dirname(os.path.abspath(name)) if media_root is None else media_root,
        complete=left_out is None,
    )
    records: list[Record] = []
    bad: list[dict[str, str]] = []

    def reject(where: str, reason: RecordError, line: str) -> None:
        if on_bad_record == "raise":
            raise reason
        logger.warning("skipped: %s", reason)
        bad.append({"where": where, "reason": str(reason), "line": line})

    texts: dict[str, str] = {}
    for where, line in _lines(name):
        text = line.decode("utf-8", errors="replace")
        if left_out and text in left_out:
            continue
        try:
            records.append(parse_line(line, where, root, kind))
            if check is not None:
                texts[where] = text
        except RecordError as error:
            reject(where, error, text)
    if check is not None:
        good = []
        for record, problem in zip(records, check(records), strict=True):
            if problem is None:
                good.append(record)
            else:
                reject(record.where, RecordError(problem), texts[record.where])
        records = good
    if isinstance(rejected, list):
        rejected += bad
    elif bad and rejected is not None:
        append_lines(rejected, bad)
    if not records:
        found = f"all {len(bad)} lines were rejected" if bad else "the file is empty"
        raise RecordError(f"{name}: no records: {found}; give a file with one JSON object a line")
    return records


def read_media(
    record: Record, policy: FramePolicy, *, out: Literal["uint8", "patches"] = "patches", **options: Any
) -> Frames | None:
    """Read the pictures that a record asks about.

    Args:
        record: names them.
        policy: which frames, of what size.
        out: "uint8" or "patches".
        options: those of `read_frames` and `read_images` alike: mean, std, device.

    Returns:
        The frames; None for a record of text only.

    Raises:
        VideoError: what cannot be read.
    """
    if record.video is not None:
        return read_frames(record.video, policy, start=record.start, end=record.end, out=out, **options)
    if not record.frames:
        return None
    timing: dict[str, Any] = {"separate": record.separate, "fps": record.fps, "seconds": record.seconds}
    return read_images(record.frames, policy, out=out, **timing, **options)


def write_records(path: PathLike, records: Iterable[Record]) -> None:
    """Write records as lines that `read_records` reads back, all or nothing: the file is replaced at once.

    Args:
        path: the file. Paths inside its folder become relative to it.
        records: what to write.

    Raises:
        RecordError: a record that the format cannot hold; the old file stays.
    """
    root = os.path.realpath(os.path.dirname(os.path.abspath(path)))  # as `read_records` finds it
    with atomic_writer(path) as file:
        for record in records:
            line = json.dumps(_to_dict(record, root), ensure_ascii=False, allow_nan=False)
            file.write((line + "\n").encode())


def _lines(name: str) -> Iterator[tuple[str, bytes]]:
    try:
        # A named pipe that nobody writes to is empty then, instead of waited for.
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            number = 0
            while line := file.readline(LINE_BYTES):
                number += 1
                where = f"{name}:{number}"
                if len(line) == LINE_BYTES:
                    raise RecordError(f"{where}: longer than {LINE_BYTES >> 20} MiB; not a file of records")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield where, line.rstrip(b"\r\n")
    except OSError as error:
        raise RecordError(
            f"{name}: the record file cannot be read ({error.strerror}); give a file of JSON lines"
        ) from error


def _to_dict(record: Record, root: str) -> dict[str, Any]:
    def relative(file: str) -> str:
        inside = os.path.relpath(os.path.abspath(file), root)
        return os.path.abspath(file) if inside.startswith("..") else inside

    line: dict[str, Any] = {"id": record.id}
    if record.turns:
        line |= _conversation(record, relative)
        line |= {"start": record.start, "end": record.end, "type": record.type}
        line |= {"fps": record.fps, "seconds": record.seconds}
        return {key: value for key, value in (line | record.extra).items() if value is not None}
    if record.separate and record.frames and record.kind == "dift" and len(record.frames) > 1:
        raise RecordError(
            f"{record.where}: separate pictures in a question have no place in this form of record"
        )
    frames = [relative(file) for file in record.frames or ()]
    video = None if record.video is None else relative(record.video)
    if record.kind == "dift":
        line |= {"text_input": record.question, "text_output": record.text_output}
        line |= {"video": video, "image_input": frames[0] if record.separate and frames else frames or None}
        line |= {"image_output": [relative(file) for file in record.images]}
        line |= {"options": record.options or None, "answer": record.answer}
    elif record.options and record.answer is None:
        raise RecordError(f"{record.where}: a 4DRL record has options and no answer; name the right one")
    else:
        key = "Correct" if record.options else "answer"
        line |= {"Question": record.question, **record.options, key: record.answer}
        videos = [relative(path) for kind, path in record.media if kind == "video"]
        images = [relative(path) for kind, path in record.media if kind == "image"]
        images += frames if record.separate else []
        line |= {"video_path": videos or video, "images": images or None}
        line |= {"frame_paths": None if record.separate else frames or None}
    line |= {"start": record.start, "end": record.end, "type": record.type, "system": record.system}
    line |= {"fps": record.fps, "seconds": record.seconds}
    # Absent, not null: null is no value of any key.
    return {key: value for key, value in (line | record.extra).items() if value is not None}


def _conversation(record: Record, relative: Callable[[str], str]) -> dict[str, Any]:
    """The keys of a conversation, in MLLM-4D's form."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    spoken = ([("system", record.system)] if record.system is not None else []) + record.turns
    files = [(kind, relative(path)) for kind, path in record.shown]
    if "frame" in dict(files):
        raise RecordError(f"{record.where}: frames of a clip have no place in a conversation; write a video")
    if len(record.turns) > 2 and (record.options or record.answer is not None):
        raise RecordError(
            f"{record.where}: options and answer have no place in a conversation of several turns"
        )
    return {
        "conversations": [{"from": names[role], "value": text} for role, text in spoken],
        "video": [path for kind, path in files if kind == "video"] or None,
        "image": [path for kind, path in files if kind == "image"] or None,
        "image_output": [relative(path) for path in record.images] or None,
        "options": record.options or None,
        "answer": record.answer if record.options else None,
    }
