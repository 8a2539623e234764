"""The stage narrate: from the geometry alone, or by a model whose text is checked against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourdthinker.errors import FourdError
from fourdthinker.frames import load_image
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


def narrator(model: str, out: Path) -> Endpoint:
    """The endpoint of a model; its replies are kept in the output folder.

    Raises:
        ConfigError: no key in the environment.
    """
    return Endpoint(EndpointSettings(model=model), out / CACHE)


class FaultyError(FourdError):
    """A narration that may not become a record; the message is the reason."""


def narrated(
    asked: Sequence[Question],
    facts: Mapping[str, Facts],
    shown: Mapping[str, Any],
    out: Path,
    settings: SynthSettings,
) -> Iterator[tuple[Question, str | FourdError]]:
    """Narrate questions.

    Args:
        asked: the questions.
        facts: clip -> what is known of it.
        shown: clip -> results of its stages; `ingest` and `imagery` are read.
        out: the output folder.
        settings: seed and narrator_model.

    Yields:
        Each question, in order, with its reasoning or the error that says why it has none.
    """
    if settings.narrator_model is None:
        for question in asked:
            imagined = shown[question.clip]["imagery"][question.id]
            text = narrate(question, facts[question.clip], imagined["instants"], settings.seed)
            wrong = fault(text, question, len(imagined["images"]))
            yield question, text if wrong is None else FaultyError(wrong)
        return
    (out / CACHE).mkdir(exist_ok=True)
    endpoint = narrator(settings.narrator_model, out)
    jobs = (
        _job(question, facts[question.clip], shown[question.clip], out, settings.seed) for question in asked
    )
    for job, reply in narrate_many(jobs, lambda job: narrate_by_model(job, endpoint), _THREADS):
        yield job.question, reply


def _job(question: Question, facts: Facts, results: Mapping[str, Any], out: Path, seed: int) -> Job:
    frames, imagined = results["ingest"], results["imagery"][question.id]
    return Job(
        question,
        facts,
        _pictures(out, frames["frames"], frames["seconds"]),
        _pictures(out, imagined["images"], imagined["instants"]),
        seed,
    )


def _pictures(out: Path, paths: Sequence[str], instants: Sequence[float]) -> list[Picture]:
    return scaled(instants, [load_image(out / path) for path in paths])
