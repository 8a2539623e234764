"""Records as JSONL shards, split by source video, and the data card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourdthinker.audit import audit, read_questions
from fourdthinker.files import LETTERS, write_text
from fourdthinker.records import Record, write_records
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings

CARD = "README.md"
_NOT_AUDITED = "Not audited: `fourdthinker synth --audit` does, or `fourdthinker audit rl-*.jsonl`."


@dataclass(frozen=True)
class Made:
    """All that one record is written from.

    Attributes:
        source: of the clip.
        id, type, text: of the question.
        options: letter -> text; {} for an open question, which makes no 4DRL record.
        answer: the letter of the right one, or the answer to an open question.
        reasoning: with one <output_image> for each of `images`.
        frames: paths of the clip's frames, relative to the output folder.
        seconds: when each is shown.
        images: paths of the imagery.
        extra: interval, object, box and paths, for the preview and for analysis.
    """

    source: Source
    id: str
    type: str
    text: str
    options: dict[str, str]
    answer: str
    reasoning: str
    frames: list[str]
    seconds: list[float]
    images: list[str]
    bbox: list[float] | None
    extra: dict[str, Any]


def split_of(group: str, seed: int, shares: Mapping[str, float]) -> str:
    """The split of a video: the same for all that is made of it, and for whatever other videos there are.

    Args:
        group: digest of the video.
        seed: of the run.
        shares: of each split.

    Returns:
        The name of one.
    """
    hashed = hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).digest()
    position, total = int.from_bytes(hashed, "big") / 2**64, 0.0
    for name, share in shares.items():
        total += share
        if position < total:
            return name
    return list(shares)[-1]


def write_all(made: Sequence[Made], settings: SynthSettings, out: Path) -> dict[str, dict[str, int]]:
    """Write dift-SPLIT-NNNNN.jsonl and rl-SPLIT-NNNNN.jsonl, each replaced at once.

    Args:
        made: all records, in the order in which they are written.
        settings: splits, seed and shard_records.
        out: the folder.

    Returns:
        Split -> kind -> number of records.
    """
    by_split: dict[str, list[Made]] = {name: [] for name in settings.splits}
    for one in made:
        by_split[split_of(one.source.group, settings.seed, settings.splits)].append(one)
    counts: dict[str, dict[str, int]] = {}
    written = set()
    for split, records in by_split.items():
        counts[split] = {}
        for kind in ("dift", "rl"):
            kept = [one for one in records if one.options or kind == "dift"]
            counts[split][kind] = len(kept)
            for start in range(0, len(kept), settings.shard_records):
                path = out / f"{kind}-{split}-{start // settings.shard_records:05d}.jsonl"
                part = kept[start : start + settings.shard_records]
                write_records(path, [_record(one, kind, out) for one in part])
                written.add(path.name)
    for kind in ("dift", "rl"):
        for path in out.glob(f"{kind}-*-[0-9][0-9][0-9][0-9][0-9].jsonl"):
            if path.name not in written:  # of an earlier run that had more
                path.unlink()
    return counts


def _record(one: Made, kind: str, out: Path) -> Record:
    listed = "\n".join(f"{letter}. {text}" for letter, text in one.options.items())
    extra: dict[str, Any] = {"source": one.source.shown, "extra": one.extra}
    if one.bbox is not None:
        extra["bbox"] = one.bbox
    record = Record(
        kind,
        one.id,
        f"{one.text}\n\n{listed}" if kind == "dift" and listed else one.text,
        options=one.options,
        answer=one.answer if one.options else None,
        frames=[str(out / path) for path in one.frames],
        seconds=one.seconds,
        type=one.type,
        extra=extra,
    )
    if kind == "dift":
        record.text_output = one.reasoning
        record.images = [str(out / path) for path in one.images]
    return record


def write_card(
    out: Path,
    made: Sequence[Made],
    counts: dict[str, dict[str, int]],
    rejected: Iterable[tuple[str, str, int]] = (),
    audited: Sequence[str] | None = None,
) -> None:
    """Write the data card, README.md.

    Args:
        out: the folder.
        made: all records.
        counts: of `write_all`.
        rejected: (stage, reason, items).
        audited: lines of `audited_lines`; None: not audited.
    """
    types = Counter(one.type for one in made)
    licences = Counter(one.source.licence or "not given" for one in {m.source.name: m for m in made}.values())
    lines = ["# Data card", "", "Made by `fourdthinker synth`; settings.json says how.", ""]
    lines += ["| split | records |", "|---|---|"]
    lines += [f"| {split} | {row['dift']} |" for split, row in counts.items()]
    lines += [
        "",
        "| question type | records | answers: letters | most frequent answers |",
        "|---|---|---|---|",
    ]
    for kind, number in sorted(types.items()):
        letters = Counter(one.answer for one in made if one.type == kind and one.options)
        answers = Counter(one.options.get(one.answer, one.answer) for one in made if one.type == kind)
        spread = " ".join(f"{letter} {letters[letter]}" for letter in LETTERS if letters[letter])
        common = "; ".join(f"{_cell(text)} {count}" for text, count in answers.most_common(6))
        lines.append(f"| {kind} | {number} | {spread} | {common} |")
    lines += ["", "## Left out", "", "| stage | reason | items |", "|---|---|---|"]
    lines += [f"| {stage} | {_cell(reason)} | {number} |" for stage, reason, number in rejected]
    lines += ["", "## What is answered without eyes", "", *(audited or [_NOT_AUDITED])]
    lines += ["", "## Licences of the videos", ""]
    lines += [f"- {_cell(name)}: {number} videos" for name, number in sorted(licences.items())]
    write_text(out / CARD, "\n".join(lines) + "\n")


def audited_lines(out: Path) -> list[str]:
    """What solvers without eyes answer of the choice questions of each split, as lines of the data card.

    Args:
        out: the folder, with its records.

    Returns:
        A table in Markdown, or why there is none.
    """
    lines = []
    for split in sorted({path.name.split("-")[1] for path in out.glob("rl-*-[0-9]*.jsonl")}):
        items = [
            item for path in sorted(out.glob(f"rl-{split}-*.jsonl")) for item in read_questions(path).items
        ]
        if len({item.group for item in items}) < 2:
            lines.append(f"- {split}, all ({len(items)} questions): 1 video is too few to tell")
            continue
        audited = audit(items)
        found = [line for line in audited.lines if line.type is None]
        lines += ["", f"| {split}: solver | questions | right | interval | chance |", "|---|---|---|---|---|"]
        lines += [
            f"| {line.solver} | {line.questions} | {100 * line.accuracy:.1f} % | {100 * line.low:.1f} to "
            f"{100 * line.high:.1f} % | {100 * line.chance:.1f} % |"
            for line in found
        ]
        lines += ["", *(f"- {split}, {_cell(doubt)}" for doubt in audited.doubts)]
    return lines or ["No choice questions."]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
