"""Cropping that the container asks for is not applied: docs/video.md says so."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import torch

from fourdthinker.frames import read_frames

HEADERS = {b"stsd": 16, b"avc1": 86}  # bytes before the first box inside; 8 elsewhere
WAY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")


def plain(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number in range(5):
            picture = np.full((96, 160, 3), 60 + number * 10, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path.read_bytes()


def offsets(data: bytes) -> list[int]:
    """Where each box of WAY begins."""
    found, position = [], 0
    for name in WAY:
        while data[position + 4 : position + 8] != name:
            position += struct.unpack_from(">I", data, position)[0]
        found.append(position)
        position += HEADERS.get(name, 8)
    return found


def with_clap(data: bytes, width: int, height: int) -> bytes:
    """The same file with a clean aperture in the middle of its pictures; `moov` must be behind `mdat`."""
    boxes = offsets(data)
    clap = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    end = boxes[-1] + struct.unpack_from(">I", data, boxes[-1])[0]
    changed = bytearray(data[:end] + clap + data[end:])
    for position in boxes:
        struct.pack_into(">I", changed, position, struct.unpack_from(">I", changed, position)[0] + len(clap))
    return bytes(changed)


def test_a_clean_aperture_is_not_applied(tmp_path: Path) -> None:
    data = plain(tmp_path / "a.mp4")
    cropped = tmp_path / "b.mp4"
    cropped.write_bytes(with_clap(data, 80, 48))
    assert b"clap" in cropped.read_bytes()
    times = [0.1 * number for number in range(5)]
    ours, whole = (read_frames(path, times=times).pixels for path in (cropped, tmp_path / "a.mp4"))
    assert ours.shape == (5, 96, 160, 3)
    assert torch.equal(ours, whole)
