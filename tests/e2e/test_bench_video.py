"""The bench of readers of videos runs from end to end, against the peers that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90  # on an idle machine with 2 cores


def test_quick(tmp_path: Path) -> None:
    values = {**os.environ, "FOURDTHINKER_BENCH_CACHE": str(tmp_path / "clips"), "COLUMNS": "200"}
    values = {key: value for key, value in values.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "video", "--quick"],
        cwd=ROOT,
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=5 * SECONDS,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output
    assert output.count(" s  {") == 4, output
    assert "'ours ms': 'failed'" not in output, output  # our frames are the right ones in every row
    assert "ordered first: all frames in " in output, output
    # Speed is not judged here: the machine may be busy.


def test_a_wrong_frame_is_noticed() -> None:
    """Readers whose frames are not those of the times do not count."""

    import numpy as np

    from bench import video
    from bench._clips import BITS

    def picture(number: int) -> np.ndarray:
        bits = (number >> (BITS - 1 - np.arange(120) * BITS // 120)) & 1
        return np.broadcast_to((bits * 190 + 30).astype(np.uint8)[None, :, None], (96, 120, 3))

    plan = video.Plan(video.FramePolicy(), [0.0, 1.0], [0, 30], [0, 30], (96, 120), uniform=False)
    row = video.Row("clip", "1 fps", plan, Path("clip"), bounds=False, numbered=True)
    right = np.stack([picture(0), picture(30)])
    for pixels, words in (
        (right, ""),
        (np.stack([picture(0), picture(31)]), "1 of 2 frames wrong: 30 is 31"),
        (right[:1], "shape"),
        (np.clip(right.astype(int) + 9, 0, 255).astype(np.uint8), "other quality"),
    ):
        outcome = video.Outcome()
        video._check(row, "reader", pixels, right.astype(np.int16), outcome)
        assert outcome.fault.startswith(words), words
        assert bool(outcome.fault) == bool(words), outcome.fault
