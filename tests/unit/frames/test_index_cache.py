"""The index kept on disk: used when it is of this file as it is now, made again in all other cases."""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fourdthinker.frames import FramePolicy, index_cache, read_frames, reading
from fourdthinker.frames.timeline import Timeline
from tests.clips import make_clip, numbers

TEN = FramePolicy(fps=10)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose packets were read through for an index; the cache is a folder of this test."""
    monkeypatch.setenv(index_cache.VARIABLE, str(tmp_path / "index"))
    names = []
    original = reading.build_timeline

    def spying(container, video, name, *rest, **options):
        names.append(name)
        return original(container, video, name, *rest, **options)

    monkeypatch.setattr(reading, "build_timeline", spying)
    return names


def make(path: Path, **options: object) -> Path:
    return make_clip(path, [40 * k for k in range(100)], options={"bf": "3", "g": "20"}, **options)


def test_second_visit_reads_no_packets_for_the_index(tmp_path: Path, built: list[str]) -> None:
    path = make(tmp_path / "clip.mp4")
    first = read_frames(path, TEN)
    second = read_frames(path, TEN)
    assert len(built) == 1
    assert torch.equal(first.pixels, second.pixels)
    assert first.shown == second.shown
    assert read_frames(path.read_bytes(), TEN).shown == first.shown  # bytes have no name to keep an index by
    assert len(built) == 2
    assert [file.suffix for file in (tmp_path / "index").iterdir()] == [".idx"]


def test_a_changed_file_is_read_anew(tmp_path: Path, built: list[str]) -> None:
    path, other = make(tmp_path / "clip.mp4"), tmp_path / "other.mp4"
    make_clip(other, [40 * k for k in range(50, 150)], options={"bf": "0", "g": "7"})
    read_frames(path, TEN)
    before = os.stat(path)
    data = other.read_bytes()
    path.write_bytes(data + bytes(max(0, before.st_size - len(data))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert numbers(read_frames(path, times=[2.0, 2.04]).pixels) == [0, 1]
    assert len(built) == 2


def test_off_and_folders_that_cannot_be_written(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "clip.mp4")
    (tmp_path / "file").touch()
    for value in ("off", str(tmp_path / "file" / "below")):
        monkeypatch.setenv(index_cache.VARIABLE, value)
        built.clear()
        assert len(read_frames(path, TEN).seconds) == len(read_frames(path, TEN).seconds) == 40
        assert len(built) == 2
    monkeypatch.delenv(index_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read_frames(path, TEN)
    assert len(list((tmp_path / "xdg" / "fourdthinker" / "index").iterdir())) == 1


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "clip.mp4", [0, 40, 80])
    for name in ("HOME", "XDG_CACHE_HOME", index_cache.VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert numbers(read_frames(path, times=[0.04]).pixels) == [1]
    assert index_cache.folder() is None


def test_damaged_indices_are_made_again(tmp_path: Path, built: list[str]) -> None:
    path = make(tmp_path / "clip.mp4")
    expected = read_frames(path, TEN)
    (kept,) = (tmp_path / "index").iterdir()
    whole = kept.read_bytes()
    line, _, packed = whole[8:].partition(b"\n")
    head = json.loads(line)
    damaged = [b"", b"\n", whole[: len(whole) // 2], whole[:-1], whole.replace(b'"end": 4', b'"end": 5')]
    damaged += [
        index_cache.signed(rest) for rest in (b"", b"{}\n", b"[1]\n" + packed, b"null\nx", b"[" * 10**5)
    ]
    damaged += [
        bytes(byte ^ 255 * (k == at) for k, byte in enumerate(whole)) for at in range(0, len(whole), 37)
    ]
    for change in (
        {"counts": [10**9, 10**9]},
        {"counts": [-1, 5]},
        {"counts": [99, 100]},
        {"base": [1, 0]},
        {"base": [-1, 25]},
        {"end": "soon"},
        {"end": float("nan")},
        {"fault": [1]},
        {"key": "another"},
    ):
        damaged.append(index_cache.signed(json.dumps(head | change).encode() + b"\n" + packed))
    for data in damaged:
        kept.write_bytes(data)
        built.clear()
        again = read_frames(path, TEN)
        assert torch.equal(again.pixels, expected.pixels)
        assert again.shown == expected.shown
        assert built or data == whole
        assert kept.read_bytes() == whole


def test_an_index_that_lies_is_found_out(tmp_path: Path, built: list[str]) -> None:
    """Frames listed that the file has not: the index is dropped, the file decides."""
    path = make(tmp_path / "clip.mp4")
    read_frames(path, TEN)
    key = index_cache.key_of(str(path), 0)
    kept = index_cache.load(key)
    step = kept.pts[1] - kept.pts[0]
    kept.pts = [pts + step // 2 for pts in kept.pts]
    kept.coded = [pts + step // 2 for pts in kept.coded]
    index_cache.store(key, kept)
    built.clear()
    assert numbers(read_frames(path, times=[0.42, 3.98]).pixels) == [10, 99]
    assert built


# --- room --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the indices, with room for ten."""
    monkeypatch.setenv(index_cache.VARIABLE, str(tmp_path / "index"))
    monkeypatch.setattr(index_cache, "ROOM", 10 * index_cache.BLOCK)
    monkeypatch.setattr(index_cache, "EVERY", 4 * index_cache.BLOCK)
    return tmp_path / "index"


