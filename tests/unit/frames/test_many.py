"""Many files, long files, parts of damaged files, time limits, and decord as a reader."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import FramePolicy, Frames, FrameSource, iterate_frames, pool, read_frames, read_many
from fourdthinker.frames import container as container_module
from tests.clips import make_clip, numbers, remux

TEN = FramePolicy(fps=10)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "even.mp4"
    return make_clip(path, [40 * k for k in range(100)], options={"bf": "3", "g": "20"})


# -- many files


def test_results_in_order_with_errors_among_them(tmp_path: Path, even: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    short = make_clip(tmp_path / "short.mp4", [0, 40, 80])
    sources = [
        even,
        tmp_path / "empty.mp4",
        short,
        even.read_bytes(),
        tmp_path / "none.mp4",
        FrameSource(short),
    ]
    results = list(read_many(sources, TEN, workers=3))
    assert [isinstance(r, VideoError) for r in results] == [False, True, False, False, True, False]
    assert "empty.mp4: the file is empty" in str(results[1])
    one = [read_frames(source, TEN) for source in (even, short)]
    for result, expected in zip(
        [results[k] for k in (0, 3, 2, 5)], [one[0], one[0], one[1], one[1]], strict=True
    ):
        assert isinstance(result, Frames)
        assert torch.equal(result.pixels, expected.pixels)
    patches = next(iter(read_many([even], TEN, out="patches", dtype=torch.bfloat16)))
    assert isinstance(patches, Frames)
    assert patches.patches.dtype == torch.bfloat16


def test_no_workers(even: Path) -> None:
    for workers in (0, -1):
        with pytest.raises(ConfigError, match=f"workers is {workers}; give"):
            next(read_many([even], workers=workers))


def test_results_wait_in_bounded_number() -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        return item

    for taken, result in enumerate(pool.in_order(work, iter(range(10**9)), workers=2, ahead=5)):
        assert result == taken
        time.sleep(0.001)
        assert len(started) <= taken + 6
        if taken == 50:
            break


def test_an_abandoned_pool_ends() -> None:
    before = threading.active_count()
    for _ in pool.in_order(lambda item: item, range(100), workers=4):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_workers_share_the_threads() -> None:
    shares = list(pool.in_order(lambda _: pool.threads(), range(4), workers=4))
    assert shares == [max(1, torch.get_num_threads() // 4)] * 4
    assert pool.threads() == torch.get_num_threads()


# -- long files


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_are_the_frames_of_one_reading(even: Path, batch: int) -> None:
    whole = read_frames(even, TEN)
    parts = list(iterate_frames(even, TEN, batch=batch))
    assert [len(part.seconds) for part in parts] == [min(batch, 40 - k) for k in range(0, 40, batch)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert [t for part in parts for t in part.seconds] == whole.seconds
    assert [t for part in parts for t in part.shown] == whole.shown
    assert {part.seconds_per_grid for part in parts} == {whole.seconds_per_grid}


def test_batches_of_patches_and_of_repeated_times(even: Path) -> None:
    whole = read_frames(even, TEN, out="patches")
    parts = list(iterate_frames(even, TEN, batch=6, out="patches"))
    assert torch.equal(torch.cat([part.patches for part in parts]), whole.patches)
    assert sum(int(part.grid_thw[0, 0]) for part in parts) == int(whole.grid_thw[0, 0])
    times = [0.0, 0.0, 0.04, 0.04, 0.05, 2.0, 2.0, 3.96]
    parts = list(iterate_frames(even, times=times, batch=3))
    assert numbers(torch.cat([part.pixels for part in parts])) == [0, 0, 1, 1, 1, 50, 50, 99]
    for bad, words in (({"batch": 0}, "above 0"), ({"times": [1.0, 0.5]}, "must not decrease")):
        with pytest.raises(ConfigError, match=words):
            next(iterate_frames(even, **bad))
    with pytest.raises(ConfigError, match="even for patches"):
        next(iterate_frames(even, batch=3, out="patches"))


def test_a_fault_shows_after_the_good_batches(tmp_path: Path, even: Path) -> None:
    with av.open(str(even)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(even.read_bytes())
    position, size = places[60]  # of a keyframe, so that all after it need it
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(bytes(data))
    seen: list[int] = []
    parts = iterate_frames(path, FramePolicy(fps=25, max_frames=200), batch=10)
    with pytest.raises(VideoError, match=r"damaged\.mp4: the data at 2\.\d+ s cannot be decoded"):
        seen.extend(number for part in parts for number in numbers(part.pixels))
    assert seen == list(range(len(seen)))
    assert len(seen) >= 40


# -- parts of damaged files


def test_what_decodes_is_available_on_request(tmp_path: Path, even: Path) -> None:
    with av.open(str(even)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(even.read_bytes())
    position, size = places[60]
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(bytes(data))
    every = FramePolicy(fps=25, max_frames=200)
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_frames(path, every)
    for out in ("uint8", "patches"):
        part = read_frames(path, every, partial=True, out=out)
        assert "cannot be decoded" in part.fault
        assert 50 <= len(part.seconds) <= 60
        assert part.shown == pytest.approx([k * 0.04 for k in range(len(part.seconds))])
    assert numbers(read_frames(path, every, partial=True).pixels) == list(range(len(part.seconds)))
    assert numbers(read_frames(path, times=[2.44, 0.4, 0.0], partial=True).pixels) == [10, 0]
    assert read_frames(even, every, partial=True).fault is None


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4", "mov"])
def test_cut_at_ten_places(tmp_path: Path, even: Path, suffix: str) -> None:
    """The part that is there, or a clear error; never a wrong frame."""
    flags = {"mp4": "faststart", "mov": "frag_keyframe+empty_moov"}.get(suffix)
    whole = remux(even, tmp_path / f"whole.{suffix}", movflags=flags)
    data = whole.read_bytes()
    every = FramePolicy(fps=25, max_frames=200)
    start = read_frames(whole, every).seconds[0]
    lengths = []
    for tenth in range(10):
        path = tmp_path / f"part{tenth}.{suffix}"
        path.write_bytes(data[: len(data) * tenth // 10])
        (part,) = read_many([path], every, partial=True)
        if isinstance(part, VideoError):
            assert path.name in str(part)
            lengths.append(0)
            continue
        shown = [round((t - start) / 0.04) for t in part.shown]
        assert numbers(part.pixels) == shown
        if suffix != "ts":  # where neither a header nor a packet tells that pictures are missing
            assert shown == list(range(len(shown)))
        lengths.append(max(shown) + 1)
    assert lengths == sorted(lengths)
    assert lengths[-1] >= 70


def test_frames_that_a_cut_may_have_taken_are_left_out(tmp_path: Path, even: Path) -> None:
    """Pictures that are decoded later are shown before the last that is there."""
    whole = remux(even, tmp_path / "whole.mp4", movflags="frag_keyframe+empty_moov")
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    late = next(p for p in packets[60:] if p.pts > p.dts + 3 * p.duration)
    path = tmp_path / "part.mp4"
    path.write_bytes(whole.read_bytes()[: late.pos + late.size // 2])
    at = float(late.dts * late.time_base)
    every = FramePolicy(fps=25, max_frames=200)
    part = read_frames(path, every, partial=True)
    assert part.shown == pytest.approx(part.seconds)
    assert numbers(part.pixels) == list(range(len(part.seconds)))
    assert part.seconds[-1] < at <= part.seconds[-1] + 0.0401
    assert f"at {at:.3f} s the data end here" in part.fault
    for times in ([at], [at + 0.08]):
        with pytest.raises(VideoError, match=f"at {at:.3f} s the data end here"):
            read_frames(path, times=times, partial=True)
    assert read_frames(path, times=[at + 0.04, at - 0.04], partial=True).shown == pytest.approx([at - 0.04])


# -- time limits


def test_a_reading_ends_in_time(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(container_module.time, "monotonic", tick)
    with pytest.raises(VideoError, match=r"even\.mp4: not read within 20 s"):
        read_frames(even, TEN, timeout=20)
    (result,) = read_many([even], TEN, timeout=20, workers=1)
    assert isinstance(result, VideoError)
    assert len(read_frames(even, TEN, timeout=None).seconds) == 40


# -- decord


def test_decord_gives_the_same_frames(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    for start in (None, 1.5):
        ours = read_frames(even, TEN, start=start)
        theirs = read_frames(FrameSource(even, reader="decord"), TEN, start=start)
        assert theirs.decoder == "decord"
        assert theirs.seconds == ours.seconds
        assert numbers(theirs.pixels) == numbers(ours.pixels)
        assert np.abs(theirs.pixels.numpy().astype(int) - ours.pixels.numpy()).mean() < 3
    patches = read_frames(FrameSource(even.read_bytes(), reader="decord"), TEN, out="patches")
    assert patches.grid_thw.tolist() == read_frames(even, TEN, out="patches").grid_thw.tolist()
    assert [len(b.seconds) for b in iterate_frames(FrameSource(even, reader="decord"), TEN, batch=16)] == [
        16,
        16,
        8,
    ]
    with pytest.raises(ConfigError, match="cannot read stream 0"):
        read_frames(FrameSource(even, stream=0, reader="decord"), TEN)


class Other:
    """A VideoReader with pictures other than those shown."""

    times = np.arange(3) / 10

    def __init__(self, path: str, num_threads: int) -> None:
        if self.times is None:
            raise RuntimeError("Error reading c.mp4\nand a stack")

    def __len__(self) -> int:
        return len(self.times)

    def get_frame_timestamp(self, indices: list[int]) -> np.ndarray:
        return np.stack([self.times, self.times], axis=1)[indices]

    def next(self) -> None:
        raise StopIteration


@pytest.mark.parametrize(
    ("shift", "words"), [(None, "cannot read it .Error reading c.mp4."), ("count", "has 3 pictures where"),
                     (0.05, "has no frame at"), (0.0, "has fewer pictures")]
)  # fmt: skip
def test_decord_with_other_pictures_is_refused(
    even: Path, monkeypatch: pytest.MonkeyPatch, shift: float | str | None, words: str
) -> None:
    times = Other.times if shift == "count" else None if shift is None else np.arange(100) / 25 + shift
    monkeypatch.setattr(Other, "times", times)
    monkeypatch.setitem(
        __import__("sys").modules, "decord", SimpleNamespace(VideoReader=Other, DECORDError=KeyError)
    )
    with pytest.raises(VideoError, match=f"decord {words}"):
        read_frames(FrameSource(even, reader="decord"), times=[1.0])


def test_decord_is_optional(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(ConfigError, match="pip install decord"):
        read_frames(FrameSource(even, reader="decord"), TEN)
    with pytest.raises(ConfigError, match="reader is 'opencv'"):
        FrameSource(even, reader="opencv")
    with pytest.raises(ConfigError, match="not both"):
        read_frames(FrameSource(even), TEN, stream=0)
