"""Damaged video files: how often a reader gives a wrong frame without a word.

python -m bench damage [--cases 25] [--only TEXT] [--save]

Small clips in which bytes are zeroed, overwritten, flipped or removed, somewhere between a tenth and nine
tenths of the file. Of each damaged file one frame near the damage is read, by the time or number that it has
in the whole file. It is right (equal to what the same reader gives of the whole file), an error, wrong, or
the reader crashed or hung. Readers work in processes of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from bench._clips import Clip, cache_folder, clip_file
from bench._measure import add_save, positive, save, show
from fourdthinker.frames import read_frames

log = logging.getLogger("bench.damage")

KINDS = ("zeroed", "random", "flipped", "removed")
SIZES = (8, 64, 400, 2000)
HANGS = 20.0  # seconds without an answer, the start of the process included
# (clip, the container that its packets are put into)
FILES = [
    *((Clip("h264", 240, 60, 4), suffix) for suffix in ("mp4", "mkv", "ts")),
    *((Clip("hevc", 240, 60, 4), suffix) for suffix in ("mp4", "mkv", "ts")),
    (Clip("vp9", 240, 60, 4), "webm"), (Clip("av1", 240, 60, 4), "mp4"),
]  # fmt: skip

Read = Callable[[Path, float, int], np.ndarray]


# -- readers: the frame shown at a time, which is the one of that number in the whole file


def ours(path: Path, seconds: float, _: int) -> np.ndarray:
    pixels = read_frames(path, times=[seconds]).pixels
    assert pixels is not None
    return pixels[0].numpy()


def torchcodec(path: Path, seconds: float, _: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path), num_ffmpeg_threads=0).get_frame_played_at(seconds).data.numpy()


def decord(path: Path, _: float, number: int) -> np.ndarray:
    from decord import VideoReader

    return VideoReader(str(path), num_threads=0)[number].asnumpy()


def pyav(path: Path, seconds: float, _: int) -> np.ndarray:
    """The last frame that begins at or before the time, decoding all with threads."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        found = None
        for frame in container.decode(video):
            if frame.time is not None and frame.time > seconds:
                break
            found = frame
    if found is None:
        raise ValueError("no frame")
    return found.to_ndarray(format="rgb24")


READERS: dict[str, Read] = {"ours": ours, "torchcodec": torchcodec, "decord": decord, "PyAV": pyav}


# -- cases


@dataclass(frozen=True)
class Case:
    kind: str
    position: float  # of the damage, a fraction of the file
    size: int
    seed: int
    number: int  # of the frame

    def damage(self, data: bytes) -> bytes:
        begin = int(len(data) * self.position)
        end = min(begin + (1 if self.kind == "flipped" else self.size), len(data))
        if self.kind == "removed":
            return data[:begin] + data[end:]
        part = bytes(end - begin)
        if self.kind == "random":
            part = random.Random(self.seed).randbytes(end - begin)
        if self.kind == "flipped":
            part = bytes([data[begin] ^ 1 << self.seed % 8])
        return data[:begin] + part + data[end:]


def cases(count: int, frames: int) -> list[Case]:
    """So many of each kind; the same for every file and reader."""
    draw = random.Random(0)
    found = []
    for seed in range(count * len(KINDS)):
        position = draw.uniform(0.1, 0.9)
        number = min(frames - 1, max(0, int(position * frames) + draw.randrange(-6, 12)))
        found.append(Case(KINDS[seed % len(KINDS)], position, draw.choice(SIZES), seed, number))
    return found


def file_of(clip: Clip, suffix: str, folder: Path) -> Path:
    """The clip's packets in that container."""
    source = clip_file(clip, cache_folder())
    if source.suffix == f".{suffix}":
        return source
    target = folder / f"{source.stem}.{suffix}"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target


# -- a reader at work, in a process of its own


def work(name: str, path: Path, count: int, first: int) -> None:
    """Prints the outcome of each case from the first on, a line each."""
    av.logging.set_level(None)
    os.environ["FOURDTHINKER_INDEX_CACHE"] = "off"
    logging.disable(logging.CRITICAL)
    read, data = READERS[name], path.read_bytes()
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size and p.pts is not None]
    shown = sorted(float(packet.pts * packet.time_base) for packet in packets)
    whole: dict[int, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, f"damaged{path.suffix}")
        for case in cases(count, len(shown))[first:]:
            seconds = shown[case.number] + 1e-4
            damaged.write_bytes(case.damage(data))
            try:
                if case.number not in whole:
                    whole[case.number] = read(path, seconds, case.number)
                same = np.array_equal(read(damaged, seconds, case.number), whole[case.number])
                outcome = "right" if same else "wrong"
            except Exception:  # noqa: BLE001 - each reader has errors of its own
                outcome = "error"
            sys.stdout.write(json.dumps(outcome) + "\n")
            sys.stdout.flush()


def outcomes(name: str, path: Path, count: int) -> Iterator[str]:
    """Of all cases; a reader that crashes or hangs is started again behind the case."""
    total, done = count * len(KINDS), 0
    while done < total:
        command = [sys.executable, "-m", "bench.damage", name, str(path), str(count), str(done)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        rest, last = b"", time.monotonic()
        while done < total:
            part = process.stdout.read()
            rest += part or b""
            *lines, rest = rest.split(b"\n")
            for line in lines:
                done, last = done + 1, time.monotonic()
                yield json.loads(line)
            ended = part == b""
            if done < total and (ended or time.monotonic() - last > HANGS):
                yield "crash" if ended else "hang"
                done += 1
                break
            time.sleep(0.01)
        process.kill()
        process.wait()


CASES = 25  # of each kind, in figures that are saved


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench damage", description="Wrong frames, untold.")
    parser.add_argument("--cases", type=positive, default=CASES, help="of each kind")
    parser.add_argument("--only", default="", help="only files whose name, as 'h264 mkv', holds this text")
    add_save(parser)
    options = parser.parse_args(argv)
    if options.save and options.cases != CASES:
        parser.error(f"--save keeps figures of {CASES} cases of each kind; leave out --cases")
    start, records, table = time.monotonic(), [], []
    present = [name for name in READERS if name in ("ours", "PyAV") or importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        for clip, suffix in FILES:
            if options.only not in f"{clip.codec} {suffix}":
                continue
            path = file_of(clip, suffix, Path(folder))
            line: dict[str, object] = {"file": f"{clip.codec} {suffix}"}
            for name in present:
                found = list(outcomes(name, path, options.cases))
                for index, kind in enumerate(KINDS):
                    counted = Counter(found[index :: len(KINDS)])
                    records.append({"file": line["file"], "reader": name, "kind": kind, **counted})
                    line[f"{name}, {kind}"] = counted["wrong"]
                failed = sum(word in ("crash", "hang") for word in found)
                if failed:
                    line[f"{name}, crashed or hung"] = failed
            table.append(line)
            log.info("%4.0f s  %s", time.monotonic() - start, line)
            if options.save:  # after each file, so that nothing is lost
                saved = save("damage", records, replacing=("file", "reader", "kind"))
    show(f"Wrong frames without an error, of {options.cases} damaged files of each kind", table)
    if table and options.save:
        log.info("saved in %s", saved)
    return 0


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
