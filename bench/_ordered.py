"""Dense reading of a video whose pictures must be ordered first, against decoding it through.

The clip is H.264 with B-frames, its packets stamped in the order of storage as after copying a raw stream.
"""

from __future__ import annotations

import statistics
import tempfile
from fractions import Fraction
from pathlib import Path

import av

from bench._clips import Clip, clip_file
from bench._measure import interleaved
from fourdthinker.frames import FramePolicy, read_frames

CLIP = Clip("h264", 480, 250, 6)
MOST = 1.5  # times as long as decoding through, at most


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Milliseconds of both, of all frames resized to 256 * 28 * 28 pixels, and their ratio."""
    with tempfile.TemporaryDirectory() as kept:
        path = _in_order_of_storage(clip_file(CLIP, folder), Path(kept) / "storage.mp4")
        policy = FramePolicy(fps=CLIP.rate, max_frames=CLIP.frames)
        height, width = policy.size(*_size(path))

        def ours() -> None:
            frames = read_frames(path.read_bytes(), policy)  # bytes: no index is kept of them
            if (len(frames.seconds), frames.times_from) != (CLIP.frames, "sorted"):
                raise RuntimeError(f"{len(frames.seconds)} frames, their times from {frames.times_from}")

        def decoded_through() -> None:
            with av.open(str(path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    frame.reformat(width, height, "rgb24", interpolation="LANCZOS").to_ndarray()

        seconds = interleaved({"ours": ours, "through": decoded_through}, repeats=repeats)
    found = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    return {**found, "ratio": found["ours"] / found["through"]}


def _size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def _in_order_of_storage(source: Path, path: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        video = old.streams.video[0]
        stream = new.add_stream_from_template(video)
        for index, packet in enumerate(packet for packet in old.demux(video) if packet.size):
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, CLIP.rate), stream
            new.mux(packet)
    return path
