"""Records: the lines of data that training and evaluation read, validated before anything else runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """One line of data. Paths are absolute and inside the media root.

    kind: "dift" (has text_output) or "rl". question: without placeholders; may or may not hold the options
    as lines. options: letter to text, possibly empty. answer: letter of the right option, or None.
    text_output: the reasoning to learn, with one `<output_image>` for each of images (the overlays). The
    pictures asked about are either video (with start and end in seconds of its presentation clock), or
    frames: a clip when stills is false, on the clock of seconds (one time for each frame) or fps, else on
    the policy's; separate pictures when stills is true. type: kind of question. extra: the other keys of
    the line. where: "file:line".
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
    stills: bool = False
    fps: float | None = None
    seconds: list[float] | None = None
    images: list[str] = field(default_factory=list)
    type: str | None = None
    system: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = "record"
