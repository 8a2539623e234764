"""A run: sources to processes, outcomes into the journal, then the stages that need the whole corpus."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress, TaskID

from fourdthinker.errors import ConfigError, install
from fourdthinker.files import PathLike, write_json
from fourdthinker.progress import progress_bar
from fourdthinker.synth.actors import RayActors
from fourdthinker.synth.compared import agreement
from fourdthinker.synth.computer_vision import colmap, opencv
from fourdthinker.synth.corpus import finish
from fourdthinker.synth.depths import check_calibrations
from fourdthinker.synth.digests import weights_digest
from fourdthinker.synth.folder import SETTINGS, check_folder, clean, warn_of_others
from fourdthinker.synth.inputs import Candidate, Refused, Source, candidates, open_candidate, scene_groups
from fourdthinker.synth.journal import QUARANTINED, Entry, Journal
from fourdthinker.synth.naming import namer
from fourdthinker.synth.narration import narrator
from fourdthinker.synth.payload import loads
from fourdthinker.synth.pool import Lost, Processes, run_jobs
from fourdthinker.synth.processes import LocalProcesses
from fourdthinker.synth.settings import CLIP_STAGES, STAGES, WEIGHTS, SynthSettings
from fourdthinker.synth.stages import Job, Stop, Untried, keys, window_item, work
from fourdthinker.synth.write import audited_lines, write_card

log = logging.getLogger(__name__)

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Options:
    """How a run goes; nothing here changes what it makes.

    Attributes:
        stages: those wanted, all by default.
        limit: videos at most, the first ones; None: all.
        engine: where the clips are worked on, "local" or "ray" (`synth.actors`).
        workers: processes; None: one for each core.
        timeout: seconds that one item may take.
        attempts: runs in which an item may fail before it is left alone for good.
        update: go on in a folder that was made with other settings.
        progress: whether a bar is shown.
        audit: whether the data card says what is answered without eyes.
    """

    stages: tuple[str, ...] = STAGES
    limit: int | None = None
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    timeout: float = 600.0
    attempts: int = 3
    update: bool = False
    progress: bool = True
    audit: bool = False

    def __post_init__(self) -> None:
        if not self.stages or not set(self.stages) <= set(STAGES):
            wrong = ", ".join(stage for stage in self.stages if stage not in STAGES) or "is named"
            raise ConfigError(f"no stage {wrong}; choose among {', '.join(STAGES)}")
        for name in ("limit", "workers", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give a whole number above 0")
        if not self.timeout > 0:
            raise ConfigError(f"timeout is {self.timeout}; give seconds above 0")


@dataclass
class _Run:
    out: Path
    settings: SynthSettings
    options: Options
    journal: Journal
    engine: Processes
    workers: int
    queue: list[Job] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)  # in this run: not tried once more in it
    sources: dict[str, Source] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    whole: set[tuple[str, str]] = field(default_factory=set)  # items and stages whose files are there
    unstarted: int = 0  # processes in a row that died before they began an item
    began: float = field(default_factory=time.monotonic)

    # -- what is to be done

    def jobs(self, found: Sequence[Candidate]) -> Iterator[Job]:
        """Jobs of all sources, in order; each file is hashed when its turn comes."""
        digests: dict[str, str] = {}
        groups = scene_groups(found, self.journal, self.options.timeout)
        for candidate in found:
            source = open_candidate(candidate, self.journal, self.settings.seed, groups, self.options.timeout)
            if isinstance(source, Source) and source.digest in digests:
                source = Refused(
                    f"{source.name}-copy-{len(self.refused)}",
                    source.shown,
                    f"the same content as {digests[source.digest]}",
                )
            if isinstance(source, Refused):
                self.refused.append(source)
                continue
            digests[source.digest] = source.shown
            self.sources[source.name] = source
            yield from self._of_source(source)

    def _of_source(self, source: Source) -> Iterator[Job]:
        entry = self.journal.find(source.name, "ingest", keys(source, self.settings)["ingest"])
        if self._left_alone(source.name, entry):
            return
        if entry is None or entry.payload is None:
            yield Job(source, self.settings, self.out, self.options.stages, share=self.workers)
            return
        yield from self._of_windows(source)

    def _of_windows(self, source: Source, only: int | None = None) -> Iterator[Job]:
        """The jobs that do what is left of the windows of a source, or of one; what is known is read once.

        Of a window nothing changes before its job begins, since only that one works on its clips.
        """
        own = keys(source, self.settings)
        parent = self.journal.find(source.name, "ingest", own["ingest"])
        assert parent is not None
        assert parent.payload is not None
        known, skip = self._known(source)
        for index, window in enumerate(loads(parent.payload)["windows"]):
            if only not in (None, index):
                continue
            item = window_item(source, index)
            entry = self.journal.find(item, "ingest", own["ingest"])
            if self._left_alone(item, entry):
                continue
            job = Job(
                source, self.settings, self.out, self.options.stages,
                index=index, window=tuple(window), skip=skip, share=self.workers,
            )  # fmt: skip
            if entry is None or entry.payload is None:
                yield replace(job, known=known)
                continue
            clips = tuple(tuple(clip) for clip in loads(entry.payload)["clips"] if clip[0] not in skip)
            if clips:
                yield replace(job, clips=clips, known={name: known.get(name, {}) for name, *_ in clips})

    def _known(self, source: Source) -> tuple[dict[str, dict[str, bytes]], frozenset[str]]:
        """Results of finished stages by clip, and the clips of which nothing is left to do."""
        own = keys(source, self.settings)
        wanted = [stage for stage in ("ingest", *CLIP_STAGES) if stage in self.options.stages]
        known: dict[str, dict[str, bytes]] = {}
        skip = set()
        for entry in self.journal.of_source(source.name):
            if own.get(entry.stage) != entry.key:
                continue
            if entry.state == "done" and entry.payload is not None:
                known.setdefault(entry.item, {})[entry.stage] = entry.payload
            elif self._left_alone(entry.item, entry):
                skip.add(entry.item)
        for item, stages in known.items():
            for stage in {"ingest", "imagery"} & stages.keys():
                if self._lacks_files(item, stage, stages[stage]):
                    del stages[stage]  # somebody has removed what it made: it is made once more
        skip |= {item for item, stages in known.items() if all(stage in stages for stage in wanted)}
        return known, frozenset(skip)

    def _lacks_files(self, item: str, stage: str, payload: bytes) -> bool:
        """Of ingest and imagery; looked at once in a run."""
        if (item, stage) in self.whole:
            return False
        found = loads(payload)
        if stage == "imagery":
            paths = [path for shown in found.values() for path in shown["images"]]
        else:
            paths = found["frames"] if isinstance(found.get("frames"), list) else []  # of a source: a number
        lacks = not all((self.out / path).is_file() for path in paths)
        if not lacks:
            self.whole.add((item, stage))
        return lacks

    def _left_alone(self, item: str, entry: Entry | None) -> bool:
        if item in self.failed or (entry is not None and entry.state == "rejected"):
            return True
        return entry is not None and entry.state == "failed" and entry.attempts >= self.options.attempts

    # -- what has been done

    def handle(self, job: Job, message: Entry | Lost | Stop | Untried) -> None:
        """Note an outcome; after a lost process go on with what it has left; ConfigError for `Stop`."""
        if isinstance(message, Stop):
            raise ConfigError(message.reason)
        if isinstance(message, Lost):
            self._lost(job, message)
            return
        self._record(job, message)
        self.unstarted = 0

    def _record(self, job: Job, message: Entry | Untried) -> None:
        tried = not isinstance(message, Untried)
        if isinstance(message, Untried):
            message = message.entry
        self.journal.record(message, tried=tried)
        if message.state == "failed":
            self.failed.add(message.item)
            log.warning("%s: %s failed: %s", message.item, message.stage, message.reason)
        if message.stage == "ingest" and message.item == job.source.name and message.state == "done":
            windows = loads(message.payload or b"")["windows"]
            if len(windows) > 1:
                self.queue += self._of_windows(job.source)
        if message.item.startswith(f"{job.source.name}-"):
            last = [stage for stage in CLIP_STAGES if stage in self.options.stages][-1:] or ["ingest"]
            if message.state != "done" or message.stage == last[0]:
                self.outcomes[message.state] += 1

    def _lost(self, job: Job, lost: Lost) -> None:
        """A failed attempt of the item; none where the process died before it began one."""
        fallback = job.source.name if job.window is None else window_item(job.source, job.index)
        item, stage = lost.item or fallback, lost.stage or "ingest"
        key = keys(job.source, self.settings)[stage]
        entry = Entry(item, stage, key, job.source.name, "failed", lost.reason)
        self._record(job, entry if lost.item else Untried(entry))
        self.unstarted = 0 if lost.item else self.unstarted + 1
        if self.unstarted > self.workers:
            raise ConfigError(
                f"{self.unstarted} processes in a row ended before they began: {lost.reason}; nothing was "
                "tried, so mend that (on all machines with --engine ray: the same packages, memory), and "
                "start once more"
            )
        if item.startswith(f"{job.source.name}-"):  # a clip: its window has more of them
            self.queue += self._of_windows(job.source, job.index)

    def title(self, stage: str = "synthesis") -> str:
        """What the progress bar says."""
        minutes = (time.monotonic() - self.began) / 60
        made = self.outcomes["done"]
        rate = f", {made / minutes:.1f}/min" if made and minutes > 0 else ""
        others = "".join(f", {self.outcomes[s]} {s}" for s in ("rejected", "failed") if self.outcomes[s])
        return f"{stage}: {made} clips{rate}{others}"


def synthesise(
    inputs: Sequence[str],
    out: PathLike,
    settings: SynthSettings | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Make reasoning data from videos; what is finished in `out` is kept, and never done twice.

    Args:
        inputs: files, folders, patterns, manifests or "scenes:N".
        out: folder of records, media, journal and summary.
        settings: what is made; None: the defaults.
        options: how the run goes; None: the defaults.

    Returns:
        What stands in summary.json.

    Raises:
        ConfigError: inputs that name nothing, a folder that was made with other settings, or weights, a key
            or a model of an endpoint that are wrong.
        OutputError: another run is writing the folder, or it cannot be written.
    """
    settings, options = settings or SynthSettings(), options or Options()
    found = candidates(inputs)
    if options.limit is not None:
        found = found[: options.limit]
    check_calibrations(found)
    folder = Path(os.path.abspath(out))  # of actors on other machines the working folder is another one
    check_folder(folder, settings, update=options.update)
    _check_weights(settings)
    videos = any(candidate.scene is None for candidate in found)
    if "segment" in options.stages and videos:
        opencv()  # said now, not once for each clip
    deep = settings.depth_weights is not None or any(c.scene is not None or "right" in c.row for c in found)
    if found and "imagery" in options.stages and "depth" in settings.imagery and not deep:
        raise ConfigError(
            "imagery=depth, and nothing has depth; give depth_weights or a second camera, or leave it out"
        )
    if "geometry" in options.stages and settings.geometry == "colmap":
        colmap()
    if options.audit and importlib.util.find_spec("sklearn") is None:
        raise ConfigError(f"an audit needs scikit-learn, which is not installed; {install('audit')}")
    if "narrate" in options.stages and settings.narrator_model is not None:
        narrator(settings, folder)  # without its key nothing begins
    if "objects" in options.stages and settings.namer_model is not None:
        namer(settings.namer_model, settings.namer_max_calls, folder)
    with Journal(folder) as journal:
        settings = settings.with_contents(_contents(settings, journal))
        clean(folder)
        write_json(folder / SETTINGS, settings.plain())
        engine, workers = _engine(settings, options)
        workers = _useful(workers, settings, options, len(found))
        run = _Run(folder, settings, options, journal, engine, workers)
        with progress_bar(shown=options.progress) as bar:
            task = bar.add_task("synthesis", total=len(found))
            _clip_stages(run, found, bar, task)
            if "write" in options.stages:
                warn_of_others(folder, set(run.sources))
            results = finish(run.sources, settings, options.stages, folder, journal, options.attempts)
        summary = _summary(run, results)
        write_json(folder / SUMMARY, summary)
        if "made" in results:
            left_out = [
                (stage, reason, number)
                for stage, row in summary["stages"].items()
                for reason, number in row["rejected"].items()
            ]
            audited = audited_lines(folder) if options.audit else None
            write_card(folder, results["made"], results["records"], left_out, audited)
    return summary


