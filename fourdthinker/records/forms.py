"""The forms a line may have, and what each of their keys must hold."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from fourdthinker.answers import answer_text, normalised
from fourdthinker.errors import RecordError
from fourdthinker.files import LETTERS, parse_json
from fourdthinker.latents import IMAGERY
from fourdthinker.records.line import Line, MediaRoot, Record, is_number, letter_of, options_in

# Keys of our superset, in every form.
COMMON = {
    "id",
    "type",
    "options",
    "answer",
    "fps",
    "seconds",
    "source",
    "twins",
    "bbox",
    "start",
    "end",
    "system",
    "extra",
}
DIFT = COMMON | {"text_input", "text_output", "image_input", "image_output", "video"}
RL = COMMON | {"Question", "Correct", "frame_paths", "video_path", "images", "solution", *LETTERS}
MLLM = COMMON | {"conversations", "video", "image", "image_output", "solution", "num_tokens"}
ASK = COMMON | {"question", "video", "frames", "images"}
ROLES = {"system": "system", "user": "user", "human": "user", "gpt": "assistant", "assistant": "assistant"}
_SLOT = re.compile("<video>|<image>")
_LEADING = re.compile(r"\s*(?:<video>\s*|<image>\s*)*")


def parse_line(raw: bytes, where: str, root: MediaRoot, kind: str | None) -> Record:
    """The record of one line.

    Args:
        raw: the line, UTF-8 JSON.
        where: file and number of the line, for messages.
        root: the folder that no path of the record may leave.
        kind: "dift", "rl" or "ask", what the record must be fit for; None: any of the published forms.

    Returns:
        The record.

    Raises:
        RecordError: names file, line, key and remedy.
    """
    line = Line(_object(raw, where), where, root)
    if "conversations" in line.data:
        record = _mllm(line)
    elif "text_input" in line.data or "text_output" in line.data:
        record = _dift(line)
    elif "Question" in line.data:
        record = _rl(line)
    elif kind == "ask":
        record = _ask(line)
    else:
        line.missing(
            "text_input", "a record has text_input (DIFT), Question (4DRL) or conversations (MLLM-4D)"
        )
    _common_keys(line, record)
    if kind == "dift" and record.text_output is None:
        line.missing("text_output", "records to fine-tune on need it")
    if kind in ("rl", "ask") and len(record.turns) > 2:
        line.fail(
            "key 'conversations': a conversation of several turns is for fine-tuning alone; leave it out"
        )
    if kind == "rl" and record.answer is None and "Question" not in line.data:
        line.missing(
            "answer",
            "records to reinforce on need options and the right one of them; without them, write 'Question'",
        )
    record.kind = kind or record.kind
    return record


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = parse_json(raw, unique_keys=True)
    except ValueError as error:
        raise RecordError(
            f"{where}: malformed JSON ({error}); each line must be one JSON object (JSONL)"
        ) from error
    if not isinstance(data, dict):
        raise RecordError(
            f"{where}: a JSON {type(data).__name__}, not an object; write one object {{...}} a line, "
            "without a list around them"
        )
    return data


def _dift(line: Line) -> Record:
    line.known("DIFT", DIFT)
    question = line.text("text_input", required=True) or ""
    if "text_output" not in line.data:
        line.missing("text_output", "a DIFT record needs the reasoning to learn")
    if not isinstance(line.data["text_output"], str) or not line.data["text_output"].strip():
        line.wrong("text_output", "a text that is not blank")
    record = Record("dift", _id(line), question, where=line.where)
    record.text_output = line.prose("text_output", line.data["text_output"], imagery=True)
    _media(line, record, "video", "image_input")
    single = line.data.get("image_input")  # one picture; a list, or the path of a folder, is a clip
    record.separate = isinstance(single, str) and line.root.resolve(single)[0] in (record.frames or ())
    record.images = line.files("image_output")
    _count_imagery(line, "text_output", record.text_output, record)
    _options(line, record)
    _answer(line, record)
    return record


def _rl(line: Line) -> Record:
    line.known("4DRL", RL)
    record = Record("rl", _id(line), line.text("Question", required=True) or "", where=line.where)
    _rl_media(line, record)
    lettered = {letter: line.text(letter) or "" for letter in LETTERS if letter in line.data}
    if lettered and "options" in line.data and line.data["options"] != lettered:
        line.fail(
            f"key 'options' is {line.data['options']!r} and the lettered keys say {lettered!r}; keep one"
        )
    _options(line, record, lettered)
    if "solution" in line.data:
        _solution(line, record)
    key = "Correct" if "Correct" in line.data else "answer"
    if not record.options:
        if key == "Correct":
            line.missing("A", "'Correct' is an option, A, B, ...; of an open question write the 'answer'")
        said = line.text("answer")
        if None not in (said, record.answer) and said != record.answer:
            line.fail(f"key 'answer' is {said!r} and 'solution' says {record.answer!r}; one of them is wrong")
        record.answer = record.answer or said
        return record
    if key not in line.data and record.answer is None:
        line.missing("Correct", "name the letter or the exact text of the right option")
    _answer(line, record, key)
    return record


def _rl_media(line: Line, record: Record) -> None:
    """One clip; or videos and pictures, in this order before the question; or none."""
    if "frame_paths" in line.data and "images" in line.data:
        line.fail("both 'frame_paths' and 'images' are there; keep the one that the question is about")
    if not isinstance(line.data.get("video_path"), list) and "images" not in line.data:
        _media(line, record, "video_path", "frame_paths", optional=True)
        return
    if "frame_paths" in line.data:
        line.fail("both 'video_path' and 'frame_paths' are there; keep the one that the question is about")
    videos, images = _clips_and_pictures(line, "video_path", "images")
    if not images and len(videos) == 1:
        record.video = videos[0]
    elif images and not videos:
        record.frames, record.separate = images, True
    else:
        record.media = [("video", path) for path in videos] + [("image", path) for path in images]


def _ask(line: Line) -> Record:
    """A question to be answered: nothing but the question is needed."""
    line.known("question", ASK)
    record = Record("ask", _id(line), line.text("question", required=True) or "", where=line.where)
    given = [key for key in ("video", "frames", "images") if key in line.data]
    if len(given) > 1:
        line.fail(f"keys {' and '.join(map(repr, given))} are there; keep the one that the question is about")
    record.separate = given == ["images"]
    _media(line, record, "video", "images" if record.separate else "frames", optional=True)
    _options(line, record)
    _answer(line, record)
    return record


def _mllm(line: Line) -> Record:
    line.known("MLLM-4D", MLLM)
    system, turns = _turns(line)
    reinforced = "solution" in line.data
    asked, answered = ([text for role, text in turns if role == who] for who in ("user", "assistant"))
    record = Record("rl" if reinforced else "dift", _id(line), _spoken(asked[0]), where=line.where)
    record.system = line.text("system") or system
    record.text_output = answered[0] if answered else None
    record.images = line.files("image_output")
    _conversation_media(line, record, asked)
    if reinforced and len(asked) > 1:
        line.fail(
            "key 'conversations': more than one turn of user, and a 'solution'; write one record a question"
        )
    if not reinforced and len(answered) < len(asked):
        line.fail(
            "key 'conversations': no turn of gpt after the user's last, and no 'solution'; one of them is "
            "needed"
        )
    _count_imagery(line, "conversations", "".join(answered), record)
    if not reinforced:
        record.turns = turns
    elif record.media or _SLOT.search(_LEADING.sub("", asked[0], 1)):
        record.turns = turns[:1]
    if len(asked) == 1:
        _options(line, record)
        if reinforced:
            _solution(line, record)
        _answer(line, record)
    elif "options" in line.data or "answer" in line.data:
        line.fail(
            "keys 'options' and 'answer' belong to one question, and this conversation asks several; write "
            "them into its turns"
        )
    return record


def _turns(line: Line) -> tuple[str | None, list[tuple[str, str]]]:
    """The system turn, and those of user and assistant."""
    given = line.data["conversations"]
    if not isinstance(given, list):
        line.wrong("conversations", 'a list of {"from", "value"} objects')
    turns: list[tuple[str, str]] = []
    for turn in given:
        if not isinstance(turn, dict) or set(turn) != {"from", "value"} or not isinstance(turn["value"], str):
            line.wrong("conversations", 'a list of {"from", "value"} objects with texts')
        role = ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            line.fail(f"key 'conversations': from {turn['from']!r} is no role; roles are {', '.join(ROLES)}")
        text = line.prose("conversations", turn["value"], imagery=role == "assistant")
        if role == "user" and not _spoken(text):
            line.fail("key 'conversations': a turn of the user holds no question; write one")
        if role == "assistant" and not text.strip():
            line.fail("key 'conversations': no turn of gpt may be blank; write the answer, or cut the turns")
        if role != "user" and _SLOT.search(text):
            line.fail(
                f"key 'conversations': <video> or <image> in a turn of {role}; they belong to the user's"
            )
        turns.append((role, text))
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if not turns or [role for role, _ in turns] != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        line.fail(
            "key 'conversations': its turns must be system (if any), then user and gpt by turns, in this "
            "order"
        )
    return system, turns


def _spoken(text: str) -> str:
    """The words of a user's turn, without the placeholders of its pictures."""
    return " ".join(part for piece in _SLOT.split(text) if (part := piece.strip()))


