"""Many questions answered into one JSONL file, safe to kill and to start again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fourdthinker.errors import ConfigError, FourdError, RecordError, SamplingError
from fourdthinker.evaluate import group_clips, read_clips, sample_seed
from fourdthinker.evaluate.asking import Asking
from fourdthinker.evaluate.latent_modes import OF_OWN, Key, LatentFeeds, latent_feeds
from fourdthinker.evaluate.weights import weights_of
from fourdthinker.files import JsonLines, PathLike, make_folder, parse_json, write_bytes
from fourdthinker.progress import progress_bar
from fourdthinker.records import Record, question_key
from fourdthinker.sampler import SamplingConfig, check_count
from fourdthinker.samples import Prompt
from fourdthinker.thinker import Answer, Thinker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """What `generate_file` did: questions answered now, those answered before, and those that failed."""

    answered: int
    before: int
    failed: dict[str, str]  # id to reason


def generate_file(
    thinker: Thinker,
    records: Sequence[Record],
    out: PathLike | JsonLines,
    *,
    n: int = 1,
    config: SamplingConfig,
    batch: int = 8,
    latents_out: PathLike | None = None,
    latents: str = "own",
    name: str = "model",
    progress: bool = True,
) -> Generated:
    """Answer every record n times and append the answers to a JSONL file as they come.

    A line holds id, sample, question, the media, text (blocks as "[imagery × 4]"), choice, finish_reason,
    tokens (their number), seed, and key: a digest of question and settings. A question whose media cannot be
    read, whose prompt the model cannot take, or whose logits are NaN gets one line with `error` instead; the
    others go on. Run again with the same `out`, questions that have their answers are left alone and failed
    ones are tried anew; an answer's seed comes from `config.seed`, the id and the sample's number, so that
    an interrupted file ends up as an unbroken one, in the order in which questions were finished.

    Args:
        thinker: the model.
        records: questions with unique ids.
        out: the file of answers, in a folder that exists; one that is open stays open.
        n: answers to a question.
        config: sampling settings.
        batch: questions in one call of the sampler.
        latents_out: a folder that gets one safetensors file an answer, with `latents` [N, H] and `steps` [N];
            lines then name it under `latents`.
        latents: what the model is fed inside its blocks, one of `sampler.LATENT_MODES`; for those that are
            made of own latents all questions are sampled once more, first.
        name: of the model, part of the key.
        progress: whether to show a progress bar on standard error.

    Returns:
        How many questions were answered now and before, and which failed.

    Raises:
        RecordError: two records with the same id; latents "oracle", and a record without overlays.
        ConfigError: n or batch is no integer above 0; a mode of `latents` that is unknown or needs more
            videos; `out` holds other lines than answers, or answers to the same ids from other settings.
        OutputError: `out` or `latents_out` cannot be written, or another process is writing `out`.
    """
    check_count("n", n)
    check_count("batch", batch)
    settings = [name, asdict(config), n, asdict(thinker.encoder.policy), asdict(thinker.encoder.style)]
    settings += [latents, weights_of(thinker.checkpoint.backbone)]
    keys = {record.id: _key(record, settings, overlays=latents == "oracle") for record in records}
    if len(keys) < len(records):
        ids = [record.id for record in records]
        raise RecordError(f"id {max(ids, key=ids.count)!r} appears twice; make the ids unique")
    folder = None if latents_out is None else make_folder(latents_out)
    feeds = latent_feeds(latents, thinker.checkpoint.backbone, thinker.encoder, records, config)
    with nullcontext(out) if isinstance(out, JsonLines) else JsonLines(out) as file:
        done = _answered(file, keys, n)
        todo = [record for record in records if record.id not in done]
        if latents in OF_OWN and todo:
            feeds.own = _own(thinker, records, n, config, feeds, batch)
        writer = _Writer(thinker, config, n, file, folder, keys, feeds)
        with progress_bar(shown=progress, transient=True) as bar:
            task = bar.add_task("generate", total=len(records), completed=len(done))
            ready: list[tuple[Record, Prompt]] = []
            for number, (record, prompt) in enumerate(_prompts(thinker, todo, config), start=1):
                if isinstance(prompt, Prompt):
                    ready.append((record, prompt))
                else:
                    writer.fail(record, str(prompt))
                if len(ready) == batch or number == len(todo):
                    writer.answer(ready)
                    ready = []
                bar.update(task, completed=len(done) + number - len(ready))
    return Generated(len(todo) - len(writer.failed), len(done), writer.failed)


def _prompts(
    thinker: Thinker, records: Sequence[Record], config: SamplingConfig
) -> Iterator[tuple[Record, Prompt | FourdError]]:
    clips = group_clips(records)
    for clip, vision in zip(clips, read_clips(clips, thinker.encoder), strict=True):
        for record in (records[i] for i in clip.rows):
            if isinstance(vision, FourdError):
                yield record, vision
                continue
            try:
                prompt = thinker.encoder.prompt(record, frames=vision)
                # Length and memory alone; the sampler checks the rest once the features are there.
                thinker.sampler.check_fits(prompt, config.max_new_tokens, record.id)
            except FourdError as error:
                yield record, error
            else:
                yield record, prompt


def _own(
    thinker: Thinker, records: Sequence[Record], n: int, config: SamplingConfig, feeds: LatentFeeds,
    batch: int,
) -> dict[Key, Tensor]:  # fmt: skip
    """The latents that the model thinks itself in the n answers to every record that can be asked."""
    asking = Asking(thinker.sampler, thinker.encoder, records, n, False, config, feeds)
    number = {record.id: i for i, record in enumerate(records)}
    ready = [
        (number[record.id], prompt)
        for record, prompt in _prompts(thinker, records, config)
        if isinstance(prompt, Prompt)
    ]
    return asking.own(ready[start : start + batch] for start in range(0, len(ready), batch))


@dataclass
class _Writer:
    """Answers questions, and writes the lines of those that are answered and of those that failed."""

    thinker: Thinker
    config: SamplingConfig
    n: int
    file: JsonLines
    folder: Path | None
    keys: dict[str, str]
    feeds: LatentFeeds
    failed: dict[str, str] = field(default_factory=dict)

    def fail(self, record: Record, reason: str) -> None:
        self.failed[record.id] = reason
        log.warning("no answer to %s: %s", record.id, reason)
        self.file.append([_about(record) | {"error": reason, "key": self.keys[record.id]}])

    def answer(self, items: Sequence[tuple[Record, Prompt]]) -> None:
        """Sample all of them together; those that the model has no answer to fail, and the others go on."""
        while items:
            try:
                lines = self._lines(items)
            except SamplingError as error:
                for index, reason in error.prompts.items():
                    self.fail(items[index][0], reason)
                items = [item for index, item in enumerate(items) if index not in error.prompts]
            else:
                self.file.append(lines)
                return

    def _lines(self, items: Sequence[tuple[Record, Prompt]]) -> list[dict[str, Any]]:
        prompts, n = [prompt for _, prompt in items], self.n
        rows = [(record.id, k) for record, _ in items for k in range(n)]
        seeds = [sample_seed(self.config.seed, id, k) for id, k in rows]
        rollout = self.thinker.sample(prompts, n, self.config, seeds=seeds, feed=self.feeds.feed(rows))
        lines = []
        for row, answer in enumerate(self.thinker.answers(rollout, prompts)):
            record, sample = items[row // n][0], row % n
            line = _about(record) | {
                "sample": sample,
                "text": answer.text,
                "choice": answer.choice,
                "finish_reason": answer.finish_reason,
                "tokens": answer.tokens.numel(),
                "seed": seeds[row],
                "key": self.keys[record.id],
            }
            if self.folder is not None:
                name = f"{self.keys[record.id]}-{sample}"
                line["latents"] = _save_latents(self.folder, name, record, answer)
            lines.append(line)
        return lines


def _save_latents(folder: Path, name: str, record: Record, answer: Answer) -> str:
    """Named by digest and sample, since an id may be anything; the id is in the file's metadata."""
    path = folder / f"{name}.safetensors"
    tensors = {"latents": answer.latents.contiguous(), "steps": answer.latent_steps.contiguous()}
    write_bytes(path, save(tensors, metadata={"id": record.id}))
    return str(path)