def _engine(settings: SynthSettings, options: Options) -> tuple[Processes, int]:
    """Where clips are worked on, and how many processes there are."""
    if options.engine == "local":
        return LocalProcesses(work), options.workers or os.cpu_count() or 1
    models = [folder for name in WEIGHTS if (folder := getattr(settings, name)) is not None]
    for folder in models:
        if not folder.is_absolute():  # actors have working folders of their own
            raise ConfigError(f"weights {folder}: give the absolute path with --engine ray")
    actors = RayActors(work, options.workers, gpus=bool(models))
    return actors, actors.workers


def _useful(workers: int, settings: SynthSettings, options: Options, videos: int) -> int:
    """At most so many that each has a share of namer_max_calls, and something to do with it."""
    calls = settings.namer_max_calls
    if settings.namer_model is None or calls is None or "objects" not in options.stages:
        return workers
    return max(1, min(workers, videos, calls))


def _check_weights(settings: SynthSettings) -> None:
    """ConfigError for a folder of weights that is none.

    Also where no stage needs it: what it has made is told by its content.
    """
    for name in WEIGHTS:
        folder: Path | None = getattr(settings, name)
        if folder is not None and not (folder / "config.json").is_file():
            raise ConfigError(
                f"{name} is {folder}, which holds no config.json; give the folder of a checkpoint"
            )


