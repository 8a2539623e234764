"""The stages that need the whole corpus: options from other clips' answers, narration, records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourdthinker.synth.asking import facts_of, question_of, shown_frames
from fourdthinker.synth.imagery import from_above
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Journal
from fourdthinker.synth.narrate import BudgetError, EndpointError
from fourdthinker.synth.narration import narrated
from fourdthinker.synth.options import add_options
from fourdthinker.synth.payload import loads
from fourdthinker.synth.questions import Facts, Question
from fourdthinker.synth.settings import CLIP_STAGES, SynthSettings
from fourdthinker.synth.stages import keys
from fourdthinker.synth.write import Made, split_of, write_all


@dataclass(frozen=True)
class Finished:
    """A clip that has been through all stages of its own, and their results by stage."""

    source: Source
    item: str
    results: dict[str, Any]


def finished_clips(
    sources: Mapping[str, Source], settings: SynthSettings, journal: Journal
) -> Iterator[Finished]:
    """Clips whose last stage is done under these settings, in the order of sources and times."""
    last = CLIP_STAGES[-1]
    for name in sorted(sources):
        own = keys(sources[name], settings)
        by_item: dict[str, dict[str, bytes]] = {}
        for entry in journal.of_source(name):
            if entry.state == "done" and entry.payload is not None and own.get(entry.stage) == entry.key:
                by_item.setdefault(entry.item, {})[entry.stage] = entry.payload
        for item, found in sorted(by_item.items()):
            if last in found:
                results = {stage: loads(data) for stage, data in found.items()}
                yield Finished(sources[name], item, results)


def finish(
    sources: Mapping[str, Source],
    settings: SynthSettings,
    stages: Sequence[str],
    out: Path,
    journal: Journal,
) -> dict[str, Any]:
    """Options, narration and records of all finished clips.

    These stages take seconds for thousands of clips and depend on all of them, so they are done in each run.

    Args:
        sources: of the run.
        settings: of the run.
        stages: those wanted.
        out: the output folder.
        journal: of the folder.

    Returns:
        "stages": counts and reasons by stage; "records": counts by split; "made": the records.
    """
    if "options" not in stages:
        return {}
    clips = {clip.item: clip for clip in finished_clips(sources, settings, journal)}
    started = time.perf_counter()
    asked, left_out = _with_options(clips.values(), settings)
    counts = {"options": _counted(len(asked), left_out, started)}
    if "narrate" not in stages:
        return {"stages": counts}
    started = time.perf_counter()
    made, faults, failed = _narrated(asked, clips, settings, out)
    counts["narrate"] = _counted(len(made), faults, started) | {"failed": dict(Counter(failed.values()))}
    if "write" not in stages:
        return {"stages": counts, "failed": list(failed)}
    started = time.perf_counter()
    records = write_all(made, settings, out)
    counts["write"] = _counted(len(made), Counter(), started)
    return {"stages": counts, "records": records, "made": made, "failed": list(failed)}


def _counted(done: int, rejected: Counter[str], started: float) -> dict[str, Any]:
    return {"done": done, "rejected": dict(rejected), "seconds": time.perf_counter() - started}


def _with_options(clips: Iterable[Finished], settings: SynthSettings) -> tuple[list[Question], Counter[str]]:
    """Options are drawn within each split, so that no split says anything about another one."""
    by_split: dict[str, list[Question]] = {name: [] for name in settings.splits}
    for clip in clips:
        split = split_of(clip.source.group, settings.seed, settings.splits)
        by_split[split] += [question_of(values) for values in clip.results["questions"]["questions"]]
    asked: list[Question] = []
    left_out: Counter[str] = Counter()
    for questions in by_split.values():
        found = add_options(questions, settings.seed)
        asked += found.questions
        left_out.update(found.rejected.values())
    return asked, left_out


def _narrated(
    asked: Sequence[Question], clips: Mapping[str, Finished], settings: SynthSettings, out: Path
) -> tuple[list[Made], Counter[str], dict[str, str]]:
    """The records, why others have none, and the questions that a later run may have more luck with."""
    wanted = {question.clip: clips[question.clip] for question in asked}
    facts = {name: facts_of(name, clip.source.group, clip.results) for name, clip in wanted.items()}
    shown = {name: clip.results for name, clip in wanted.items()}
    made, faults, failed = [], Counter[str](), {}
    for question, text in narrated(asked, facts, shown, out, settings):
        if isinstance(text, str):
            made.append(_made(clips[question.clip], question, facts[question.clip], text))
        elif isinstance(text, EndpointError | BudgetError):
            failed[question.id] = str(text)
        else:
            faults[str(text)] += 1
    return made, faults, failed


def _made(clip: Finished, question: Question, facts: Facts, reasoning: str) -> Made:
    frames, times = shown_frames(question, clip.results["ingest"])
    shown = clip.results["imagery"][question.id]
    labels = [f"{k}, {t:.1f} s" for k, t in zip(shown["kinds"], shown["instants"], strict=True)]
    extra: dict[str, Any] = {"interval": [question.start, question.end], "imagery": labels}
    extra["above"] = _above(facts, question.support.object)
    if question.centres is not None:
        extra["centres"] = question.centres
    return Made(
        clip.source,
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