def _about(record: Record) -> dict[str, Any]:
    media: dict[str, Any] = {"video": record.video} if record.video is not None else {}
    if record.frames:
        media = {"images" if record.separate else "frames": record.frames}
    if record.media:
        media = {"media": record.media}
    cut = {key: value for key in ("start", "end") if (value := getattr(record, key)) is not None}
    options = {"options": record.options} if record.options else {}
    return {"id": record.id, "question": record.question, **media, **cut, **options}


def _key(record: Record, settings: Sequence[Any], *, overlays: bool) -> str:
    asked = [*settings, question_key(record), record.images if overlays else []]
    return hashlib.blake2b(json.dumps(asked, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def _answered(file: JsonLines, keys: dict[str, str], n: int) -> set[str]:
    """Ids with all their answers in the file; what is not whole (a cut line, a failure) is taken out."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(file.lines(), start=1):
        try:
            line = parse_json(text)
            lines.append({"id": line["id"], "key": line["key"], "raw": text, "failed": "error" in line})
            other = keys.get(line["id"], line["key"]) != line["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file.name}:{number}: not a line of answers ({error}); choose another file for --out"
            ) from error
        if other:
            raise ConfigError(
                f"{file.name}:{number}: {line['id']!r} was answered with another question, model or setting; "
                "delete the file to start anew, or choose another for --out"
            )
    good = [line for line in lines if not line["failed"]]
    counts = Counter(line["id"] for line in good)
    whole = {id for id, count in counts.items() if count >= n or id not in keys}
    file.keep([line["raw"] for line in good if line["id"] in whole])
    return whole & set(keys)
