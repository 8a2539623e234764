"""What NVDEC is fed with, and what it is asked before."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from fourdthinker.frames.gpu import convert, nvdec

HOST = torch.device("cpu")


def test_without_cuda_it_says_so(monkeypatch):
    class Without:
        @staticmethod
        def build_info():
            return {"cuda": False, "why_no_cuda": "no nvcc was found", "archs": [], "nvdec_headers": False}

    for module in (convert, nvdec):
        monkeypatch.setattr(module, "native", lambda: Without)
    assert convert.missing() == "fourdthinker._video is built without CUDA: no nvcc was found"
    assert nvdec.available("h264", "420", 8, 640, 480, HOST) == convert.missing()
    monkeypatch.setattr(Without, "build_info", lambda: {"cuda": True, "nvdec_headers": False})
    assert "libffmpeg-nvenc-dev" in nvdec.available("h264", "420", 8, 640, 480, HOST)
    monkeypatch.setattr(Without, "build_info", lambda: {"cuda": True, "nvdec_headers": True})
    monkeypatch.setattr(Without, "nvdec_missing", lambda: "libnvcuvid.so.1 cannot be opened", raising=False)
    assert nvdec.available("mpeg4", "420", 8, 640, 480, HOST) == "libnvcuvid.so.1 cannot be opened"
    monkeypatch.setattr(Without, "nvdec_missing", lambda: None)
    assert nvdec.available("mpeg4", "420", 8, 640, 480, HOST) == "NVDEC is not used for the codec mpeg4"
    for module in (convert, nvdec):
        monkeypatch.setattr(module, "native", lambda: None)
    assert nvdec.available("h264", "420", 8, 640, 480, HOST) == "fourdthinker._video is not built"


def encoded(codec: str, container: str = "mp4", frames: int = 12) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, width=64, height=48, pix_fmt="yuv420p")
        stream.codec_context.gop_size = 5
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i % 256, np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return file.getvalue()


def units(data: bytes) -> list[bytes]:
    """NAL units of Annex B data, without what an encoder may add at their ends."""
    parts = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return [part.rstrip(b"\0") for part in parts if part]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_packets_get_start_codes_and_parameter_sets(codec, name, container):
    data = encoded(codec, container)
    with av.open(io.BytesIO(data)) as ours, av.open(io.BytesIO(data)) as theirs:
        stream = ours.streams.video[0]
        parser_input = nvdec.ParserInput(name, stream.codec_context.extradata)
        got = [
            parser_input.packet(p, first=n == 0)
            for n, p in enumerate(p for p in ours.demux(stream) if p.size)
        ]
        filtering = av.BitStreamFilterContext(f"{name}_mp4toannexb", theirs.streams.video[0])
        want = [
            bytes(p) for q in theirs.demux(theirs.streams.video[0]) if q.size for p in filtering.filter(q)
        ]
    sets = (7, 8) if name == "h264" else (32, 33, 34)

    def kinds(data):
        return [u[0] & 31 if name == "h264" else u[0] >> 1 & 63 for u in units(data)]

    assert set(sets) <= set(kinds(got[0]))
    for mine, reference in zip(got, want, strict=True):
        # FFmpeg repeats the parameter sets at every keyframe, we only where decoding begins.
        pictures = [
            [u for u, k in zip(units(d), kinds(d)) if k not in (*sets, 39, 6)] for d in (mine, reference)
        ]
        assert pictures[0] == pictures[1]


def test_a_packet_with_a_new_header_brings_its_parameter_sets():
    with av.open(io.BytesIO(encoded("libx264"))) as container:
        stream = container.streams.video[0]
        head = stream.codec_context.extradata
        packet = next(p for p in container.demux(stream) if p.size and not p.is_keyframe)
    parser_input = nvdec.ParserInput("h264", b"")
    assert parser_input.packet(packet, first=False) == bytes(packet)

    class Changed:
        def __bytes__(self):
            return bytes(packet)

        def has_sidedata(self, kind):
            return kind == "new_extradata"

        def get_sidedata(self, kind):
            return head

    changed = parser_input.packet(Changed(), first=False)
    assert changed.startswith(b"\0\0\0\1\x67")
    assert parser_input.packet(packet, first=False).startswith(b"\0\0\0\1")


@pytest.mark.parametrize("cut", range(0, 45, 4))
def test_short_headers_do_no_harm(cut):
    for codec in ("libx264", "libx265"):
        with av.open(io.BytesIO(encoded(codec))) as container:
            head = container.streams.video[0].codec_context.extradata[:cut]
        nvdec.ParserInput("h264" if codec == "libx264" else "hevc", head)


def test_batches_end_where_decoding_lands_elsewhere():
    packets = []
    for i in range(150):
        packets.append(av.Packet(b"x"))
        packets[-1].pts = i
    empty = av.Packet()
    items = [*packets[:70], empty, None, 1000, *packets[70:75], 2000, *packets[75:]]
    got = [(landed, [p.pts for p in batch]) for landed, batch in nvdec.batches(items)]
    assert [landed for landed, _ in got] == [None, None, 1000, 2000, None]
    assert [len(batch) for _, batch in got] == [64, 6, 5, 64, 11]
    assert [pts for _, batch in got for pts in batch] == list(range(150))
    assert list(nvdec.batches([5, packets[0]])) == [(5, [packets[0]])]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_packet_that_does_not_end_with_its_last_unit_is_damage(codec):
    with av.open(io.BytesIO(encoded(codec))) as container:
        stream = container.streams.video[0]
        parser_input = nvdec.ParserInput(
            "h264" if codec == "libx264" else "hevc", stream.codec_context.extradata
        )
        packet = next(p for p in container.demux(stream) if p.size)
    whole = bytes(packet)
    assert len(parser_input.packet(packet, first=False)) == len(whole)
    for data in (whole[:-1], whole[: len(whole) // 2], whole + b"\0\0", whole + b"\0\0\0\2x"):
        with pytest.raises(nvdec.NvdecError, match="ends within a NAL unit"):
            parser_input.packet(av.Packet(data), first=False)


class Engine:
    """Shows each packet's frame at once."""

    made: Engine

    def __init__(self, codec, extradata, wanted, to, device, stream, **options):
        self.codec, self.wanted, self.options = codec, set(wanted), options
        self.left, self.fed, self.landed = set(wanted), [], []
        Engine.made = self

    def feed(self, data, offsets, pts, landed):
        assert len(data) == offsets[-1]
        assert len(offsets) == len(pts) + 1
        if data == b"bad":
            raise Module.NvdecDamaged("NVDEC reports an error in the frame", pts[0])
        self.fed += [data[a:b] for a, b in pairwise(offsets)]
        self.landed.append(landed)
        self.left -= set(pts)
        return len(self.left)

    def finish(self):
        return sorted(self.left)