def _clips_and_pictures(line: Line, videos: str, images: str) -> tuple[list[str], list[str]]:
    """The files under two keys: one clip or a list of them, and pictures."""
    for key in (videos, images):
        if line.data.get(key) == []:
            line.fail(f"key {key!r} is an empty list: zero files; name at least one, or leave the key out")
    given = line.data.get(videos, [])
    clips = [line.file(videos, path) for path in (given if isinstance(given, list) else [given])]
    return clips, line.files(images)


def _conversation_media(line: Line, record: Record, asked: list[str]) -> None:
    """Clips and pictures, each of which takes the next placeholder of its kind in the user's turns."""
    videos, images = _clips_and_pictures(line, "video", "image")
    slots = _SLOT.findall("".join(asked))
    for kind, paths in (("video", videos), ("image", images)):
        if slots.count(f"<{kind}>") != len(paths):
            line.fail(
                f"key 'conversations': {slots.count(f'<{kind}>')} <{kind}> for {len(paths)} files under "
                f"{kind!r}; write one for each"
            )
    if not images and len(videos) == 1:
        record.video = videos[0]
    elif images and not videos:
        record.frames, record.separate = images, True
    else:
        files = {"<video>": iter(videos), "<image>": iter(images)}
        record.media = [(slot[1:-1], next(files[slot])) for slot in slots]


