"""SpatialVID's moves beside ours: counted by seconds, and no label."""

from __future__ import annotations

import json
from pathlib import Path

from fourdthinker.synth.compared import agreement
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Entry
from fourdthinker.synth.payload import dumps
from fourdthinker.synth.tracks import Move


def entry(item: str, stage: str, payload: object) -> Entry:
    return Entry(item, stage, "k", "v", "done", payload=dumps(payload))


def test_seconds_in_which_both_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "indexes.txt").write_text("".join(f"{k} {6 * k}\n" for k in range(60)))
    moves = {"0->10": ["Dolly In"], "10->20": ["Pan Left"]}  # poses 0.2 s apart: two seconds each
    (tmp_path / "instructions.json").write_text(json.dumps(moves))
    given = {"poses": str(tmp_path / "poses.npy"), "poses_format": "spatialvid"}
    ours = [Move("camera", "dolly in", 0, 2), Move("camera", "static", 3, 5)]
    entries = [
        entry("v", "ingest", {"rate": 30.0}),
        entry("v-1", "ingest", {"start": 1.0, "end": 6.0}),
        entry("v-1", "motion", {"camera": ours}),
    ]
    source = Source("v", "", "d", "d", "v", given=given)
    # Second 1: in, in; 2: in, pan; 3: nothing, pan; 4 and 5: static, nothing.
    assert agreement(source, entries) == {"seconds": 5, "same": 3}
    assert not agreement(Source("v", "", "d", "d", "v"), entries)
    stereo = {"right": "r.mp4", "focal": "500", "baseline": "0.1"}
    assert not agreement(Source("v", "", "d", "d", "v", given=stereo), entries)
    (tmp_path / "instructions.json").write_text("{")
    assert not agreement(source, entries)