class Module:
    Nvdec = Engine

    class NvdecDamaged(RuntimeError):
        pass


def test_decode_feeds_what_is_needed_and_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(nvdec, "native", lambda: Module)
    options = {"height": 28, "width": 56, "out": "patches", "dtype": "bfloat16", "matrix": "bt709"}
    with av.open(io.BytesIO(encoded("libx264", frames=200))) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        pts = [p.pts for p in packets]
        source = iter(packets)
        out = nvdec.decode(source, stream, [pts[3], pts[1], pts[3]], device=HOST, **options)
        assert (out.dtype, tuple(out.shape)) == (torch.bfloat16, (2 * 2 * 4, 1176))
        assert Engine.made.options == options
        assert len(list(source)) == len(packets) - nvdec.BATCH  # no further than needed
        # The parameter sets come where decoding begins, and nowhere else.
        nvdec.decode(
            [*packets[:70], None, pts[100], *packets[100:]], stream, [pts[150]], device=HOST, **options
        )
        with_sets = [n for n, data in enumerate(Engine.made.fed) if data.startswith(b"\0\0\0\1\x67")]
        keys = [n for n, p in enumerate([*packets[:70], *packets[100:]]) if p.is_keyframe]
        assert with_sets == [0, 70]
        assert len(keys) > 2
        assert Engine.made.landed == [None, None, pts[100]]
        with pytest.raises(nvdec.NvdecError, match="does not show") as caught:
            nvdec.decode(iter(packets), stream, [pts[5], 10**9], device=HOST, **options)
        assert caught.value.pts == 10**9
        bad = av.Packet(b"bad")
        bad.pts = 77
        monkeypatch.setattr(nvdec.ParserInput, "packet", lambda self, packet, first: bytes(packet))
        with pytest.raises(nvdec.NvdecError, match="reports an error") as caught:
            nvdec.decode([bad], stream, [77], device=HOST, **options)
        assert caught.value.pts == 77

        def late(self):  # the wanted frames were shown at the end of the data
            raise Module.NvdecDamaged("NVDEC reports an error in the frame", 78)

        monkeypatch.setattr(Engine, "finish", late)
        with pytest.raises(nvdec.NvdecError, match="an error") as caught:
            nvdec.decode(packets[:3], stream, [78], device=HOST, **options)
        assert caught.value.pts == 78
        bad.pts = None
        with pytest.raises(nvdec.NvdecError, match="no time stamp"):
            nvdec.decode([bad], stream, [77], device=HOST, **options)
        monkeypatch.setattr(nvdec, "native", lambda: None)
        with pytest.raises(nvdec.NvdecError, match="is not built"):
            nvdec.decode([bad], stream, [77], device=HOST, **options)
