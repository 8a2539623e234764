"""Records as prompts, in batches: each clip is read once, and what cannot be asked is a failed question."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fourdthinker.errors import ConfigError, RecordError, VideoError
from fourdthinker.evaluate.clips import (
    AskedClip,
    Override,
    blacken,
    donors,
    override_prompts,
    read_clips,
    without_pictures,
)
from fourdthinker.evaluate.results import AnsweredQuestion
from fourdthinker.records import source_of

if TYPE_CHECKING:
    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.samples import Prompt

Prepared: TypeAlias = "AnsweredQuestion | tuple[int, Prompt]"


def make_question(record: Record, **answers: Any) -> AnsweredQuestion:
    """The question of a record that has an answer.

    Args:
        record: of the data.
        answers: further fields of `AnsweredQuestion`.

    Returns:
        The question.
    """
    assert record.answer is not None  # checked before anything ran
    return AnsweredQuestion(
        record.id, record.type or "", source_of(record), dict(record.options), record.answer, **answers
    )


@dataclass
class PromptBatches:
    """The records of an evaluation, to be asked.

    Attributes:
        records: the questions.
        encoder: makes their prompts.
        clips: as `group_clips` returns.
        override: what is shown instead of their clips.
        seed: of the exchange of clips.
        prompts: ready-made ones, in which the pictures are exchanged already; None: they are made.
    """

    records: Sequence[Record]
    encoder: Encoder
    clips: Sequence[AskedClip]
    override: Override | None
    seed: int
    prompts: Sequence[Prompt] | None = None

    def __post_init__(self) -> None:
        if self.prompts is not None and self.override is not None:
            spec = self.encoder.spec
            self.prompts = override_prompts(self.prompts, self.clips, self.override, self.seed, spec)

    def batches(self, done: Collection[str], size: int) -> Iterator[list[Prepared]]:
        """The records that are not done yet, as prompts.

        Args:
            done: ids of records to leave out.
            size: of a batch at most.

        Yields:
            Index and prompt of up to `size` records, or their failed questions.
        """
        batch: list[Prepared] = []
        for item in self._encoded(done) if self.prompts is None else self._ready(self.prompts, done):
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _ready(self, prompts: Sequence[Prompt], done: Collection[str]) -> Iterator[Prepared]:
        # similar lengths together, so that little is padded; ties stay in order
        rows = [i for i, record in enumerate(self.records) if record.id not in done]
        yield from ((i, prompts[i]) for i in sorted(rows, key=lambda i: len(prompts[i].input_ids)))

    def _encoded(self, done: Collection[str]) -> Iterator[Prepared]:
        records, override, encoder = self.records, self.override, self.encoder
        shown = donors(self.clips, override, self.seed)
        work = [
            (c, s)
            for c, s in zip(self.clips, shown, strict=True)
            if any(records[i].id not in done for i in c.rows)
        ]
        for (clip, _), vision in zip(work, read_clips([s for _, s in work], encoder), strict=True):
            rows = [i for i in clip.rows if records[i].id not in done]
            if isinstance(vision, VideoError):
                yield from (make_question(records[i], failed=str(vision)) for i in rows)
                continue
            if override in ("black", "other"):
                if vision is None:
                    raise ConfigError(
                        f"{records[rows[0]].where}: frames_override needs records with pictures"
                    )
                vision = blacken(vision, encoder.spec) if override == "black" else vision
            for i in rows:
                try:
                    asked = without_pictures(records[i]) if override == "none" else records[i]
                    yield i, encoder.prompt(asked, frames=vision)
                except RecordError as error:  # a control token of this model's tokenizer
                    yield make_question(records[i], failed=str(error))
