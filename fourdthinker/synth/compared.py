"""SpatialVID's own camera moves beside those of geometry: a figure of the summary, never a label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import read_instructions
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Entry
from fourdthinker.synth.labels import moves_of
from fourdthinker.synth.motion import moves_during
from fourdthinker.synth.payload import loads
from fourdthinker.synth.tracks import STATIC

log = logging.getLogger(__name__)


def agreement(source: Source, entries: Sequence[Entry]) -> Counter[str]:
    """In how many seconds of a video's clips instructions.json names the moves that we do.

    Args:
        source: the video.
        entries: outcomes of its stages.

    Returns:
        "seconds" and "same"; empty where there is no such file, no moves, or the file is damaged.
    """
    if source.given.get("poses_format") != "spatialvid":
        return Counter()
    path = Path(source.given["poses"]).with_name("instructions.json")
    if not path.is_file():
        return Counter()
    found = {
        (entry.item, entry.stage): loads(entry.payload)
        for entry in entries
        if entry.state == "done" and entry.payload is not None and entry.stage in ("ingest", "motion")
    }
    clips = [item for item, stage in found if stage == "motion"]
    if not clips:
        return Counter()
    try:
        others = read_instructions(path.parent, fps=found[source.name, "ingest"]["rate"])
    except GeometryError as error:
        log.warning("%s: its moves are not compared: %s", source.shown, error)
        return Counter()
    counts: Counter[str] = Counter()
    for item in clips:
        moves = moves_of({"motion": found[item, "motion"]})
        start, end = found[item, "ingest"]["start"], found[item, "ingest"]["end"]
        for second in range(int(end - start)):
            # It has no "static": where it says nothing, nothing moves.
            ours = moves_during(moves, second, second + 1) - {STATIC}
            theirs = moves_during(others, start + second, start + second + 1)
            counts.update(seconds=1, same=int(ours == theirs))
    return counts
