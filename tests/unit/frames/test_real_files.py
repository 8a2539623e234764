"""Every file of the shared folders: what is returned is what plain decoding shows then, or an error."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, read_frames
from tests.oracle.marks import VIEWER
from tests.shared import needs, shared

SIDE = 24  # of the small gray pictures that are compared
NEAR = 1.5  # levels of gray between two conversions of one picture, at most
WRITTEN = 25  # pictures a second of the files that faults/video.py writes
MADE = ("copied.mp4", "copied.mkv", "copied.mov", "copied.ts", "copied.flv", "copied_hevc.mp4",
        "copied_mpeg4.mp4", "ordered.asf", "ordered.mxf", "ordered.mpg", "ordered.vob", "right.mp4",
        "mirrored.mp4", "bframes.avi", "xvid_bframes.avi", "raw.h264", "raw.h265", "wmv2.wmv", "flv1.flv",
        "h263.avi", "anim.gif", "anim.apng")  # fmt: skip
REFUSED = ("raw.h264", "raw.h265", "bframes.avi", "anim.apng")
REAL = [
    *(("videos", name) for name in ("demo1.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4", "video_90.mov")),
    *(("clips", name) for name in ("apple.mp4", "backpack.mp4", "bear.mp4", "cat.mp4")),
]


@dataclass
class Shown:
    """What plain decoding gives: when each picture begins, and the picture, small and gray."""

    begins: list[float]
    pictures: np.ndarray

    def latest(self, time: float) -> int:
        return max(k for k, begin in enumerate(self.begins) if begin <= time + 1e-6 or not k)


def small(picture: np.ndarray) -> np.ndarray:
    """float32 [SIDE, SIDE]: means of blocks."""
    gray = picture.astype(np.float32).mean(2)
    rows, columns = (np.arange(SIDE) * length // SIDE for length in gray.shape)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, 0), columns, 1)
    counts = np.outer(*(np.diff([*edges, n]) for edges, n in zip((rows, columns), gray.shape)))
    return sums / counts


def decoded(path: Path, stream: int | None, orientation: int, rate: int | None) -> Shown:
    """By PyAV from beginning to end, in the order in which the decoder shows them; the k-th begins at the
    k-th of the sorted stamps. rate: for files without stamps of their own, pictures a second."""
    with av.open(str(path)) as container:
        index = container.streams.video[0].index if stream is None else stream
        packets = [packet for packet in container.demux(container.streams[index]) if packet.size]
    stamps = [packet.pts for packet in packets if not packet.is_discard]
    base = packets[0].time_base
    with av.open(str(path)) as container:
        frames = container.decode(container.streams[index])
        pictures = [small(VIEWER[orientation](frame.to_ndarray(format="rgb24"))) for frame in frames]
    if rate is not None:
        first = 0 if path.suffix in (".avi", ".asf", ".h264", ".h265") else packets[0].pts * base
        begins = [float(first + Fraction(k, rate)) for k in range(len(pictures))]
    else:
        begins = [float(stamp * base) for stamp in sorted(stamps)]
    assert len(begins) == len(pictures), f"{path}: {len(begins)} stamps of {len(pictures)} pictures"
    return Shown(begins, np.stack(pictures))


def check(shown: Shown, path: Path, stream: int | None = None, reads: int = 6) -> list[str]:
    """Read in several ways; what is wrong, and "error" for each VideoError."""
    draw = random.Random(path.name)
    times = [begin + 1e-4 for begin in shown.begins]
    some = draw.sample(times, min(reads, len(times)))
    policy = FramePolicy(fps=6, max_frames=1000)
    ways = [{"times": times[:: max(1, len(times) // 60)]}, {"times": some}, {"policy": policy}]
    ways += [{"times": [time]} for time in some]
    ways += [{"policy": policy, "start": times[len(times) // 3], "partial": True}]
    result = []
    for way in ways:
        try:
            frames = read_frames(path, stream=stream, **way)
        except VideoError:
            result.append("error")
            continue
        for time, begin, pixels in zip(frames.seconds, frames.shown, frames.pixels):
            apart = np.abs(shown.pictures - small(pixels.numpy())).mean((1, 2))
            right = shown.latest(time)
            if abs(begin - shown.begins[right]) > 2e-3:
                result.append(f"{way}: at {time} s a picture shown from {begin}, not {shown.begins[right]}")
            elif apart[right] > max(NEAR, apart.min() + 0.3):
                result.append(f"{way}: at {time} s picture {int(apart.argmin())}, not {right}")
    return result


@pytest.mark.parametrize(("folder", "name"), REAL)
def test_real_files_show_what_plain_decoding_shows(folder: str, name: str) -> None:
    place = shared(folder)
    if place is None:
        pytest.skip(f"../shared/{folder} is absent")
    for stream in (0, 3) if name == "nasa_13013.mp4" else (0,):
        shown = decoded(place / name, stream, 6 if name == "video_90.mov" else 1, None)
        assert check(shown, place / name, stream) == []


@needs("videos")
def test_a_damaged_file_gives_what_is_before_the_damage() -> None:
    path = Path(str(shared("videos"))) / "corrupted.mp4"
    with av.open(str(path)) as container:
        stamps = sorted(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size)
    pictures = []
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_count = 1
        for frame in container.decode(video):
            pictures.append(small(frame.to_ndarray(format="rgb24")))
            if len(pictures) == 20:
                break
    frames = read_frames(path, times=[float(stamp) for stamp in stamps[:20]])
    for expected, pixels in zip(pictures, frames.pixels):
        assert np.abs(expected - small(pixels.numpy())).mean() < NEAR
    partial = read_frames(path, FramePolicy(fps=10), partial=True)
    assert partial.fault is not None
    assert max(partial.shown) < 3.0  # where the damage is


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What faults/video.py writes."""
    script = shared("faults")
    if script is None:
        pytest.skip("../shared/faults is absent")
    folder = tmp_path_factory.mktemp("faults")
    subprocess.run([sys.executable, str(script / "video.py"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_made_files_show_what_plain_decoding_shows(made: Path, name: str) -> None:
    rates = {
        "ordered.asf",
        "bframes.avi",
        "xvid_bframes.avi",
        "raw.h264",
        "raw.h265",
        "ordered.mpg",
        "ordered.vob",
    }
    shown = decoded(made / name, None, 2 if name == "mirrored.mp4" else 1, WRITTEN if name in rates else None)
    found = check(shown, made / name)
    assert set(found) - {"error"} == set()
    assert not found or name in REFUSED, f"{len(found)} reads refused"


def test_the_comparison_sees_another_picture() -> None:
    rng = np.random.default_rng(0)
    pictures = np.stack([small(rng.integers(0, 256, (60, 80, 3))) for _ in range(3)])
    assert Shown([0.0, 0.1, 0.2], pictures).latest(0.15) == 1
    assert np.abs(pictures[0] - pictures[1]).mean() > NEAR


def test_every_file_of_the_folders_is_read() -> None:
    """A file that is added to the shared folders is added here too."""
    named = {(folder, name) for folder, name in REAL} | {("videos", "corrupted.mp4")}
    for folder in ("videos", "clips"):
        place = shared(folder)
        if place is not None:
            files = {(folder, file.name) for file in place.iterdir()}
            assert {key for key in files if not key[1].endswith((".pt", ".json"))} <= named
