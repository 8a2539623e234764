"""What a process does with one job: read a part of a video once and take its clips through the stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fourdthinker.errors import CheckpointError, ConfigError, FourdError, VideoError
from fourdthinker.frames import probe
from fourdthinker.synth.clips import Bad, Clip, RejectError, read_clip, read_clips, windows, write_frames
from fourdthinker.synth.context import Context
from fourdthinker.synth.functions import FUNCTIONS
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Entry, State
from fourdthinker.synth.narrate import BudgetError
from fourdthinker.synth.payload import dumps, loads
from fourdthinker.synth.pool import Begin
from fourdthinker.synth.scenes import render_scene
from fourdthinker.synth.settings import CLIP_STAGES, SynthSettings

Send = Callable[[Any], None]


@dataclass(frozen=True)
class Job:
    """A source to be probed, or a window of one to be read.

    Attributes:
        source: what is read.
        settings: of the run.
        out: the output folder.
        stages: those wanted.
        index, window: which window, in seconds of the source; window None: it is to be probed first.
        clips: (item, start, end) of the unfinished clips of a window that has been cut before; None: it has
            not.
        known: item -> stage -> result of what has been done.
        skip: items that are left alone.
        share: processes that share the limits of an endpoint.
    """

    source: Source
    settings: SynthSettings
    out: Path
    stages: tuple[str, ...]
    index: int = 0
    window: tuple[float, float] | None = None
    clips: tuple[tuple[str, float, float], ...] | None = None
    known: dict[str, dict[str, bytes]] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()
    share: int = 1


@dataclass(frozen=True)
class Untried:
    """Sent for a failed item on which nothing was tried, since the budget is spent: no attempt of it."""

    entry: Entry


@dataclass(frozen=True)
class Stop:
    """Sent where settings or weights are wrong, which every other clip would meet too: the run ends."""

    reason: str


def window_item(source: Source, index: int) -> str:
    """The name of a window of a source in the journal."""
    return f"{source.name}.w{index}"


def keys(source: Source, settings: SynthSettings) -> dict[str, str]:
    """The key of each stage of the clips of a source."""
    found, before = {}, source.digest
    for stage in ("ingest", *CLIP_STAGES):
        before = found[stage] = settings.key(stage, before)
    return found


class _Sender:
    """Sends outcomes of items of one source, with their keys and times."""

    def __init__(self, job: Job, send: Send) -> None:
        self._send, self._source = send, job.source.name
        self._keys = keys(job.source, job.settings)
        self._since = time.perf_counter()

    def begin(self, item: str, stage: str) -> None:
        self._since = time.perf_counter()
        self._send(Begin(item, stage))

    def stop(self, item: str, stage: str, error: Exception) -> None:
        self._send(Stop(f"{item}: {stage}: {error}"))

    def untried(self, item: str, stage: str, error: BudgetError) -> None:
        entry = Entry(item, stage, self._keys[stage], self._source, "failed", str(error))
        self._send(Untried(entry))

    def end(self, item: str, stage: str, state: State, reason: str = "", payload: Any = None) -> None:
        seconds = time.perf_counter() - self._since
        data = dumps(payload) if payload is not None else None
        key = self._keys[stage]
        self._send(Entry(item, stage, key, self._source, state, reason, seconds=seconds, payload=data))
        self._since = time.perf_counter()


def work(job: Job, send: Send) -> None:
    """Do a job; every outcome is sent: an `Entry`, `Untried` or `Stop`; and `Begin` before each stage.

    Args:
        job: what to do.
        send: takes the messages.
    """
    sender = _Sender(job, send)
    item = job.source.name if job.window is None else window_item(job.source, job.index)
    sender.begin(item, "ingest")
    try:
        source, scene = _scene(job)
        if job.window is None:
            parts = _probe(source, job, sender)
            if len(parts) > 1:
                return  # each becomes a job
            job, item = replace(job, window=parts[0]), window_item(job.source, 0)
            sender.begin(item, "ingest")
        _read(replace(job, source=source), scene, sender)
    except (RejectError, VideoError) as error:
        sender.end(item, "ingest", "rejected", _reason(error, job.source))
    except Exception as error:  # noqa: BLE001  # whatever one file raises must not end the run
        sender.end(item, "ingest", "failed", _named(error))


def _scene(job: Job) -> tuple[Source, Any]:
    if job.source.scene is None:
        return job.source, None
    return render_scene(job.source, job.settings, job.out)


def _probe(source: Source, job: Job, sender: _Sender) -> list[tuple[float, float]]:
    found = probe(source.path)
    parts = windows(found, source, job.settings)
    payload = {
        "windows": parts,
        "size": found.size,
        "frames": found.frames,
        "seconds": found.end - found.begin,
        "rate": found.rate,
        "codec": found.codec,
        "times_from": found.times_from,
    }
    sender.end(source.name, "ingest", "done", payload=payload)
    return parts


def _read(job: Job, scene: Any, sender: _Sender) -> None:
    """Read a window, or those clips of it that are left."""
    item = window_item(job.source, job.index)
    assert job.window is not None
    if job.clips is not None:
        for part in job.clips:
            _reread(part, job, scene, sender)
        return
    found: list[tuple[str, float, float]] = []
    try:
        with closing(_of_window(job)) as clips:
            for clip in clips:
                if isinstance(clip, Bad):
                    sender.end(clip.item, "ingest", "rejected", clip.reason)
                else:
                    found.append((clip.item, clip.start, clip.end))
                    if clip.item not in job.skip:
                        _clip(clip, job, scene, sender)
                sender.begin(item, "ingest")
    except VideoError as error:
        if not found:
            raise
        # What was found before the damage is good: the window is done, so that later runs go on with it.
        sender.end(f"{item}.rest", "ingest", "rejected", _reason(error, job.source))
    sender.end(item, "ingest", "done", payload={"clips": found})


def _reread(part: tuple[str, float, float], job: Job, scene: Any, sender: _Sender) -> None:
    """Read a clip that has been cut before and go on with it; what is wrong with it is said of it alone."""
    item, start, end = part
    sender.begin(item, "ingest")
    try:
        clip = read_clip(job.source, item, start, end, job.settings)
    except (RejectError, VideoError) as error:
        sender.end(item, "ingest", "rejected", _reason(error, job.source))
    except Exception as error:  # noqa: BLE001  # one clip must not end the run
        sender.end(item, "ingest", "failed", _named(error))
    else:
        _clip(clip, job, scene, sender)


def _of_window(job: Job) -> Generator[Clip | Bad, None, None]:
    assert job.window is not None
    yield from read_clips(job.source, job.window, job.settings)


def _clip(clip: Clip, job: Job, scene: Any, sender: _Sender) -> None:
    """Take a clip through the stages that are wanted, up to the first one that fails or is not wanted."""
    context = Context(clip, job.source, job.settings, job.out, scene=scene, share=job.share)
    known = job.known.get(clip.item, {})
    for stage in ("ingest", *CLIP_STAGES):
        if stage in known:
            context.results[stage] = loads(known[stage])
            continue
        if stage not in job.stages:
            return
        sender.begin(clip.item, stage)
        try:
            result = _frames(context) if stage == "ingest" else FUNCTIONS[stage](context)
        except RejectError as error:
            sender.end(clip.item, stage, "rejected", str(error))
            return
        except BudgetError as error:
            sender.untried(clip.item, stage, error)
            return
        except (CheckpointError, ConfigError) as error:
            sender.stop(clip.item, stage, error)
            return
        except (BrokenPipeError, ConnectionResetError):  # nobody listens any more
            raise
        except Exception as error:  # noqa: BLE001  # one clip must not end the run
            sender.end(clip.item, stage, "failed", _named(error))
            return
        sender.end(clip.item, stage, "done", payload=result)
        context.results[stage] = loads(dumps(result))  # as a resumed run finds it


def _frames(context: Context) -> dict[str, Any]:
    clip = context.clip
    return {
        "frames": write_frames(clip, context.out),
        "seconds": [round(float(clip.times[k]), 6) for k in clip.chosen],
        "start": clip.start,
        "end": clip.end,
        "size": clip.pixels.shape[1:3],
    }


def _reason(error: Exception, source: Source) -> str:
    """The cause without the name of the file, so that equal causes are counted together."""
    text = " ".join(str(error).split())
    if isinstance(error, FourdError):
        text = "unreadable: " + text.removeprefix(source.path).removeprefix(source.shown).lstrip(": ")
    return text


def _named(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
