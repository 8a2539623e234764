"""One line of data: typed access to its keys, and confined access to the files it names.

Errors say where.
"""

from __future__ import annotations

import ast
import difflib
import math
import os
import re
import stat
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fourdthinker.answers import normalised
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.files import LETTERS, PICTURE_SUFFIXES, PathLike, parse_json
from fourdthinker.latents import IMAGERY

_CONTROL = re.compile(r"<\|[^<>|\s]{1,64}\|>")
_OPTION = re.compile(r"\s*([A-Z])[.)]\s+(\S.*?)\s*")
_LETTERED = re.compile(r"\s*\(?([A-Z])\s*[.):]\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"\(?([A-Za-z])\s*[.):]\s*(.*)", re.DOTALL)


@dataclass
class Record:
    """One line of data. Paths are absolute and inside the media root.

    The pictures asked about are `video`, `frames` or `media`, or there are none.

    Attributes:
        kind: "dift" (has text_output), "rl" or "ask" (only to be answered).
        id: name of the record.
        question: without placeholders; may or may not hold the options as lines.
        options: letter to text, possibly empty.
        answer: letter of the right option; of a question without options the text of its answer; or None.
        text_output: the reasoning to learn, with one `<output_image>` for each of `images`.
        video: path of a video.
        start, end: part of the video in seconds of its presentation time; None: its start, its end.
        frames: paths of picture files: a clip, or separate images where `separate` is true.
        separate: whether `frames` are separate images.
        fps: frames a second of a clip of `frames`; None: the frame policy's.
        seconds: time of each of `frames` of a clip, used instead of `fps`.
        images: paths of the overlays.
        turns: of a conversation to learn (or a question whose pictures do not all stand before it): (role,
            text) of "user" and "assistant" in turn. User texts hold `<video>` and `<image>`, one for each
            clip and picture; `question` and `text_output` are those of the first turns.
        media: (kind, path), "video" or "image", in the order of these, where `video` or `frames` cannot tell.
        type: kind of question.
        system: text of a system turn.
        extra: the other keys of the line.
        where: "file:line".
    """

    kind: str
    id: str
    question: str
    options: dict[str, str] = field(default_factory=dict)
    answer: str | None = None
    text_output: str | None = None
    video: str | None = None
    start: float | None = None
    end: float | None = None
    frames: list[str] | None = None
    separate: bool = False
    fps: float | None = None
    seconds: list[float] | None = None
    images: list[str] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)
    media: list[tuple[str, str]] = field(default_factory=list)
    type: str | None = None
    system: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = "record"

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Kind and path of each file that is asked about: "video", "frame" (one of a clip) or "image"."""
        if self.video is not None:
            return [("video", self.video)]
        if self.frames:
            return [("image" if self.separate else "frame", path) for path in self.frames]
        return list(self.media)

    @property
    def media_paths(self) -> list[str]:
        """Paths of the clip, or of all the pictures and clips that are asked about."""
        return [path for _, path in self.shown]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold; true and false are none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def options_in(text: str) -> dict[str, str]:
    """The options that a question lists itself, as lines "A. text" or "A) text".

    Args:
        text: the question.

    Returns:
        Letter -> text, from A on without a gap; {} when it lists none.
    """
    found = [match for line in text.splitlines() if (match := _OPTION.fullmatch(line))]
    letters = "".join(match[1] for match in found)
    if len(found) < 2 or letters != LETTERS[: len(found)]:
        return {}
    return {match[1]: match[2] for match in found}


def options_of(where: str, value: Any) -> dict[str, str]:
    """Options as benchmarks' files give them: an object of letters, a list, or either written as a text.

    Args:
        where: the question, for errors.
        value: `{"A": "left"}`, `["A. left", ...]`, `["left", ...]`, or such a text in JSON or Python. An
            option that is None, as in parquet's structs, is none.

    Returns:
        Letter to text, without the letter in front.

    Raises:
        RecordError: something else, fewer than two, or more than there are letters.
    """
    if isinstance(value, str):
        value = literal(where, value)
    if isinstance(value, Mapping):  # parquet's structs hold every key, and None where a row has none
        value = {str(k): v for k, v in value.items() if v is not None}
        if "".join(value) != LETTERS[: len(value)]:
            raise RecordError(
                f"{where}: options are lettered {', '.join(value)}; write 2 to {len(LETTERS)}: A, B, ..."
            )
        texts = [str(text) for text in value.values()]
    elif isinstance(value, list):
        last = max((i for i, text in enumerate(value) if text is not None), default=-1)
        texts = ["" if text is None else str(text) for text in value[: last + 1]]
    else:
        raise RecordError(f"{where}: options are {value!r:.60}; give an object of letters, or a list")
    if not 2 <= len(texts) <= len(LETTERS):
        raise RecordError(f"{where}: number of options: {len(texts)}; give 2 to {len(LETTERS)}")
    led = [_LETTERED.fullmatch(text) for text in texts]
    if all(match and match[1] == letter for match, letter in zip(led, LETTERS, strict=False)):
        texts = [match[2] for match in led if match]
    texts = [text.strip() for text in texts]
    if not all(texts):
        raise RecordError(f"{where}: an option is empty: {texts}; write it, or leave it out")
    return dict(zip(LETTERS, texts, strict=False))


def literal(where: str, text: str) -> Any:
    """The options that a text writes out.

    Args:
        where: the question, for errors.
        text: in JSON or Python.

    Returns:
        The value.

    Raises:
        RecordError: neither.
    """
    try:
        return parse_json(text)
    except ValueError:  # a list in Python's form, or nothing
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise RecordError(
            f"{where}: options are the text {text!r:.60}, which is no list in JSON or Python ({error})"
        ) from error


def letter_of(label: str, options: Mapping[str, str]) -> str | None:
    """The option that a label names.

    Args:
        label: "B", "(b)", "B. its exact text", or its exact text.
        options: letter to text.

    Returns:
        The letter; None where it names no option, or two of the same text.
    """
    label = " ".join(label.split())
    bare = label.strip("().:").upper()
    if bare in options:
        return bare
    texts = {letter: normalised(text) for letter, text in options.items()}
    same = [letter for letter, text in texts.items() if text == normalised(label)]
    if same:
        return same[0] if len(same) == 1 else None
    match = _LABEL.fullmatch(label)
    if match and texts.get(match[1].upper()) == normalised(match[2]):
        return match[1].upper()
    return None


class MediaRoot:
    """The folder that records may name files in.

    Args:
        path: the folder.
        complete: whether every file must be there, with something in it.
    """

    def __init__(self, path: PathLike, *, complete: bool = True) -> None:
        self.path, self.complete = os.path.realpath(path), complete
        if not os.path.isdir(self.path):
            raise ConfigError(
                f"media_root {os.fspath(path)} is no folder; name the folder that holds the media"
            )
        self._parents: dict[str, str] = {}

    def resolve(self, value: str) -> tuple[str, os.stat_result | None]:
        """Absolute path without links, and its state (None: no such file). PermissionError when outside."""
        full = os.path.join(self.path, value)
        parent, base = os.path.split(full)
        if base in ("", ".", ".."):
            full = os.path.realpath(full)
        else:
            # Resolving every component of every frame would cost more than all the rest.
            if parent not in self._parents:
                self._parents[parent] = os.path.realpath(parent)
            full = os.path.join(self._parents[parent], base)
            if os.path.islink(full):
                full = os.path.realpath(full)
        if os.path.commonpath([full, self.path]) != self.path:
            raise PermissionError(full)
        try:
            return full, os.stat(full)
        except OSError:
            return full, None


class Line:
    """Keys of one line. Every method raises RecordError naming file, line, key and remedy."""

    def __init__(self, data: dict[str, Any], where: str, root: MediaRoot) -> None:
        self.data, self.where, self.root = data, where, root

    def fail(self, message: str) -> NoReturn:
        """Raise a RecordError that begins with file and line."""
        raise RecordError(f"{self.where}: {message}")

    def known(self, form: str, keys: Collection[str]) -> None:
        """Refuse keys that records of this form do not have, naming the nearest that they do."""
        for key in self.data:
            if key not in keys:
                close = difflib.get_close_matches(key, keys, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"its keys are {', '.join(sorted(keys))}"
                self.fail(f"unknown key {key!r} in a {form} record; {hint} Remove or rename it")

    def missing(self, key: str, remedy: str) -> NoReturn:
        """Raise for a key that is not there."""
        self.fail(f"missing key {key!r}; {remedy}")

    def wrong(self, key: str, wanted: str) -> NoReturn:
        """Raise for a value that is not as `wanted` says."""
        value = self.data[key]
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        self.fail(f"key {key!r} is {shown} ({type(value).__name__}); it must be {wanted}")

    def text(self, key: str, *, required: bool = False) -> str | None:
        """A text that is not blank."""
        if key not in self.data:
            if required:
                self.missing(key, "add it as a text")
            return None
        if not isinstance(self.data[key], str) or not self.data[key].strip():
            self.wrong(key, "a text that is not blank")
        return self.prose(key, self.data[key])

    def prose(self, key: str, text: str, *, imagery: bool = False) -> str:
        """Check a text that the model will read: no control tokens, no placeholder where none belongs."""
        control = _CONTROL.search(text)
        if control:
            self.fail(
                f"key {key!r} holds {control[0]!r}, which reads as a control token; remove it or write it "
                "differently (for example with a space after the first character)"
            )
        if IMAGERY in text and not imagery:
            self.fail(f"key {key!r} holds {IMAGERY}; placeholders belong into text_output only")
        return self.characters(key, text)

    def characters(self, key: str, text: str) -> str:
        """Check that a text can be written, to a file or as a path."""
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            self.fail(
                f"key {key!r} holds half of a surrogate pair, which is no character; write the text as UTF-8"
            )
        return text

    def number(self, key: str, *, low: float = -math.inf) -> float | None:
        """A finite number of at least `low`; None where the key is missing."""
        if key not in self.data:
            return None
        value = self.data[key]
        if not is_number(value) or value < low:
            self.wrong(key, "a number" if low == -math.inf else f"a number of at least {low:g}")
        return float(value)

    def file(self, key: str, value: Any, *, folder: bool = False) -> str:
        """Path of a file that exists, is not empty and lies in the media root; or of a folder, if allowed."""
        if not isinstance(value, str) or not value or "\0" in value:
            self.wrong(key, "a path, or a list of paths")
        self.characters(key, value)
        try:
            path, state = self.root.resolve(value)
        except PermissionError:
            self.fail(
                f"key {key!r}: {value!r} lies outside media_root {self.root.path}; move the file there, "
                "or set media_root to a folder that holds all media"
            )
        if not self.root.complete and (state is None or state.st_size == 0):
            return path
        if state is None:
            self.fail(
                f"key {key!r}: {value!r} does not exist in media_root {self.root.path}; add it, or set "
                "media_root"
            )
        if folder and stat.S_ISDIR(state.st_mode):
            return path
        if not stat.S_ISREG(state.st_mode):
            self.fail(f"key {key!r}: {value!r} is not a file; name a file")
        if state.st_size == 0:
            self.fail(f"key {key!r}: {value!r} is empty (0 bytes); replace the file or remove the record")
        return path

    def files(self, key: str) -> list[str]:
        """Paths of one file, of a list of files, or of the pictures of a folder; [] without the key."""
        value = self.data.get(key, [])
        if isinstance(value, list):
            return [self.file(key, item) for item in value]
        path = self.file(key, value, folder=True)
        if not os.path.isdir(path):
            return [path]
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(PICTURE_SUFFIXES))
        if not names:
            self.fail(f"key {key!r}: the folder {value!r} holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
        return [self.file(key, os.path.join(path, name)) for name in names]