@pytest.fixture
def timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timeline:
    monkeypatch.setenv(index_cache.VARIABLE, str(tmp_path / "first"))
    path = make(tmp_path / "clip.mp4")
    read_frames(path, TEN)
    return index_cache.load(index_cache.key_of(str(path), 0))


def written(path: Path, size: int = 1) -> Path:
    path.write_bytes(bytes(size))
    return path


def aged(path: Path, seconds: float) -> Path:
    """Used last so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def test_the_indices_used_last_are_kept(
    timeline: Timeline, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache, "EVERY", 1)  # looked through each time
    for number in range(10):
        index_cache.store(f"video {number}", timeline)
        aged(index_cache._path_of(f"video {number}"), 1000 - number)
    for number in (0, 3):
        assert index_cache.load(f"video {number}") is not None  # used now
    for number in range(10, 13):
        index_cache.store(f"video {number}", timeline)
    left = [number for number in range(13) if index_cache.load(f"video {number}") is not None]
    assert left == [0, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert len(list(small.iterdir())) == 10


def test_a_large_index_counts_by_its_size(small: Path) -> None:
    small.mkdir()
    for name, size, age in (("a", 1, 9), ("b", 5 * index_cache.BLOCK, 8), ("c", 5 * index_cache.BLOCK, 7)):
        aged(written(small / f"{name * 32}.idx", size), age)
    index_cache.tidy(small)
    assert sorted(file.name[0] for file in small.iterdir()) == ["b", "c"]


def test_only_what_was_stored_here_is_removed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of the user's own files, with links to others."""
    monkeypatch.setattr(index_cache, "ROOM", 0)
    small.mkdir()
    target = tmp_path / "precious"
    target.write_text("mine")
    for name in ("notes.txt", "train-images.idx", "f" * 31 + ".idx", "A" * 32 + ".idx", "f" * 32 + ".idx.bak",
                 ".fourdthinker-rc.part", "a.part", ".fourdthinker"):  # fmt: skip
        aged(written(small / name), 10**6)
    (small / ("b" * 32 + ".idx")).symlink_to(target)
    (small / ".fourdthinker-0123456789ab.part").symlink_to(target)
    aged(small / ".fourdthinker-0123456789ab.part", 10**6)
    (small / ("c" * 32 + ".idx")).mkdir()
    before = set(small.iterdir())
    (small / ("d" * 32 + ".idx")).write_text("stored")
    index_cache.tidy(small)
    assert set(small.iterdir()) == before
    assert target.read_text() == "mine"


def test_half_written_files_go_after_an_hour(small: Path) -> None:
    small.mkdir()
    for name, age in ((".fourdthinker-0123456789ab.part", 3700), (".fourdthinker-ba9876543210.part", 3500)):
        aged(written(small / name), age)
    index_cache.tidy(small)
    assert [file.name for file in small.iterdir()] == [".fourdthinker-ba9876543210.part"]


def test_the_folder_is_looked_through_now_and_then(
    timeline: Timeline, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in four stores here, without a draw from the user's generator; the folder stays near its room."""
    looks = []
    tidy = index_cache.tidy
    monkeypatch.setattr(index_cache, "tidy", lambda home: (looks.append(home), tidy(home)))
    monkeypatch.setattr(index_cache, "_dice", random.Random(0))
    random.seed(5)
    state, most = random.getstate(), 0
    for number in range(400):
        index_cache.store(f"video {number}", timeline)
        most = max(most, len(list(small.iterdir())))
    assert 60 < len(looks) < 140
    assert 10 < most < 50
    assert random.getstate() == state


def test_several_at_once(timeline: Timeline, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "EVERY", 1)

    def work(thread: int) -> None:
        for number in range(40):
            index_cache.store(f"{thread} {number}", timeline)
            for other in range(4):
                index_cache.load(f"{other} {number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what they raise
    index_cache.tidy(small)
    assert len(list(small.iterdir())) == 10


def test_what_vanishes_or_cannot_be_removed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that vanished counts as removed; one that stays is passed over for the next."""
    small.mkdir()
    for number in range(13):
        aged(written(small / f"{number:032x}.idx"), 100 - number)
    unlink = os.unlink

    def hindered(path: str) -> None:
        number = int(Path(path).stem, 16)
        if number == 0:
            raise PermissionError("not yours")
        unlink(path)
        if number == 1:
            raise FileNotFoundError("another was faster")

    monkeypatch.setattr(os, "unlink", hindered)
    index_cache.tidy(small)
    assert sorted(int(path.stem, 16) for path in small.iterdir()) == [0, *range(4, 13)]
    index_cache.tidy(small / "nowhere")
