"""Questions of a harness as texts: every clip is read once, and what cannot be asked has no answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fourdthinker.answers import answer_text
from fourdthinker.errors import ConfigError, RecordError, SamplingError, VideoError
from fourdthinker.evaluate.asking import sample_seed
from fourdthinker.evaluate.clips import group_clips, read_clips
from fourdthinker.files import PathLike
from fourdthinker.records import Record
from fourdthinker.sampler import SamplingConfig
from fourdthinker.samples import Prompt
from fourdthinker.thinker import Thinker, question_record
from fourdthinker.transcript import text_plain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What the model wrote.

    Attributes:
        text: all of it, blocks as "[imagery × 4]"; empty where `failed`.
        tokens: how many ids were sampled.
        failed: why there is no answer; None if there is one.
    """

    text: str
    tokens: int = 0
    failed: str | None = None

    @property
    def answer(self) -> str:
        """The last closed `<answer>` of the text, or the whole text where it has none.

        Harnesses look for a letter or a number at the beginning of a text, and reasoning has others.
        """
        found = answer_text(self.text)
        return self.text if found is None else found


@dataclass
class Parts:
    """A question as its parts came, for `record`.

    Attributes:
        texts: in order; joined by line feeds they are the question. Pictures are shown before it.
        videos: files; one at most.
        images: files, shown as separate pictures.
        system: text of a system turn, or None.
        start: second from which the video is read, or None.
        end: second up to which it is read, or None.
    """

    texts: list[str]
    videos: list[PathLike]
    images: list[PathLike]
    system: str | None = None
    start: float | None = None
    end: float | None = None

    def record(self, id: str) -> Record:
        """The question as a record.

        Args:
            id: of the record; the seeds of sampling come from it.

        Returns:
            The record.

        Raises:
            ConfigError: several videos, or a video beside pictures; a file that does not exist; no text.
        """
        if len(self.videos) + bool(self.images) > 1:
            raise ConfigError(
                f"{id}: {len(self.videos)} videos and {len(self.images)} pictures in one question; the "
                "model is asked about one video or about pictures"
            )
        return question_record(
            self.videos[0] if self.videos else None, "\n".join(text for text in self.texts if text.strip()),
            images=self.images or None, start=self.start, end=self.end, system=self.system, id=id,
        )  # fmt: skip


def replies(
    thinker: Thinker, records: Sequence[Record], config: SamplingConfig, batch_prompts: int
) -> list[Reply]:
    """Answer questions once each.

    Args:
        thinker: the model.
        records: the questions, whose ids differ.
        config: sampling settings; a row's seed comes from `config.seed` and its record's id.
        batch_prompts: rows in one call of the sampler.

    Returns:
        A reply for each record, in their order. A clip that cannot be read, control tokens in a text and NaN
        logits are failed replies, with a warning each.
    """
    found: dict[int, Reply] = {}
    batch: list[tuple[int, Prompt]] = []
    for row, prompt in _prompts(thinker, records):
        if isinstance(prompt, Reply):
            found[row] = prompt
            continue
        batch.append((row, prompt))
        if len(batch) == batch_prompts:
            found |= _sampled(thinker, records, batch, config)
            batch = []
    found |= _sampled(thinker, records, batch, config)
    for row, reply in sorted(found.items()):
        if reply.failed is not None:
            log.warning("%s has no answer: %s", records[row].id, reply.failed)
    return [found[row] for row in range(len(records))]


def _prompts(thinker: Thinker, records: Sequence[Record]) -> Iterator[tuple[int, Prompt | Reply]]:
    clips = group_clips(records)
    for clip, vision in zip(clips, read_clips(clips, thinker.encoder), strict=True):
        for row in clip.rows:
            if isinstance(vision, VideoError):
                yield row, Reply("", failed=str(vision))
                continue
            try:
                yield row, thinker.encoder.prompt(records[row], frames=vision)
            except RecordError as error:  # a control token in the text
                yield row, Reply("", failed=str(error))


def _sampled(
    thinker: Thinker, records: Sequence[Record], batch: list[tuple[int, Prompt]], config: SamplingConfig
) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    while batch:
        seeds = [sample_seed(config.seed, records[row].id, 0) for row, _ in batch]
        prompts = [prompt for _, prompt in batch]
        try:
            with torch.no_grad():
                rollout = thinker.sample(prompts, 1, config, seeds=seeds)
        except SamplingError as error:
            found |= {batch[k][0]: Reply("", failed=reason) for k, reason in error.prompts.items()}
            batch = [item for k, item in enumerate(batch) if k not in error.prompts]
            continue
        texts, lengths = rollout.texts(thinker.encoder.tokenizer), rollout.lengths.tolist()
        for (row, prompt), text, length in zip(batch, texts, lengths, strict=True):
            found[row] = Reply(text_plain(prompt.assistant_prefix + text), length)
        break
    return found


def sampling(
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> SamplingConfig:
    """Settings as harnesses give them.

    Args:
        max_new_tokens: None: 512.
        temperature: None or 0: greedy.
        top_p: None or 0: off.
        top_k: None, 0 or less: off.
        seed: of sampling.

    Returns:
        Sampling settings.

    Raises:
        ConfigError: a value out of range.
    """
    config = SamplingConfig(temperature=float(temperature or 0.0), seed=seed)
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if config.temperature:  # tasks write top_p=0 or top_k=-1 where they mean none
        given |= {"top_p": top_p or None, "top_k": top_k if top_k is not None and top_k > 0 else None}
    return replace(config, **{name: value for name, value in given.items() if value is not None})
