"""Records as prompts, in batches: each clip is read once, and what cannot be asked is a failed question."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
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
from fourdthinker.evaluate.numeric import parse_number
from fourdthinker.evaluate.results import AnsweredQuestion
from fourdthinker.records import source_of

if TYPE_CHECKING:
    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.samples import Prompt

_NO_DONOR = (
    "frames_override='other': no question about another source shows as many videos and images, and has them"
)
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
    # A number as it is compared: without commas and unit.
    answer = record.answer if record.options else parse_number(f"<answer>{record.answer}</answer>")
    assert answer is not None
    media = [list(pair) for pair in record.shown]
    shown = {"media": media, "start": record.start, "end": record.end} if media else {}
    return AnsweredQuestion(
        record.id, record.type or "", source_of(record), dict(record.options), answer,
        question=record.question, shown=shown,
        **answers,
    )  # fmt: skip


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
        shown: the clip that is shown for each of `clips`; None where there is none to exchange it for, so
            that its questions fail.
    """

    records: Sequence[Record]
    encoder: Encoder
    clips: Sequence[AskedClip]
    override: Override | None
    seed: int
    prompts: Sequence[Prompt] | None = None
    shown: Sequence[AskedClip | None] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.prompts is not None:
            if self.override is not None:
                spec = self.encoder.spec
                self.prompts = override_prompts(self.prompts, self.clips, self.override, self.seed, spec)
            return
        bare = next((clip.record for clip in self.clips if not clip.record.shown), None)
        if bare is not None and self.override in ("black", "other"):
            raise ConfigError(f"{bare.where}: frames_override needs records with pictures; leave it out")
        self.shown = donors(self.clips, self.override, self.seed)
        if self.clips and not any(self.shown):
            raise ConfigError(
                "frames_override='other' needs at least two different clips that are there, of two sources "
                "and with as many videos and images, and there are none; add records"
            )

    def batches(self, done: Collection[str], size: int) -> Iterator[list[Prepared]]:
        """The records as prompts, in batches, without the batches that are done.

        Which records make a batch is the same whatever was done before, so that an evaluation which goes on
        computes what one in a single run does, to the last bit.

        Args:
            done: ids; a batch is left out where all its records are among them.
            size: of a batch; the last one may be smaller.

        Yields:
            Index and prompt of `size` records, or their failed questions.
        """
        order = self._order()
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        rows = {i for part in parts if not self._all_in(part, done) for i in part}
        batch: list[Prepared] = []
        for item in self._encoded(rows) if self.prompts is None else self._ready(self.prompts, rows):
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def failing(self, ids: Collection[str]) -> dict[str, AnsweredQuestion]:
        """Those of these records for which no prompt can be made.

        Args:
            ids: of records.

        Returns:
            Their failed questions, by id.
        """
        if self.prompts is not None:
            return {}
        rows = {i for i, record in enumerate(self.records) if record.id in ids}
        return {item.id: item for item in self._encoded(rows) if isinstance(item, AnsweredQuestion)}

    def _all_in(self, rows: Sequence[int], ids: Collection[str]) -> bool:
        return all(self.records[i].id in ids for i in rows)

    def _order(self) -> list[int]:
        """All rows, as they are asked."""
        if self.prompts is not None:
            lengths = [len(prompt.input_ids) for prompt in self.prompts]
            # similar lengths together, so that little is padded; ties stay in order
            return sorted(range(len(lengths)), key=lengths.__getitem__)
        clips = [(shown is not None, clip.rows) for clip, shown in zip(self.clips, self.shown, strict=True)]
        return [i for _, rows in sorted(clips, key=lambda clip: clip[0]) for i in rows]

    def _ready(self, prompts: Sequence[Prompt], rows: Collection[int]) -> Iterator[Prepared]:
        yield from ((i, prompts[i]) for i in self._order() if i in rows)

    def _encoded(self, wanted: Collection[int]) -> Iterator[Prepared]:
        """In the order of `_order`; a clip without a donor comes before those that are read."""
        records, override, encoder = self.records, self.override, self.encoder
        work: list[tuple[list[int], AskedClip]] = []
        for clip, donor in zip(self.clips, self.shown, strict=True):
            rows = [i for i in clip.rows if i in wanted]
            if donor is None:
                yield from (make_question(records[i], failed=_NO_DONOR) for i in rows)
            elif rows:
                work.append((rows, donor))
        for (rows, _), vision in zip(work, read_clips([s for _, s in work], encoder), strict=True):
            if isinstance(vision, VideoError):
                yield from (make_question(records[i], failed=str(vision)) for i in rows)
                continue
            if override == "black" and vision is not None:
                vision = blacken(vision, encoder.spec)
            for i in rows:
                try:
                    asked = without_pictures(records[i]) if override == "none" else records[i]
                    yield i, encoder.prompt(asked, frames=vision)
                except RecordError as error:  # a control token of this model's tokenizer
                    yield make_question(records[i], failed=str(error))
