"""Sampling answers to records and keeping them: `evaluate`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.asking import Asking
from fourdthinker.evaluate.clips import Override, group_clips, is_there
from fourdthinker.evaluate.journal import Journal
from fourdthinker.evaluate.latent_modes import OF_OTHERS, OF_OWN, Key, latent_feeds
from fourdthinker.evaluate.numeric import parse_number
from fourdthinker.evaluate.prompt_batches import PromptBatches
from fourdthinker.evaluate.results import AnsweredQuestion, EvalResult
from fourdthinker.evaluate.weights import weights_of
from fourdthinker.files import JsonLines, PathLike
from fourdthinker.progress import progress_bar
from fourdthinker.records import media_key, question_key, source_of
from fourdthinker.sampler import LatentSampler, SamplingConfig, check_count

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.samples import Prompt

log = logging.getLogger(__name__)


def evaluate(
    sampler: LatentSampler,
    encoder: Encoder,
    records: Sequence[Record],
    *,
    n: int = 4,
    greedy: bool = True,
    config: SamplingConfig | None = None,
    batch_prompts: int = 16,
    frames_override: Override | None = None,
    latents: str = "own",
    own: dict[Key, Tensor] | None = None,
    letters: bool = False,
    prompts: Sequence[Prompt] | None = None,
    journal: PathLike | JsonLines | None = None,
    name: str = "model",
    progress: bool = True,
) -> EvalResult:
    """Answer every record n times at the temperature of `config`, and once at temperature 0.

    Questions about the same clip share its decoding and its run through the vision tower; the n samples
    share the prefill. The seed of a sample comes from `config.seed`, the record's id and the sample's
    number, so that neither batching nor the other records change an answer (but where rounding decides
    between two ids, see docs/sampler.md). An evaluation that was interrupted goes on in the same batches, and
    one of which an answer is missing is asked whole: the results are those of a single run, byte for byte.

    Args:
        sampler: of the model to evaluate.
        encoder: of the same checkpoint.
        records: with unique ids and an answer: a letter, or without options a number.
        n: samples a question; 0 for greedy alone.
        greedy: whether to answer at temperature 0 too.
        config: sampling settings; None: `SamplingConfig()`.
        batch_prompts: prompts in one call of the sampler, n rows each; part of the journal's settings.
        frames_override: "black" shows black frames, "none" no frames at all, "other" those of another clip,
            by a deterministic exchange that leaves no clip where it was. What is still answered does not
            come from the pixels.
        latents: what the model is fed inside its blocks, one of `sampler.LATENT_MODES`; "own" is what it
            thinks itself. "noise", "other-clip" and "shuffle" are made of own latents, for which all records
            are sampled once more, first.
        own: own latents that are known, as `Asking.own` returns, so that this is not needed.
        letters: whether `AnsweredQuestion.letters` is wanted, which takes another forward.
        prompts: one encoded prompt for each record, best with `vision.features`; None: `encoder` makes them.
        journal: a JSONL file to which answers are appended as they come, and from which an evaluation that
            was interrupted goes on; None: none is kept. One that is open stays open.
        name: the model's name in results and journal; a journal of another name is refused.
        progress: whether a progress bar is shown on standard error.

    Returns:
        The answers, in the order of `records`. Questions of a clip that cannot be read, or with NaN logits,
        are *failed*: they count as wrong and are reported beside the accuracy.

    Raises:
        RecordError: a record without an answer that can be scored, or two with the same id; "oracle", and a
            record without overlays.
        ConfigError: nothing to do, a mode of `latents` that is unknown or needs more videos, or a journal of
            another evaluation.
    """
    config = config or SamplingConfig()
    check_records(records, n, greedy, batch_prompts, prompts)
    started = time.perf_counter()
    feeds = latent_feeds(latents, sampler.backbone, encoder, records, config)
    asking = Asking(sampler, encoder, records, n, greedy, config, feeds, letters)
    items = PromptBatches(records, encoder, group_clips(records), frames_override, config.seed, prompts)
    settings = _settings(asking, items, latents, name) | {"batch": batch_prompts}
    with ExitStack() as stack:
        book = None if journal is None else stack.enter_context(Journal(journal, settings))
        before, mark = book.seconds if book else 0.0, started
        done = {} if book is None else _done(book, items, letters)
        bar = stack.enter_context(progress_bar(shown=progress, transient=True))
        task = bar.add_task(f"evaluate {name}", total=len(records), completed=len(done))
        if latents in OF_OWN and len(done) < len(records):
            asking.feeds.own = own if own is not None else asking.own(items.batches({}, batch_prompts))
            if latents == "shuffle" and (moved := asking.feeds.moved()) < (every := len(asking.feeds.own)):
                log.warning("shuffle changes %d of %d answers: others have no two latents", moved, every)
        for batch in items.batches(done, batch_prompts):
            answered = [item for item in batch if isinstance(item, AnsweredQuestion)]
            answered += asking.answer([item for item in batch if not isinstance(item, AnsweredQuestion)])
            done.update((q.id, q) for q in answered)
            if book:
                now = time.perf_counter()
                book.add(answered, now - mark)
                mark = now
            bar.update(task, completed=len(done))
        if book:
            book.finish(record.id for record in records)
    questions = tuple(done[record.id] for record in records)
    _warn_of_failed(name, questions)
    return EvalResult(name, questions, n, greedy, settings, before + time.perf_counter() - started)


def _warn_of_failed(name: str, questions: Sequence[AnsweredQuestion]) -> None:
    if failed := [question.failed for question in questions if question.failed]:
        log.warning(
            "%s: %d of %d questions have no answer and count as wrong; first: %s",
            name,
            len(failed),
            len(questions),
            failed[0],
        )


def _done(book: Journal, items: PromptBatches, letters: bool) -> dict[str, AnsweredQuestion]:
    """What need not be asked: what failed before is tried again, since its file may be there now.

    Completions are read anew, since the journal may be older than the reader. Where that finds another answer
    at temperature 0 and the probabilities of its letters are wanted, the question is asked once more.
    """
    anew = {key: question.read_anew() for key, question in book.done.items()}
    changed = {key: question for key, question in anew.items() if question != book.done[key]}
    other = {key for key in changed if letters and changed[key].greedy != book.done[key].greedy}
    if changed:
        log.warning("%s: the answers to %d questions are read otherwise now", book.name, len(changed))
        book.add(changed.values(), 0.0)
    failed = items.failing({key for key, question in book.done.items() if question.failed})
    if failed:
        book.add(failed.values(), 0.0)
    return {
        key: question
        for key, question in book.done.items()
        if key in failed or not (question.failed or key in other)
    }


def check_records(
    records: Sequence[Record], n: int, greedy: bool, batch_prompts: int, prompts: Sequence[Prompt] | None
) -> None:
    """Check what `evaluate` is called with; arguments and errors are its own.

    Args:
        records: the questions.
        n: samples a question.
        greedy: whether they are answered at temperature 0 too.
        batch_prompts: prompts in one call of the sampler.
        prompts: one for each record, or None.

    Raises:
        RecordError: a record that cannot be scored, or two with the same id.
        ConfigError: nothing to do.
    """
    if not records:
        raise ConfigError("no records to evaluate; check the data file and its filters")
    check_count("n", n, least=0)
    check_count("batch_prompts", batch_prompts)
    if n == 0 and not greedy:
        raise ConfigError(
            f"n is {n} and greedy {greedy}: nothing to sample; give n >= 1, or n = 0 with greedy=True"
        )
    if prompts is not None and len(prompts) != len(records):
        raise ConfigError(
            f"{len(prompts)} prompts for {len(records)} records; give one prompt for each record"
        )
    seen: dict[str, str] = {}
    for record in records:
        if record.answer is None or not (record.options or parse_number(f"<answer>{record.answer}</answer>")):
            raise RecordError(
                f"{record.where}: only questions with options and an answer can be scored, "
                "or with a number for their answer; add them"
            )
        if record.id in seen:
            raise RecordError(
                f"{record.where}: id {record.id!r} is already used at {seen[record.id]}; make the ids unique"
            )
        seen[record.id] = record.where


def _settings(asking: Asking, items: PromptBatches, latents: str, name: str) -> dict[str, Any]:
    asked: list[Any] = [[*question_key(r), r.answer, source_of(r)] for r in asking.records]
    asked += [r.images for r in asking.records if latents == "oracle"]
    if items.override == "other" or latents in OF_OTHERS:  # a clip that comes late changes the others' rows
        asked += [media_key(clip.record) for clip in items.shown if clip is not None and is_there(clip)]
    digest = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]
    return {
        "name": name,
        **weights_of(asking.sampler.backbone),
        "n": asking.n,
        "greedy": asking.greedy,
        "sampling": asdict(asking.config),
        "frames_override": items.override,
        "latents": latents,
        "frame_policy": asking.encoder.policy.to_dict(),
        "style": asdict(asking.encoder.style),
        "records": digest,
        "questions": len(asking.records),
    }
