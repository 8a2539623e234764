"""SAM 3: its counters of frames, and folders without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import CheckpointError
from fourdthinker.synth.sam3 import Sam3, _scaled


def test_counters_follow_the_rate() -> None:
    assert [_scaled(frames, 10 / 30) for frames in (15, 8, 30, 1, 0, -1)] == [5, 3, 10, 1, 0, -1]


def test_a_folder_without_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no SAM 3 for videos"):
        Sam3(tmp_path)
