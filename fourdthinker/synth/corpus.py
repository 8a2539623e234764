"""The stages that need the whole corpus: options from other clips' answers, narration, records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourdthinker.files import LETTERS
from fourdthinker.latents import IMAGERY
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Journal
from fourdthinker.synth.payload import loads
from fourdthinker.synth.settings import CLIP_STAGES, SynthSettings
from fourdthinker.synth.stages import keys
from fourdthinker.synth.write import Made, write_all, write_card


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

    Args:
        sources: of the run.
        settings: of the run.
        stages: those wanted.
        out: the output folder.
        journal: of the folder.

    Returns:
        "stages": counts by stage; "records": counts by split.
    """
    if "options" not in stages:
        return {}
    clips = list(finished_clips(sources, settings, journal))
    started = time.perf_counter()
    asked = [(clip, question) for clip in clips for question in clip.results["questions"]["questions"]]
    options = _options(asked, settings)
    counts = {"options": {"done": len(options), "seconds": time.perf_counter() - started}}
    if "narrate" not in stages:
        return {"stages": counts}
    started = time.perf_counter()
    made = [
        _made(clip, question, *options[question["id"]])
        for clip, question in asked
        if question["id"] in options
    ]
    counts["narrate"] = {"done": len(made), "seconds": time.perf_counter() - started}
    if "write" not in stages:
        return {"stages": counts}
    started = time.perf_counter()
    records = write_all(made, settings, out)
    write_card(out, made, records, [], [])
    counts["write"] = {"done": len(made), "seconds": time.perf_counter() - started}
    return {"stages": counts, "records": records}


def _options(
    asked: Sequence[tuple[Finished, dict[str, Any]]], settings: SynthSettings
) -> dict[str, tuple[dict[str, str], str]]:
    pools: dict[str, list[str]] = {}
    for _, question in asked:
        pools.setdefault(question["type"], []).append(question["answer"])
    found = {}
    for _, question in asked:
        seed = hashlib.blake2b(f"{settings.seed} {question['id']}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        others = sorted(set(pools[question["type"]]) - {question["answer"]})
        wrong = rng.permutation(others)[: settings.most_options - 1]
        if not len(wrong):
            continue
        texts = [str(text) for text in rng.permutation([question["answer"], *wrong])]
        options = dict(zip(LETTERS, texts, strict=False))
        found[question["id"]] = options, LETTERS[texts.index(question["answer"])]
    return found


def _made(clip: Finished, question: dict[str, Any], options: dict[str, str], answer: str) -> Made:
    images = clip.results["imagery"]["images"][question["id"]]
    shown = " to ".join([IMAGERY] * len(images))
    frames = clip.results["ingest"]
    return Made(
        clip.source,
        question["id"],
        question["type"],
        question["text"],
        options,
        answer,
        f"<think>I imagine it: {shown}.</think>\n<answer>{answer}. {options[answer]}</answer>",
        frames["frames"],
        frames["seconds"],
        images,
        None,
        {"interval": [question["start"], question["end"]]},
    )
