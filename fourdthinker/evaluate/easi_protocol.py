"""Questions asked as EASI (VLMEvalKit's `DSRBench_1fps`) asks them: its text, and its frames.

Written from what `vlmeval/dataset/dsrbench.py` does as of August 2026: a sentence, the frames, then the
question, its options and "Answer: "; of a video of n pictures at r pictures a second, as its container says,
int(n / r) frames, the i-th of which is picture int(i * r) in the order of display.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fourdthinker.errors import RecordError, VideoError
from fourdthinker.frames import Frames, probe, read_frames
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Vision

PREAMBLE = (
    "\nThese are the frames of a video. Select the best answer to the following multiple-choice question "
    "based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
)


def easi_question(record: Record) -> str:
    """The text after the frames.

    Args:
        record: the question and its options.

    Returns:
        Question, options, and where the answer goes. The options stand as the benchmark's file has them
        (`extra["as_listed"]`); without that as "A. text" lines.
    """
    listed = [f"{letter}. {text}" for letter, text in record.options.items()]
    question, lines = record.extra.get("as_listed", (record.question, listed))
    return "\n".join([f"Question: {question}", *lines, "Answer: "])


def easi_indices(pictures: int, rate: float) -> list[int]:
    """Which pictures of a video are shown, one a second.

    Args:
        pictures: how many it has.
        rate: pictures a second, exactly as the container says: how many are shown over how long they are is
            a number next to it, whose whole multiples may be rounded down to the picture before.

    Returns:
        Their indices in display order; none of a video shorter than a second.
    """
    return [int(i * rate) for i in range(int(pictures / rate))]


def check_easi(records: Sequence[Record]) -> None:
    """Check that the protocol has a way to ask questions.

    Args:
        records: the questions.

    Raises:
        RecordError: a part of a video, frames in place of a video, several videos and images, or options
            other than A to D.
    """
    for record in records:
        wrong = None
        if record.start is not None or record.end is not None:
            wrong = "start or end: EASI shows whole videos"
        elif record.frames is not None:
            wrong = "frames in place of a video: EASI takes its own from a video"
        elif record.media:
            wrong = f"{len(record.media)} videos and images: EASI shows one video"
        elif not record.options or not set(record.options) <= set("ABCD"):
            wrong = f"options {', '.join(record.options) or 'none'}: EASI asks for one of A to D"
        if wrong is not None:
            raise RecordError(f"{record.where}: {wrong}; leave the record out, or use --protocol own")


class EasiEncoder(Encoder):
    """Makes the prompts of this protocol, for the model that another encoder is for.

    Frames are a clip, of the size that the model's frame policy says; EASI leaves the size to each model.
    """

    def __init__(self, encoder: Encoder) -> None:
        style = replace(encoder.style, instruction="", preamble=PREAMBLE)
        super().__init__(encoder.tokenizer, encoder.spec, encoder.latents, encoder.policy, style)

    def prompt(self, record: Record, frames: Frames | Vision | None = None) -> Prompt:
        """As `Encoder.prompt`, with EASI's text."""
        return super().prompt(replace(record, question=easi_question(record), options={}, turns=[]), frames)

    def read(self, record: Record) -> Vision | None:
        """As `Encoder.read`, with EASI's frames.

        Raises:
            VideoError: a video shorter than a second, or without a rate.
            RecordError: as for `check_easi`.
        """
        check_easi([record])
        if record.video is None:
            return super().read(record)
        found = probe(record.video)
        if not found.container_rate:
            raise VideoError(f"{record.video}: no rate in the container, by which EASI takes frames")
        indices = easi_indices(found.frames, found.container_rate)
        if not indices:
            seconds = found.frames / found.container_rate
            raise VideoError(f"{record.video}: {seconds:.3f} s; EASI takes no frame under 1 s")
        times = [found.begins[index] for index in indices]
        frames = read_frames(
            record.video, self.policy, times=times, out="patches", mean=self.spec.mean, std=self.spec.std
        )
        return Vision.from_frames(frames, self.spec)