def _solution(line: Line, record: Record) -> None:
    solution = line.data["solution"]
    if not isinstance(solution, list) or len(solution) != 1 or not isinstance(solution[0], dict):
        line.wrong("solution", "a list of one object with answer, camera_center and object_center")
    unknown = set(solution[0]) - {"answer", "camera_center", "object_center"}
    if unknown or not isinstance(solution[0].get("answer"), str):
        line.wrong("solution", "a list of one object with answer (a text), camera_center and object_center")
    for key in ("camera_center", "object_center"):
        centres = solution[0].get(key)
        if not isinstance(centres, (list, type(None))) or not all(map(_centre, centres or ())):
            line.fail(
                f"key 'solution': {key!r} is {centres!r:.60}; it must be a list of points [x, y, z] or null"
            )
    record.extra["solution"] = solution
    right = solution[0]["answer"]
    record.answer = _letter(line, "solution", right, record.options) if record.options else right


def _centre(point: Any) -> bool:
    return point is None or (isinstance(point, list) and bool(point) and all(map(is_number, point)))


def _id(line: Line) -> str:
    value = line.data.get("id")
    if value is None and "id" not in line.data:
        return line.where.replace("\\", "/").rpartition("/")[2]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        line.wrong("id", "a text or a whole number")
    return line.characters("id", str(value))


def _media(line: Line, record: Record, video: str, frames: str, *, optional: bool = False) -> None:
    if video in line.data and frames in line.data:
        line.fail(f"both {video!r} and {frames!r} are there; keep the one that the question is about")
    if video not in line.data and frames not in line.data:
        if not optional:
            line.missing(frames, f"name the frames there, or a video under {video!r}")
        return
    if video in line.data:
        value = line.data[video]
        if isinstance(value, list) and len(value) != 1:
            line.wrong(video, "the path of one video")
        record.video = line.file(video, value[0] if isinstance(value, list) else value)
        return
    record.frames = line.files(frames)
    if not record.frames:
        line.fail(f"key {frames!r} is an empty list: zero frames; name at least one")


