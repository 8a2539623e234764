"""The stage narrate: from the geometry alone, or by a model whose text is checked against it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourdthinker.errors import FourdError
from fourdthinker.frames import load_image
from fourdthinker.synth.asking import shown_frames
from fourdthinker.synth.narrate import (
    Endpoint,
    EndpointSettings,
    Job,
    Picture,
    fault,
    narrate,
    narrate_by_model,
    narrate_many,
    scaled,
)
from fourdthinker.synth.questions import Facts, Question
from fourdthinker.synth.settings import SynthSettings

CACHE = "replies"  # of the model, in the output folder
_THREADS = 16


def narrator(settings: SynthSettings, out: Path) -> Endpoint:
    """The endpoint of narrator_model, within the limits of the run; replies are kept in the output folder.

    Raises:
        ConfigError: no key in the environment.
    """
    assert settings.narrator_model is not None
    limits = EndpointSettings(
        model=settings.narrator_model,
        max_calls=settings.narrator_max_calls,
        budget=settings.narrator_budget,
        price_in=settings.narrator_price_in,
        price_out=settings.narrator_price_out,
    )
    return Endpoint(limits, out / CACHE)


class FaultyError(FourdError):
    """A narration that may not become a record; the message is the reason."""


def narrated(
    asked: Sequence[Question],
    facts: Callable[[str], Facts],
    shown: Callable[[str], Mapping[str, Any]],
    out: Path,
    settings: SynthSettings,
) -> Iterator[tuple[Question, str | FourdError]]:
    """Narrate questions.

    Args:
        asked: the questions.
        facts: clip -> what is known of it.
        shown: clip -> results of its stages; `ingest` and `imagery` are read.
        out: the output folder.
        settings: seed, narrator_model and its limits.

    Yields:
        Each question, in order, with its reasoning or the error that says why it has none.

    Raises:
        ConfigError: the endpoint refuses the key, or does not know the model.
        OutputError: a reply cannot be written.
    """
    if settings.narrator_model is None:
        for question in asked:
            imagined = shown(question.clip)["imagery"][question.id]
            text = narrate(question, facts(question.clip), imagined["instants"], settings.seed)
            wrong = fault(text, question, len(imagined["images"]))
            yield question, text if wrong is None else FaultyError(wrong)
        return
    (out / CACHE).mkdir(exist_ok=True)
    endpoint = narrator(settings, out)
    jobs = (
        _job(question, facts(question.clip), shown(question.clip), out, settings.seed) for question in asked
    )
    for job, reply in narrate_many(jobs, lambda job: narrate_by_model(job, endpoint), _THREADS):
        yield job.question, reply


def _job(question: Question, facts: Facts, results: Mapping[str, Any], out: Path, seed: int) -> Job:
    frames, times = shown_frames(question, results["ingest"])
    imagined = results["imagery"][question.id]
    return Job(
        question,
        facts,
        _pictures(out, frames, times),
        _pictures(out, imagined["images"], imagined["instants"]),
        seed + zlib.crc32(question.id.encode()) % 2**31,  # each question has a style of its own
    )


def _pictures(out: Path, paths: Sequence[str], instants: Sequence[float]) -> list[Picture]:
    return scaled(instants, [load_image(out / path) for path in paths])
