"""The index kept on disk: used when it is of this file as it is now, made again in all other cases."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fourdthinker._frames import reading, sidecar
from fourdthinker.frames import FramePolicy, read_frames
from tests.clips import make_clip, numbers

TEN = FramePolicy(fps=10)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose packets were read through for an index; the cache is a folder of this test."""
    monkeypatch.setenv(sidecar.VARIABLE, str(tmp_path / "index"))
    names = []
    original = reading.build_timeline

    def spying(container, video, name, *rest):
        names.append(name)
        return original(container, video, name, *rest)

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
        monkeypatch.setenv(sidecar.VARIABLE, value)
        built.clear()
        assert len(read_frames(path, TEN).seconds) == len(read_frames(path, TEN).seconds) == 40
        assert len(built) == 2
    monkeypatch.delenv(sidecar.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read_frames(path, TEN)
    assert len(list((tmp_path / "xdg" / "fourdthinker" / "index").iterdir())) == 1


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "clip.mp4", [0, 40, 80])
    for name in ("HOME", "XDG_CACHE_HOME", sidecar.VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert numbers(read_frames(path, times=[0.04]).pixels) == [1]
    assert sidecar.folder() is None


def test_damaged_indices_are_made_again(tmp_path: Path, built: list[str]) -> None:
    path = make(tmp_path / "clip.mp4")
    expected = read_frames(path, TEN)
    (kept,) = (tmp_path / "index").iterdir()
    whole = kept.read_bytes()
    line, _, packed = whole[8:].partition(b"\n")
    head = json.loads(line)
    damaged = [b"", b"\n", whole[: len(whole) // 2], whole[:-1], whole.replace(b'"end": 4', b'"end": 5')]
    damaged += [sidecar.signed(rest) for rest in (b"", b"{}\n", b"[1]\n" + packed, b"null\nx", b"[" * 10**5)]
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
        damaged.append(sidecar.signed(json.dumps(head | change).encode() + b"\n" + packed))
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
    key = sidecar.key_of(str(path), 0)
    kept = sidecar.load(key)
    step = kept.pts[1] - kept.pts[0]
    kept.pts = [pts + step // 2 for pts in kept.pts]
    kept.coded = [pts + step // 2 for pts in kept.coded]
    sidecar.store(key, kept)
    built.clear()
    assert numbers(read_frames(path, times=[0.42, 3.98]).pixels) == [10, 99]
    assert built
