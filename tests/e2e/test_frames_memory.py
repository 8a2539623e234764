"""Memory and descriptors: a file of an hour in batches, and hundreds of files on eight threads."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, Frames, read_frames, read_many
from tests.clips import make_clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
LIMIT = 170 << 20  # what reading adds: how much of the libraries is resident differs between machines

CONSUMER = """
import json, sys
from fourdthinker.frames import FramePolicy, iterate_frames

def resident(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

count, last, sizes = 0, -1.0, []
before = resident("VmRSS")
for part in iterate_frames(sys.argv[1], FramePolicy(fps=5.0, max_frames=10**9), batch=64):
    assert part.shown[0] > last and len(part.seconds) <= 64
    count, last = count + len(part.seconds), part.shown[-1]
    sizes.append(resident("VmRSS"))
print(json.dumps({"count": count, "last": last, "before": before, "peak": resident("VmHWM"), "sizes": sizes}))
"""


def texture(number: int) -> np.ndarray:
    base = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.roll(base, (2 * number, 3 * number), (0, 1))[:180, :320]


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour at 25 frames a second, 320x180: the packets of ten seconds, over and over."""
    folder = tmp_path_factory.mktemp("hour")
    short = make_clip(
        folder / "short.mp4", list(range(250)), size=(180, 320), base=25, draw=texture,
        options={"bf": "2", "g": "250", "preset": "veryfast", "crf": "30"},
    )  # fmt: skip
    path = folder / "hour.mp4"
    with av.open(str(short)) as old, av.open(str(path), "w") as new:
        video = old.streams.video[0]
        stream = new.add_stream_from_template(video)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in old.demux(video) if p.size]
        length = round(10 / video.time_base)
        for turn in range(360):
            for data, pts, dts, key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.time_base, packet.stream, packet.is_keyframe = video.time_base, stream, key
                new.mux(packet)
    return path


@pytest.mark.parametrize("kept", [False, True], ids=["first visit", "second visit"])
def test_an_hour_in_batches(hour: Path, kept: bool) -> None:
    index = hour.parent / "index"
    assert index.exists() == kept
    environment = {**os.environ, "FOURDTHINKER_INDEX_CACHE": str(index), "MALLOC_ARENA_MAX": "4"}
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", CONSUMER, str(hour)], env=environment, cwd=root,
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found["count"] == 18000
    assert found["last"] == pytest.approx(3599.8)
    assert found["peak"] - found["before"] < LIMIT, found
    quarter = len(found["sizes"]) // 4  # the first half fills the heap with freed blocks of all sizes
    third, last = found["sizes"][2 * quarter : 3 * quarter], found["sizes"][3 * quarter :]
    assert statistics.median(last) - statistics.median(third) < 8 << 20, found


def test_eight_threads_and_two_hundred_files(tmp_path: Path) -> None:
    codecs = [("libx264", "mp4", {"bf": "3"}), ("libx265", "mkv", {"x265-params": "log-level=none:pools=1"}),
              ("libvpx-vp9", "webm", {"cpu-used": "8"}), ("mpeg4", "avi", {"bf": "2"})]  # fmt: skip
    made = [
        make_clip(tmp_path / f"{n}.{suffix}", [40 * k for k in range(30)], codec=codec, options=options,
                  size=(96 + 16 * n, 160), draw=lambda k, n=n: texture(k + n)[: 96 + 16 * n, :160])
        for n, (codec, suffix, options) in enumerate(codecs * 2)
    ]  # fmt: skip
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(made[0].read_bytes()[:-400])
    files = [*made, damaged, tmp_path / "none.mp4"] * 20
    policy = FramePolicy(fps=10)

    def digest(result: Frames | VideoError) -> str:
        if isinstance(result, VideoError):
            return str(result)
        return hashlib.sha256(result.pixels.numpy().tobytes()).hexdigest()

    alone: dict[Path, str] = {}
    for path in files[:10]:
        try:
            alone[path] = digest(read_frames(path, policy))
        except VideoError as error:
            alone[path] = digest(error)
    sizes, descriptors = [], []
    trim = ctypes.CDLL(None).malloc_trim
    for _ in range(6):
        found = [digest(result) for result in read_many(files, policy, workers=8)]
        assert found == [alone[path] for path in files]
        gc.collect()
        trim(0)  # freed blocks that the allocator keeps in its arenas are no leak
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert len(set(descriptors)) == 1
    # The first rounds fill the allocator's arenas, by how the threads happen to meet.
    assert min(sizes[4:]) - min(sizes[2:4]) < 8 << 20, sizes
