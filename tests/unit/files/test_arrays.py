"""Arrays that processes fill through memory maps: their space is taken when they are made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fourdthinker.errors import OutputError
from fourdthinker.files import create_array
from tests.full_disk import largest_file

ROOT = Path(__file__).resolve().parents[3]


def test_the_space_of_an_array_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    create_array(path, np.float32, (300, 1000))
    assert path.stat().st_blocks * 512 >= 1_200_000  # a sparse file has a few blocks
    found = np.load(path, mmap_mode="r+")
    assert (found.dtype, found.shape, found.any()) == (np.float32, (300, 1000), False)


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    said = rf"{path}: its 1\.2 MB cannot be written \(.*\); free space on this disk"
    with largest_file(1_000_000), pytest.raises(OutputError, match=said):
        create_array(path, np.float32, (300, 1000))
    assert not path.exists()


def test_memory_maps_are_made_in_one_place() -> None:
    files = [
        path
        for folder in ("fourdthinker", "bench", "train", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found = [path.name for path in files if re.search(r"open_memmap|np\.memmap", path.read_text("utf-8"))]
    assert found == ["arrays.py"]
