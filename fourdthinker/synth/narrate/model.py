"""Narration by a vision-language model.

It is told the answer and the geometry, sees the frames, and writes how one gets there; what it writes is
checked, and never trusted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourdthinker.errors import ConfigError, FourdError, OutputError
from fourdthinker.latents import IMAGERY
from fourdthinker.synth.narrate.endpoint import Endpoint
from fourdthinker.synth.narrate.template import answer_line, camera_words
from fourdthinker.synth.narrate.validate import LONGEST, SHORTEST, fault
from fourdthinker.synth.questions.forms import Facts, Question, seconds

DRAFTS = 3  # of a narration; a fault is told to the model, which writes once more
SIDE = 448  # pixels of the longer side of a picture that is sent

_SYSTEM = (
    "You write the reasoning of someone who watches a video clip and answers a question about it. You are "
    "given the frames with their times, close-up pictures of what the reasoning imagines, facts measured in "
    "3D, and the answer. Write only what can be seen in the video: never mention the pictures as pictures, "
    "masks, measured facts, or that an answer is known."
)
_TASK = """\
Question: {question}
{options}
Measured: {evidence}. The camera's motion in this time: {moves}.
Answer: {answer}

Write the reasoning in this order: which part of the video matters; what to follow; imagine it, with the \
tag {imagery} exactly {number} times, all in one sentence, one for each of the {number} pictures, in \
their order in time; take the camera's own motion away where the question is about the scene; what follows. \
{low} to {high} characters. {style}
Form: <think>reasoning</think><answer>{answer}</answer>
If the frames plainly contradict the answer, reply with <disagree>reason</disagree> instead."""
_STYLES = (
    "Use short sentences.",
    "Think aloud, in the first person.",
    "Be matter-of-fact.",
    "Begin with the scene as a whole.",
    "Name times where they help.",
    "Compare beginning and end explicitly.",
)


class RejectedError(FourdError):
    """No narration of this question is right; the message is the reason."""


@dataclass(frozen=True)
class Picture:
    """One picture as it is sent.

    Attributes:
        instant: seconds.
        url: a JPEG as a data URL.
    """

    instant: float
    url: str


def scaled(instants: Sequence[float], pixels: Iterable[NDArray[np.uint8]]) -> list[Picture]:
    """Frames as they are sent, scaled and encoded once for all questions and drafts about a clip.

    Args:
        instants: seconds of each.
        pixels: uint8 [H, W, 3] each.

    Returns:
        The pictures.
    """
    return [Picture(t, _data_url(frame)) for t, frame in zip(instants, pixels, strict=True)]


def _data_url(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Job:
    """A question to narrate.

    Attributes:
        question, facts: what and about which clip.
        frames: of the clip.
        overlays: what is imagined, in time order.
        seed: of style and sampling.
    """

    question: Question
    facts: Facts
    frames: Sequence[Picture]
    overlays: Sequence[Picture]
    seed: int = 0


def narrate_by_model(job: Job, endpoint: Endpoint) -> str:
    """Reasoning and answer, written by a model and checked.

    Args:
        job: the question and its pictures.
        endpoint: the model.

    Returns:
        As the template narrator does.

    Raises:
        RejectedError: the model disagrees with the answer, or each of its drafts has a fault.
        FourdError: as `Endpoint.complete`.
    """
    messages = _messages(job)
    reason = ""
    for draft in range(DRAFTS):
        reply = endpoint.complete(messages, seed=job.seed + draft)
        text = reply.text.strip()
        if text.startswith("<disagree>"):
            why = text.removeprefix("<disagree>").partition("</disagree>")[0].strip()
            raise RejectedError(f"narrate: the model disagrees: {why[:200]}")
        found = "it is cut off" if reply.cut else fault(text, job.question, len(job.overlays))
        if found is None:
            return text
        reason = found
        messages = [
            *messages,
            {"role": "assistant", "content": text[:LONGEST]},
            {"role": "user", "content": f"That cannot be used: {found}. Write it once more, whole."},
        ]
    raise RejectedError(f"narrate: {DRAFTS} drafts have a fault, the last: {reason}")


def _messages(job: Job) -> list[dict[str, Any]]:
    question = job.question
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    task = _TASK.format(
        question=question.text,
        options=options,
        evidence="; ".join(question.evidence) or "nothing more",
        moves=camera_words(job.facts, question.start, question.end) or "not clear",
        answer=answer_line(question),
        imagery=IMAGERY,
        number=len(job.overlays),
        low=SHORTEST + 40,
        high=1200,
        style=_STYLES[job.seed % len(_STYLES)],
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": "Frames of the clip:"}, *_parts(job.frames)]
    if job.overlays:
        content += [{"type": "text", "text": "Pictures to imagine:"}, *_parts(job.overlays)]
    content.append({"type": "text", "text": task})
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def _parts(pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
    for picture in pictures:
        yield {"type": "text", "text": f"{seconds(picture.instant)}:"}
        yield {"type": "image_url", "image_url": {"url": picture.url}}


def narrate_many(
    jobs: Iterable[Job], narrator: Callable[[Job], str], workers: int
) -> Iterator[tuple[Job, str | FourdError]]:
    """Narrate many questions at a time.

    Args:
        jobs: the questions; taken as workers become free, not all at once.
        narrator: narrates one.
        workers: threads.

    Yields:
        Each question, in order, with its narration or the error that says why it has none.

    Raises:
        ConfigError: the endpoint refuses the key, or does not know the model.
        OutputError: a reply cannot be written.
    """
    waiting: list[tuple[Job, Future[str]]] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                waiting.append((job, pool.submit(narrator, job)))
                if len(waiting) >= 2 * workers:
                    yield _finished(*waiting.pop(0))
            while waiting:
                yield _finished(*waiting.pop(0))
        finally:
            for _, future in waiting:
                future.cancel()


def _finished(job: Job, future: Future[str]) -> tuple[Job, str | FourdError]:
    try:
        return job, future.result()
    except (ConfigError, OutputError):
        raise  # no other question would fare better
    except FourdError as error:
        return job, error
