"""What a question is made of, and what it is: facts of one clip in, questions without options out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fourdthinker.synth.tracks import CameraTrack, Move, ObjectTrack


@dataclass(frozen=True)
class ObjectFacts:
    """One object of a clip.

    Attributes:
        track: where it is, when.
        direction: the word for its motion in the world over the whole track, in the first camera's axes; None
            where it has no clear one.
        distance: the word for the change of its true distance to the camera; None where it is unclear.
        speed: the word for its speed profile; None where it is unclear or the object rests.
    """

    track: ObjectTrack
    direction: str | None = None
    distance: str | None = None
    speed: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that is known of a clip.

    Attributes:
        clip: its id.
        source: the video that it is cut from; splits and folds keep its clips together.
        duration: seconds.
        camera: its track.
        moves: the camera's moves; those that overlap in time are concurrent.
        unclear: (start, end) of the times in which the camera may do more than the moves say.
        objects: the objects.
    """

    clip: str
    source: str
    duration: float
    camera: CameraTrack
    moves: tuple[Move, ...] = ()
    objects: tuple[ObjectFacts, ...] = ()
    unclear: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Support:
    """What the imagery of a question shows.

    Attributes:
        object: name of the object, or None.
        instants: seconds, increasing.
    """

    object: str | None
    instants: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """One question about a clip.

    Attributes:
        id: unique in a corpus.
        clip, source: as in `Facts`.
        type: kind of question, such as "camera" or "abs_dir".
        text: the question, without options.
        answer: the right answer as an option shows it.
        start, end: the part of the clip that is shown, in seconds.
        pool: questions of one pool have answers of one form: each may be an option of another. Parts
            after a "/" divide it further where there are enough. "" for an open question, which takes no
            options.
        support: what the imagery shows.
        evidence: short clauses that lead to the answer, in order.
        value: the number behind a numeric answer, in `unit`.
        unit: "m", "degrees", ...; "" for an answer in words.
        bbox: box that the text refers to: left, top, right, bottom in fractions of the frame.
        centres: MLLM-4D's supervision: camera_center and object_center at the first and last instant, metres
            in the axes of the first camera.
        options: letter to text; {} for an open question.
        letter: of the right option.
    """

    id: str
    clip: str
    source: str
    type: str
    text: str
    answer: str
    start: float
    end: float
    pool: str
    support: Support
    evidence: tuple[str, ...] = ()
    value: float | None = None
    unit: str = ""
    bbox: tuple[float, float, float, float] | None = None
    centres: dict[str, list[list[float] | None]] | None = None
    options: dict[str, str] = field(default_factory=dict)
    letter: str | None = None

    def extra(self) -> dict[str, Any]:
        """Keys for a record's line, beside question, options, answer and media."""
        line: dict[str, Any] = {"type": self.type, "source": self.source}
        if self.bbox is not None:
            line["bbox"] = list(self.bbox)
        return line


def join_runs(words: Sequence[str]) -> str:
    """Words of successive times as one text, equal neighbours once: "left, then front-left"."""
    runs = [word for index, word in enumerate(words) if index == 0 or word != words[index - 1]]
    return ", then ".join(runs)


def seconds(value: float) -> str:
    """A time as questions write it: true seconds, one decimal."""
    return f"{value:.1f} s"