def _contents(settings: SynthSettings, journal: Journal) -> dict[str, str]:
    """Digests of the weights that are given, by setting."""
    found = {}
    for name in WEIGHTS:
        folder: Path | None = getattr(settings, name)
        if folder is not None:
            try:
                found[name] = weights_digest(folder, journal)
            except OSError as error:
                raise ConfigError(f"{name} is {folder}, which cannot be read ({error}); mend that") from error
    return found


def _clip_stages(run: _Run, found: Sequence[Candidate], bar: Progress, task: TaskID) -> None:
    def taken() -> Iterator[Job]:
        for job in run.jobs(found):
            bar.update(task, completed=len(run.sources) + len(run.refused) - 1)
            yield job

    def handle(job: Job, message: Any) -> None:
        run.handle(job, message)
        bar.update(task, description=run.title())

    run_jobs(
        taken(),
        run.engine,
        workers=run.workers,
        timeout=run.options.timeout,
        handle=handle,
        more=lambda: run.queue.pop(0) if run.queue else None,
    )
    bar.update(task, completed=len(found), description=run.title())


def _summary(run: _Run, corpus: dict[str, Any]) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {stage: _empty() for stage in STAGES}
    settled: dict[str, str] = {}
    quarantined = []
    times: Counter[str] = Counter()  # how the times of each video were learnt
    compared: Counter[str] = Counter()
    for name, source in run.sources.items():
        own = keys(source, run.settings)
        entries = [entry for entry in run.journal.of_source(name) if own.get(entry.stage) == entry.key]
        compared.update(agreement(source, entries))
        for entry in entries:
            row = stages[entry.stage]
            if entry.state == "done":
                if entry.item == name and entry.stage == "ingest" and entry.payload is not None:
                    times[loads(entry.payload).get("times_from", "container")] += 1
                row["done"] += entry.stage != "ingest" or entry.item.startswith(f"{name}-")
                row["seconds"] += entry.seconds
                continue
            state: str = entry.state
            if state == "failed" and entry.attempts >= run.options.attempts:
                state = QUARANTINED
                quarantined.append(entry.item)
            row[state][entry.reason] = row[state].get(entry.reason, 0) + 1
            settled[entry.item] = state
    refused = Counter(refused.reason for refused in run.refused)
    stages["ingest"]["rejected"] = dict(Counter(stages["ingest"]["rejected"]) + refused)
    for stage, values in corpus.get("stages", {}).items():
        stages[stage] |= values
    for row in stages.values():
        row["per_minute"] = round(60 * row["done"] / row["seconds"], 1) if row["seconds"] > 0 else None
        row["seconds"] = round(row["seconds"], 3)
    return {
        "videos": {
            "given": len(run.sources) + len(run.refused),
            "refused": len(run.refused),
            "times_from": dict(sorted(times.items())),
        },
        "stages": stages,
        "failed": sorted(
            [item for item, state in settled.items() if state == "failed"] + corpus.get("failed", [])
        ),
        QUARANTINED: sorted(set(quarantined) | set(corpus.get(QUARANTINED, []))),
        "refused": [{"input": r.shown, "reason": r.reason} for r in run.refused],
        "records": corpus.get("records", {}),
        **({"spatialvid_moves": dict(compared)} if compared else {}),
        "seconds": round(time.monotonic() - run.began, 1),
    }


def _empty() -> dict[str, Any]:
    return {"done": 0, "rejected": {}, "failed": {}, QUARANTINED: {}, "seconds": 0.0}
