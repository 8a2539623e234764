"""Sampling answers to records and keeping them: `evaluate`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from fourdthinker.errors import ConfigError, RecordError, SamplingError, VideoError
from fourdthinker.evaluate.clips import (
    Clip,
    Override,
    blacken,
    cluster_of,
    donors,
    group_clips,
    override_prompts,
    read_clips,
    source_of,
    text_only,
)
from fourdthinker.evaluate.journal import Journal
from fourdthinker.evaluate.numeric import parse_number
from fourdthinker.evaluate.results import EvalResult, Question
from fourdthinker.files import PathLike
from fourdthinker.progress import progress_bar
from fourdthinker.rewards import parse_answer
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts

if TYPE_CHECKING:
    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.samples import Prompt

log = logging.getLogger(__name__)


@dataclass
class _Answers:
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    truncated: int


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
    prompts: Sequence[Prompt] | None = None,
    journal: PathLike | None = None,
    name: str = "model",
    progress: bool = True,
) -> EvalResult:
    """Answer every record n times at the temperature of `config`, and once at temperature 0.

    Questions about the same clip share its decoding and its run through the vision tower; the n samples
    share the prefill. The seed of a sample comes from `config.seed`, the record's id and the sample's
    number, so that neither batching nor resuming nor the other records change an answer (but where rounding
    decides between two ids, see docs/sampler.md).

    Args:
        sampler: of the model to evaluate.
        encoder: of the same checkpoint.
        records: with unique ids and an answer: a letter, or without options a number.
        n: samples a question; 0 for greedy alone.
        greedy: whether to answer at temperature 0 too.
        config: sampling settings; None: `SamplingConfig()`.
        batch_prompts: prompts in one call of the sampler, n rows each.
        frames_override: "black" shows black frames, "none" no frames at all, "other" those of another clip,
            by a deterministic exchange that leaves no clip where it was. What is still answered does not
            come from the pixels.
        prompts: one encoded prompt for each record, best with `vision.features`; None: `encoder` makes them.
        journal: a JSONL file to which answers are appended as they come, and from which an evaluation that
            was interrupted goes on; None: none is kept.
        name: the model's name in results and journal; a journal of another name is refused.
        progress: whether a progress bar is shown on standard error.

    Returns:
        The answers, in the order of `records`. Questions of a clip that cannot be read, or with NaN logits,
        are *failed*: they count as wrong and are reported beside the accuracy.

    Raises:
        RecordError: a record without an answer that can be scored, or two with the same id.
        ConfigError: nothing to do, or a journal of another evaluation.
    """
    config = config or SamplingConfig()
    _check(records, n, greedy, batch_prompts, prompts)
    started = time.perf_counter()
    clips = group_clips(records)
    if prompts is not None and frames_override is not None:
        prompts = override_prompts(prompts, clips, frames_override, config.seed, encoder.spec)
    settings = _settings(records, encoder, n, greedy, config, frames_override, name)
    with ExitStack() as stack:
        book = None if journal is None else stack.enter_context(Journal(journal, settings))
        # what failed before is tried again: the file may be there now
        done = {key: question for key, question in book.done.items() if not question.failed} if book else {}
        before, mark = book.seconds if book else 0.0, started
        bar = stack.enter_context(progress_bar(shown=progress, transient=True))
        task = bar.add_task(f"evaluate {name}", total=len(records), completed=len(done))
        source = (
            _ready(records, prompts, done)
            if prompts is not None
            else _encoded(
                records, encoder, clips, donors(clips, frames_override, config.seed), frames_override, done
            )
        )
        for batch in _batches(source, batch_prompts):
            answered = [item for item in batch if isinstance(item, Question)]
            todo = [item for item in batch if not isinstance(item, Question)]
            if todo:
                answered += _answer(sampler, encoder, records, todo, n, greedy, config)
            done.update((q.id, q) for q in answered)
            if book:
                now = time.perf_counter()
                book.add(answered, now - mark)
                mark = now
            bar.update(task, advance=len(answered))
    failed = [q for q in (done[r.id] for r in records) if q.failed]
    if failed:
        log.warning(
            "%s: %d of %d questions have no answer and count as wrong; first: %s",
            name,
            len(failed),
            len(records),
            failed[0].failed,
        )
    questions = tuple(done[record.id] for record in records)
    return EvalResult(name, questions, n, greedy, settings, before + time.perf_counter() - started)


def _check(
    records: Sequence[Record], n: int, greedy: bool, batch_prompts: int, prompts: Sequence[Prompt] | None
) -> None:
    if not records:
        raise ConfigError("no records to evaluate; check the data file and its filters")
    if n < 0 or (n == 0 and not greedy):
        raise ConfigError(
            f"n is {n} and greedy {greedy}: nothing to sample; give n >= 1, or n = 0 with greedy=True"
        )
    if batch_prompts < 1:
        raise ConfigError(f"batch_prompts is {batch_prompts}; give at least 1")
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


def _settings(
    records: Sequence[Record],
    encoder: Encoder,
    n: int,
    greedy: bool,
    config: SamplingConfig,
    override: str | None,
    name: str,
) -> dict[str, Any]:
    asked = [
        [r.id, r.question, r.options, r.answer, cluster_of(r), source_of(r), r.start, r.end] for r in records
    ]
    digest = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]
    return {
        "name": name,
        "n": n,
        "greedy": greedy,
        "sampling": asdict(config),
        "frames_override": override,
        "frame_policy": encoder.policy.to_dict(),
        "style": asdict(encoder.style),
        "records": digest,
    }


def sample_seed(seed: int, record_id: str, number: int) -> int:
    """The seed of one sample, whatever else is asked in the same evaluation.

    Args:
        seed: that of the evaluation.
        record_id: of the question.
        number: of the sample, from 0.

    Returns:
        A hash of the three, in [0, 2^63).
    """
    digest = hashlib.blake2b(f"{seed}\n{number}\n{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _question(record: Record, **answers: Any) -> Question:
    assert record.answer is not None  # checked before anything ran
    return Question(
        record.id, record.type or "", source_of(record), dict(record.options), record.answer, **answers
    )


_Item: TypeAlias = "Question | tuple[int, Prompt]"


def _ready(
    records: Sequence[Record], prompts: Sequence[Prompt], done: dict[str, Question]
) -> Iterator[_Item]:
    # similar lengths together, so that little is padded; ties stay in order
    rows = [i for i, record in enumerate(records) if record.id not in done]
    yield from ((i, prompts[i]) for i in sorted(rows, key=lambda i: len(prompts[i].input_ids)))


def _encoded(
    records: Sequence[Record],
    encoder: Encoder,
    clips: Sequence[Clip],
    shown: Sequence[Clip],
    override: Override | None,
    done: dict[str, Question],
) -> Iterator[_Item]:
    work = [
        (c, s) for c, s in zip(clips, shown, strict=True) if any(records[i].id not in done for i in c.rows)
    ]
    for (clip, _), vision in zip(work, read_clips([s for _, s in work], encoder), strict=True):
        rows = [i for i in clip.rows if records[i].id not in done]
        if isinstance(vision, VideoError):
            yield from (_question(records[i], failed=str(vision)) for i in rows)
            continue
        if override in ("black", "other"):
            if vision is None:
                raise ConfigError(f"{records[rows[0]].where}: frames_override needs records with pictures")
            vision = blacken(vision, encoder.spec) if override == "black" else vision
        for i in rows:
            try:
                asked = text_only(records[i]) if override == "none" else records[i]
                yield i, encoder.prompt(asked, frames=vision)
            except RecordError as error:  # a control token of this model's tokenizer
                yield _question(records[i], failed=str(error))


def _batches(source: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    for item in source:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answer(
    sampler: LatentSampler,
    encoder: Encoder,
    records: Sequence[Record],
    todo: Sequence[tuple[int, Prompt]],
    n: int,
    greedy: bool,
    config: SamplingConfig,
) -> list[Question]:
    """Sample answers to all of `todo`; those that the model has no answer to fail, and the others go on."""
    failed: list[Question] = []
    while todo:
        try:
            return failed + _answered(sampler, encoder, records, todo, n, greedy, config)
        except SamplingError as error:
            failed += [_question(records[todo[k][0]], failed=reason) for k, reason in error.prompts.items()]
            todo = [item for k, item in enumerate(todo) if k not in error.prompts]
    return failed


def _answered(
    sampler: LatentSampler,
    encoder: Encoder,
    records: Sequence[Record],
    todo: Sequence[tuple[int, Prompt]],
    n: int,
    greedy: bool,
    config: SamplingConfig,
) -> list[Question]:
    rows = [i for i, _ in todo]
    prompts = [prompt for _, prompt in todo]
    with torch.no_grad():
        features = encode_prompts(sampler.backbone, prompts)  # each distinct clip once, for both calls below
    nothing = _Answers((), (), 0)
    drawn, best = [nothing] * len(todo), [nothing] * len(todo)
    if n:
        seeds = [sample_seed(config.seed, records[i].id, k) for i in rows for k in range(n)]
        drawn = _sample(sampler, encoder, prompts, features, n, config, seeds)
    if greedy:
        seeds = [sample_seed(config.seed, records[i].id, -1) for i in rows]
        best = _sample(sampler, encoder, prompts, features, 1, replace(config, temperature=0.0), seeds)
    return [
        _question(
            records[i],
            answers=tuple(_parse(text, records[i]) for text in some.texts),
            texts=some.texts,
            lengths=some.lengths,
            truncated=some.truncated,
            greedy=_parse(one.texts[0], records[i]) if greedy else None,
            greedy_text=one.texts[0] if greedy else None,
            times_from=prompt.vision.times_from if prompt.vision is not None else "container",
        )
        for i, prompt, some, one in zip(rows, prompts, drawn, best, strict=True)
    ]


def _parse(text: str, record: Record) -> str | None:
    return parse_answer(text, record.options) if record.options else parse_number(text)


def _sample(
    sampler: LatentSampler,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    features: Sequence[torch.Tensor | None],
    n: int,
    config: SamplingConfig,
    seeds: list[int],
) -> list[_Answers]:
    rollout = sampler.sample(prompts, n=n, config=config, seeds=seeds, features=features)
    texts = rollout.texts(encoder.tokenizer)
    lengths = rollout.lengths.tolist()
    cut = [reason == "length" for reason in rollout.finish_reason]
    out = []
    for start in range(0, len(texts), n):
        rows = slice(start, start + n)
        out.append(_Answers(tuple(texts[rows]), tuple(lengths[rows]), sum(cut[rows])))
    return out
