"""What the reader hands to NVDEC, with a stand-in that decodes the same packets in software."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, iterate_frames, read_frames, reading
from fourdthinker.frames.attempts import Attempt
from fourdthinker.frames.colour import planes_of
from fourdthinker.frames.gpu import nvdec
from tests.clips import make_clip

_video = pytest.importorskip("fourdthinker._video", reason="built without the native extension")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """NVDEC's stand-in; the numbers of packets that it was given."""
    given = []

    def decode(packets: Any, video: Any, wanted: Any, *, device: Any, **conversion: Any) -> torch.Tensor:
        frames: dict[int, av.VideoFrame] = {}
        context, count = video.codec_context, 0
        for item in packets:
            if isinstance(item, av.Packet):
                frames |= {frame.pts: frame for frame in context.decode(item)}
                count += 1
            elif item is None:
                frames |= {frame.pts: frame for frame in context.decode(None)}
                context.flush_buffers()
        frames |= {frame.pts: frame for frame in context.decode(None)}
        given.append(count)
        layout = asdict(planes_of(frames[wanted[0]])[1])
        planes = [planes_of(frames[pts])[0] for pts in wanted]
        return torch.from_numpy(_video.convert(planes, **(layout | conversion)))

    monkeypatch.setattr(nvdec, "decode", decode)
    monkeypatch.setattr(nvdec, "available", lambda *_: None)
    monkeypatch.setattr(reading, "Attempt", lambda *a, **named: Attempt(*a, **(named | {"on_gpu": True})))
    return given


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    options = {"x264-params": "keyint=20:bframes=3:scenecut=0"}
    return make_clip(
        tmp_path / "c.mp4", [40 * k for k in range(100)], options=options, rotation=90, size=(48, 96)
    )


def software(monkeypatch: pytest.MonkeyPatch, read: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(nvdec, "available", lambda *_: "not today")
        return read()


@pytest.mark.parametrize("room", [reading.ROOM, 0])
def test_same_frames_from_fewer_packets(
    clip: Path, engine: list[int], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(reading, "ROOM", room)
    for how in (
        {"policy": FramePolicy(fps=2)},
        {"policy": FramePolicy(fps=2), "out": "patches"},
        {"times": [3.0, 0.04, 0.04, 1.6]},
    ):
        there = read_frames(clip, **how)
        assert there.decoder == "nvdec"
        here = software(monkeypatch, lambda how=how: read_frames(clip, **how))
        assert here.decoder == "libavcodec h264"
        for name in ("pixels", "patches", "grid_thw"):
            one, other = getattr(here, name), getattr(there, name)
            assert (one is None and other is None) or torch.equal(one, other)
        assert replace(here, pixels=None, patches=None, grid_thw=None, decoder="") == replace(
            there, pixels=None, patches=None, grid_thw=None, decoder=""
        )
    assert max(engine) < 80


def test_batches(clip: Path, engine: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = software(monkeypatch, lambda: read_frames(clip, FramePolicy(fps=5)))
    parts = list(iterate_frames(clip, FramePolicy(fps=5), batch=8))
    assert [part.decoder for part in parts] == ["nvdec"] * 3
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_what_nvdec_refuses_is_said_once(
    clip: Path, engine: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nvdec, "available", lambda *_: "this chip has no decoder for tests")
    for _ in range(2):
        assert read_frames(clip, FramePolicy()).decoder == "libavcodec h264"
    assert caplog.text.count("decoding in software: this chip has no decoder for tests") == 1


@pytest.mark.parametrize(("pixels", "depth"), [("yuv422p", 8), ("yuv422p10le", 10)])
def test_the_chip_is_asked_about_4_2_2(
    tmp_path: Path, engine: list[int], monkeypatch: pytest.MonkeyPatch, pixels: str, depth: int
) -> None:
    clip = make_clip(tmp_path / "c.mp4", [40 * k for k in range(30)], pixel_format=pixels)
    here = software(monkeypatch, lambda: read_frames(clip, FramePolicy(fps=5)))
    asked = []
    monkeypatch.setattr(nvdec, "available", lambda *about: asked.append(about[:5]))
    there = read_frames(clip, FramePolicy(fps=5))
    assert asked == [("h264", "422", depth, 64, 48)]
    assert (here.decoder, there.decoder) == ("libavcodec h264", "nvdec")
    assert torch.equal(here.pixels, there.pixels)


def test_damage_is_judged_in_software(
    clip: Path, engine: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hole is seen before NVDEC is given the packet; with partial=True the frames before it come."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        packets = sorted((p for p in container.demux(stream) if p.size), key=lambda p: p.dts)
        packet = next(p for p in packets[50:] if p.is_keyframe)
        place = packet.pos + packet.size // 2
    data = bytearray(clip.read_bytes())
    data[place : place + 16] = bytes(16)
    how = {"times": [0.4, 1.2, 3.0], "partial": True}
    there = read_frames(bytes(data), **how)
    here = software(monkeypatch, lambda: read_frames(bytes(data), **how))
    assert there.fault is not None
    assert there.fault == here.fault
    assert len(there.pixels) < 3
    assert torch.equal(here.pixels, there.pixels)
    assert "decoding in software: a run of zero bytes" in caplog.text
    with pytest.raises(VideoError, match="a run of zero bytes"):
        read_frames(bytes(data), times=how["times"])
    assert len(read_frames(bytes(data), times=how["times"][:2]).pixels) == 2
