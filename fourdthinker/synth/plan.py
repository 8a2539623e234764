"""What a run would have to do, said before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fourdthinker.frames import probe
from fourdthinker.synth.depths import check_calibrations
from fourdthinker.synth.inputs import candidates
from fourdthinker.synth.narrate import PICTURE
from fourdthinker.synth.run import Options
from fourdthinker.synth.scenes import SECONDS as SCENE_SECONDS
from fourdthinker.synth.settings import SynthSettings

# Of a plan: questions of a clip that are narrated, and tokens of a call's text, a picture and a reply.
_QUESTIONS, _TEXT_TOKENS, _PICTURE_TOKENS, _REPLY = 3, 600, 350, 300


def plan(inputs: Sequence[str], settings: SynthSettings, options: Options) -> dict[str, str]:
    """What a run would have to read; nothing is written, and of each video only the packets are read.

    Args:
        inputs: as for `synthesise`.
        settings: what would be made.
        options: how.

    Returns:
        Name -> text: videos, bytes, seconds, clips, frames to decode; calls and money of the models.
    """
    found = candidates(inputs)[: options.limit]
    check_calibrations(found)
    clips = unreadable = 0
    seconds = 0.0
    sizes: dict[Path, int] = {}  # of a file once, however many parts of it are asked for
    for candidate in found:
        length = SCENE_SECONDS
        if candidate.scene is None:
            try:
                held = probe(candidate.path)
                sizes[candidate.path] = candidate.path.stat().st_size
                first, last = (candidate.row.get(key) for key in ("start", "end"))
                begin = held.begin if first is None else max(held.begin, first)
                end = held.end if last is None else min(held.end, last)
                length = max(0.0, end - begin)
            except (ValueError, OSError):  # a FourdError, or a path that cannot be one
                unreadable += 1
                continue
        seconds += length
        clips += int(length >= settings.min_seconds) and math.ceil(length / settings.max_seconds)
    return {
        "videos": f"{len(found)}, {unreadable} unreadable",
        "bytes": f"{sum(sizes.values()) / 1e6:.1f} MB",
        "seconds": f"{seconds:.1f}",
        "clips": f"about {clips}: fewer where shots are short",
        "frames to decode": f"about {round(seconds * settings.analysis_fps)}",
        **_calls(clips, seconds / max(len(found) - unreadable, 1), settings),
    }


def _calls(clips: int, seconds: float, settings: SynthSettings) -> dict[str, str]:
    """Calls of models, and what those of the narrator cost, for clips of so many seconds."""
    said = {}
    if settings.namer_model is not None:
        said["calls to name things"] = f"about {_bounded(clips, settings.namer_max_calls)}"
    if settings.narrator_model is not None:
        calls = _bounded(clips * _QUESTIONS, settings.narrator_max_calls)
        frames = len(settings.frames.times(max(min(seconds, settings.max_seconds), settings.min_seconds)))
        read = _TEXT_TOKENS + _PICTURE_TOKENS * (frames + 2)
        money = calls * (read * settings.narrator_price_in + _REPLY * settings.narrator_price_out) / 1e6
        said["calls to narrate"] = f"about {calls}, of {read} tokens read and {_REPLY} written"
        if money > 0:
            bound = settings.narrator_budget
            said["money"] = f"about {money if bound is None else min(money, bound):.2f}"
        if settings.narrator_budget is not None:
            said["budget"] = (
                f"{settings.narrator_budget:g} at most, beside what the first call costs where a picture is "
                f"of more than {PICTURE} tokens"
            )
    return said


def _bounded(calls: int, most: int | None) -> int:
    return calls if most is None else min(calls, most)
