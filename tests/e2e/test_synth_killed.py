"""A synthesis that is killed at random moments ends as one that is not, and does nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from fourdthinker.synth.journal import Journal

KILLS = int(os.environ.get("FOURDTHINKER_KILLS", "4"))
VIDEOS = 6


def command(out: Path) -> list[str]:
    config = out.with_suffix(".yaml")
    config.write_text("analysis_fps: 4\n")
    inputs = [f"scenes:{VIDEOS}", "-o", str(out), "--workers=2", "--config", str(config)]
    return [sys.executable, "-m", "fourdthinker.cli", "synth", *inputs]


def results(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("journal", "summary", "settings"))
    }


def half_written(folder: Path) -> list[str]:
    """Files under their final names that do not end as such files do."""
    ends = {".jpg": b"\xff\xd9", ".jsonl": b"\n"}
    return [
        str(path)
        for path in folder.rglob("*")
        if path.suffix in ends
        and not path.name.startswith(".")
        and not path.read_bytes().endswith(ends[path.suffix])
    ]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    started = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, stdin=subprocess.DEVNULL)
    whole = time.monotonic() - started
    rng, out = random.Random(14), tmp_path / "killed"
    for _ in range(KILLS):
        with subprocess.Popen(command(out), stdin=subprocess.DEVNULL) as process:
            try:
                process.wait(rng.uniform(0.1, 0.8) * whole)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
        if out.exists():
            assert half_written(out) == []
    subprocess.run(command(out), check=True, stdin=subprocess.DEVNULL)
    assert results(out) == results(tmp_path / "whole")
    assert not list(out.rglob(".fourdthinker-*"))
    with Journal(out) as journal:
        names = [path.stem for path in (out / "scenes").glob("*.mp4")]
        found = [entry for name in ("corpus", *names) for entry in journal.of_source(name)]
    assert len(names) == VIDEOS
    of_clips = [entry for entry in found if entry.stage not in ("options", "narrate")]
    assert len(of_clips) == VIDEOS * 9  # source, window and the seven stages of a clip
    assert len(found) > len(of_clips)
    assert {(entry.state, entry.computed) for entry in found} == {("done", 1)}