def _count_imagery(line: Line, key: str, text: str, record: Record) -> None:
    """Check that there is an overlay for every block of an answer to learn."""
    number = text.count(IMAGERY)
    if number != len(record.images):
        line.fail(
            f"{key} has {number} {IMAGERY} and 'image_output' {len(record.images)} overlays; give one "
            "overlay for each placeholder, in the same order"
        )


def _options(line: Line, record: Record, options: Any = None) -> None:
    listed = options_in(record.question)
    options = options or line.data.get("options")
    if options is None:
        record.options = listed
        return
    if not isinstance(options, dict) or not all(
        isinstance(text, str) and text.strip() for text in options.values()
    ):
        line.wrong("options", "an object of letters and texts")
    letters = "".join(options)
    if not 2 <= len(options) <= len(LETTERS) or letters != LETTERS[: len(options)]:
        line.fail(
            f"options are lettered {', '.join(options)}; write 2 to 26 of them, A, B, ... without a gap"
        )
    if len({normalised(text) for text in options.values()}) < len(options):
        line.fail(f"two options have the same text: {list(options.values())}; an answer could not be told")
    for text in options.values():
        line.prose("options", text)
    if listed and {k: v.strip() for k, v in options.items()} != listed:
        line.fail(f"the question lists the options {listed} and the record has {options}; make them agree")
    record.options = dict(options)


def _answer(line: Line, record: Record, key: str = "answer") -> None:
    """The right option: named by `key`, and by a solution or the last <answer> of text_output, as well."""
    said = answer_text(record.text_output or "")
    if record.options and said is not None and record.answer is None:
        record.answer = _letter(line, "text_output", said, record.options)
    if key not in line.data:
        return
    if not isinstance(line.data[key], str):
        line.wrong(key, "a text: a letter, or the exact text of an option")
    if not record.options:
        line.missing("options", f"key {key!r} is there; an answer needs options to choose from")
    letter = _letter(line, key, line.data[key], record.options)
    if record.answer not in (None, letter):
        told = "'solution' says" if "solution" in line.data else "text_output answers"
        line.fail(f"key {key!r} is {letter} and {told} {record.answer}; one of them is wrong")
    record.answer = letter


def _letter(line: Line, key: str, label: str, options: dict[str, str]) -> str:
    letter = letter_of(label, options)
    if letter is None:
        listed = ", ".join(f"{k}. {v}" for k, v in options.items())
        line.fail(f"key {key!r}: the answer {label.strip()!r} is no option; options are {listed}")
    return letter


def _common_keys(line: Line, record: Record) -> None:
    """The keys of our superset that are alike in all forms."""
    record.type = line.text("type")
    record.system = record.system or line.text("system")
    record.start, record.end = line.number("start", low=0), line.number("end", low=0)
    if record.video is None and (record.start is not None or record.end is not None):
        line.fail(
            "keys 'start' and 'end' cut a video, and the record has none; remove them, or the frames outside"
        )
    if record.end is not None and record.end <= (record.start or 0):
        line.fail(f"'end' is {record.end} and 'start' {record.start or 0}; end must be later than start")
    fps = line.number("fps", low=0)
    if fps == 0:
        line.wrong("fps", "a number above 0")
    record.fps = fps
    seconds = line.data.get("seconds")
    if isinstance(seconds, list):
        if not record.frames or len(seconds) != len(record.frames):
            line.wrong("seconds", f"one time for each of the {len(record.frames or ())} frames")
        if not all(map(is_number, seconds)) or any(b <= a for a, b in pairwise(seconds)):
            line.wrong("seconds", "a list of increasing numbers")
        record.seconds = [float(s) for s in seconds]
    elif "seconds" in line.data:
        record.extra["seconds"] = line.number("seconds", low=0)
    if "bbox" in line.data:
        box = line.data["bbox"]
        numbers = isinstance(box, list) and all(is_number(v) and 0 <= v <= 1 for v in box)
        if not numbers or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            line.wrong("bbox", "[left, top, right, bottom] in fractions of the frame")
        record.extra["bbox"] = box
    if "extra" in line.data:
        if not isinstance(line.data["extra"], dict):
            line.wrong("extra", "an object, whose keys may be any")
        record.extra["extra"] = line.data["extra"]
    for key in ("source", "twins"):
        if key in line.data:
            record.extra[key] = line.text(key)
    if "num_tokens" in line.data:
        record.extra["num_tokens"] = line.number("num_tokens", low=0)
