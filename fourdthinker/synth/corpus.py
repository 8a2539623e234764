"""The stages that need the whole corpus: options from other clips' answers, narration, records."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fourdthinker.errors import FourdError
from fourdthinker.synth.asking import facts_of, question_of, shown_frames
from fourdthinker.synth.imagery import from_above
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import QUARANTINED, Entry, Journal, State
from fourdthinker.synth.narrate import BudgetError, EndpointError
from fourdthinker.synth.narration import narrated
from fourdthinker.synth.options import add_options
from fourdthinker.synth.payload import dumps, loads
from fourdthinker.synth.questions import Facts, Question
from fourdthinker.synth.settings import CLIP_STAGES, VERSION, SynthSettings
from fourdthinker.synth.stages import keys
from fourdthinker.synth.write import Made, split_of, write_all

CORPUS = "corpus"  # the source of what is made of all clips, in the journal


_KEPT = 32  # clips whose results are held at a time: questions of a clip come one after the other


@dataclass(frozen=True)
class Finished:
    """A clip that has been through all stages of its own, and their keys by stage."""

    source: Source
    item: str
    keys: dict[str, str]


class Results:
    """What the stages found out about clips: read from the journal when asked for, and a few kept."""

    def __init__(self, clips: Mapping[str, Finished], journal: Journal) -> None:
        self._clips, self._journal = clips, journal
        self.of = lru_cache(_KEPT)(self._read)
        self.facts = lru_cache(_KEPT)(self._facts)

    def _read(self, item: str) -> dict[str, Any]:
        return {stage: self.stage(item, stage) for stage in ("ingest", *CLIP_STAGES)}

    def stage(self, item: str, stage: str) -> Any:
        """The result of one stage of a clip."""
        entry = self._journal.find(item, stage, self._clips[item].keys[stage])
        assert entry is not None  # the clip is finished
        return loads(entry.payload or b"")

    def _facts(self, item: str) -> Facts:
        return facts_of(item, self._clips[item].source.group, self.of(item))


def finished_clips(
    sources: Mapping[str, Source], settings: SynthSettings, journal: Journal
) -> Iterator[Finished]:
    """Clips of which every stage is done under these settings, in the order of sources and times."""
    for name in sorted(sources):
        own = keys(sources[name], settings)
        done: dict[str, set[str]] = {}
        for entry in journal.of_source(name):
            if entry.state == "done" and own.get(entry.stage) == entry.key:
                done.setdefault(entry.item, set()).add(entry.stage)
        for item, stages in sorted(done.items()):
            if stages == own.keys():
                yield Finished(sources[name], item, own)


def finish(
    sources: Mapping[str, Source],
    settings: SynthSettings,
    stages: Sequence[str],
    out: Path,
    journal: Journal,
    attempts: int,
) -> dict[str, Any]:
    """Options, narration and records of all finished clips.

    Options and narrations stand in the journal, under keys of all that they depend on; records are written
    in each run.

    Args:
        sources: of the run.
        settings: of the run.
        stages: those wanted.
        out: the output folder.
        journal: of the folder.
        attempts: runs in which the endpoint may fail to narrate a question before it is left alone.

    Returns:
        "stages": counts and reasons by stage; "records": counts by split; "made": the records; "failed" and
        "quarantined": questions.
    """
    if "options" not in stages:
        return {}
    clips = {clip.item: clip for clip in finished_clips(sources, settings, journal)}
    results = Results(clips, journal)
    started = time.perf_counter()
    asked, left_out = _with_options(clips.values(), results, settings, journal)
    counts = {"options": _counted(len(asked), left_out, started)}
    if "narrate" not in stages:
        return {"stages": counts}
    started = time.perf_counter()
    told = list(_narrated(asked, clips, results, settings, out, journal, attempts))
    lost: dict[str, dict[str, str]] = {"failed": {}, QUARANTINED: {}}
    for question, entry in told:
        if entry.state == "failed":
            lost[QUARANTINED if entry.attempts >= attempts else "failed"][question.id] = entry.reason
    faults = Counter(entry.reason for _, entry in told if entry.state == "rejected")
    texts = [(question, entry) for question, entry in told if entry.state == "done"]
    counts["narrate"] = _counted(len(texts), faults, started)
    counts["narrate"] |= {state: dict(Counter(reasons.values())) for state, reasons in lost.items()}
    found: dict[str, Any] = {"stages": counts, **{state: list(names) for state, names in lost.items()}}
    if "write" not in stages:
        return found
    started = time.perf_counter()
    made = [
        _made(clips[question.clip].source, question, results, loads(entry.payload or b""))
        for question, entry in texts
    ]
    records = write_all(made, settings, out)
    counts["write"] = _counted(len(made), Counter(), started)
    return {**found, "records": records, "made": made}


def _counted(done: int, rejected: Counter[str], started: float) -> dict[str, Any]:
    return {"done": done, "rejected": dict(rejected), "seconds": time.perf_counter() - started}


def _with_options(
    clips: Iterable[Finished], results: Results, settings: SynthSettings, journal: Journal
) -> tuple[list[Question], Counter[str]]:
    """Options are drawn within each split, so that no split says anything about another one."""
    by_split: dict[str, list[Finished]] = {name: [] for name in settings.splits}
    for clip in clips:
        by_split[split_of(clip.source.group, settings.seed, settings.splits)].append(clip)
    asked: list[Question] = []
    left_out: Counter[str] = Counter()
    for split, members in by_split.items():
        key = _key("options", settings.seed, [(clip.item, clip.keys["questions"]) for clip in members])
        entry = journal.find(split, "options", key)
        if entry is None or entry.payload is None:
            started = time.perf_counter()
            questions = [
                question_of(values)
                for clip in members
                for values in results.stage(clip.item, "questions")["questions"]
            ]
            found = add_options(questions, settings.seed)
            payload = dumps({"asked": found.questions, "rejected": Counter(found.rejected.values())})
            seconds = time.perf_counter() - started
            entry = Entry(split, "options", key, CORPUS, "done", seconds=seconds, payload=payload)
            journal.record(entry)
        known = loads(entry.payload or b"")
        asked += [question_of(values) for values in known["asked"]]
        left_out.update(known["rejected"])
    return asked, left_out


def _key(*values: Any) -> str:
    return hashlib.blake2b(dumps([VERSION, *values]), digest_size=16).hexdigest()


def _narrated(
    asked: Sequence[Question],
    clips: Mapping[str, Finished],
    results: Results,
    settings: SynthSettings,
    out: Path,
    journal: Journal,
    attempts: int,
) -> Iterator[tuple[Question, Entry]]:
    """Each question with the outcome of its narration; what is settled is not narrated once more."""
    known: dict[str, Entry] = {}
    keys = {}
    for question in asked:
        made_of = clips[question.clip].keys["imagery"], settings.seed, settings.narrator_model
        keys[question.id] = _key("narrate", question, made_of)
        entry = journal.find(question.id, "narrate", keys[question.id])
        if entry is not None and (entry.state != "failed" or entry.attempts >= attempts):
            known[question.id] = entry
    left = [question for question in asked if question.id not in known]
    fresh = narrated(left, results.facts, results.of, out, settings)
    for question in asked:
        if question.id in known:
            yield question, known[question.id]
            continue
        _, text = next(fresh)
        entry = _outcome(question, keys[question.id], clips[question.clip].source.name, text)
        if not isinstance(text, BudgetError):  # which says nothing about the question
            entry = journal.record(entry)
        yield question, entry


def _outcome(question: Question, key: str, source: str, text: str | FourdError) -> Entry:
    if isinstance(text, str):
        return Entry(question.id, "narrate", key, source, "done", payload=dumps(text))
    state: State = "failed" if isinstance(text, EndpointError | BudgetError) else "rejected"
    return Entry(question.id, "narrate", key, source, state, str(text))


def _made(source: Source, question: Question, results: Results, reasoning: str) -> Made:
    found = results.of(question.clip)
    frames, times = shown_frames(question, found["ingest"])
    shown = found["imagery"][question.id]
    labels = [f"{k}, {t:.1f} s" for k, t in zip(shown["kinds"], shown["instants"], strict=True)]
    extra: dict[str, Any] = {"interval": [question.start, question.end], "imagery": labels}
    extra["above"] = _above(results.facts(question.clip), question.support.object)
    if question.centres is not None:
        extra["centres"] = question.centres
    return Made(
        source,
        question.id,
        question.type,
        question.text,
        question.options,
        question.letter or question.answer,
        reasoning,
        frames,
        times,
        shown["images"],
        None if question.bbox is None else list(question.bbox),
        extra,
    )


def _above(facts: Facts, name: str | None) -> dict[str, list[list[float]]]:
    """Camera and object from above, a few points a second, for the preview."""
    camera = facts.camera
    track = next((item.track for item in facts.objects if item.track.name == name), None)
    points = [camera.centres] + ([] if track is None else [track.positions_in(camera.times)])
    seen = from_above(camera.poses, points)
    step = max(1, len(camera.times) // 16)
    return {
        key: [[round(float(x), 3), round(float(y), 3)] for x, y in (*path[:-1:step], path[-1])]
        for key, path in zip(("camera", "object"), seen, strict=False)
    }
