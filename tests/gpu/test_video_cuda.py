"""Conversion and NVDEC on a GPU against the CPU path: the same integers, so the same bits."""

from __future__ import annotations

import gc
import io
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from fourdthinker.frames import FramePolicy, read_frames  # noqa: E402 - after the check for av
from fourdthinker.frames.colour import planes_of  # noqa: E402
from fourdthinker.frames.gpu import convert, nvdec  # noqa: E402
from fourdthinker.frames.native import native  # noqa: E402
from tests.unit.frames.gpu.test_convert import LAYOUTS, planes  # noqa: E402

pytestmark = pytest.mark.gpu_only
CUDA = torch.device("cuda", 0)
video = native()


@pytest.fixture(autouse=True)
def cuda_build():
    reason = convert.missing()
    if reason is not None:
        pytest.skip(reason)


def same(got: torch.Tensor, expected: torch.Tensor | np.ndarray) -> None:
    expected = torch.from_numpy(expected) if isinstance(expected, np.ndarray) else expected
    got = got.cpu()
    assert got.shape == expected.shape
    got, expected = got.view(torch.uint8), expected.cpu().view(torch.uint8)
    wrong = (got != expected).sum().item()
    assert wrong == 0, f"{wrong} of {got.numel()} bytes differ"


# --- conversion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def test_conversion(layout):
    random = np.random.default_rng(0)
    frames = [planes(random, 271, 483, **layout) for _ in range(3)]
    for rotation, mirrored in ((0, False), (90, False), (180, True), (270, True)):
        for size in ((112, 196), (300, 500), (271, 483), (271, 140), (28, 483)):
            options = {
                "height": size[0],
                "width": size[1],
                "rotation": rotation,
                "mirrored": mirrored,
                "crop": (3, 5, 250, 430),
                **layout,
            }
            same(convert.convert(frames, device=CUDA, **options), video.convert(frames, **options))


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840), (1920, 1080), (3000, 60), (60, 5000)])
def test_production_sizes(size):
    random = np.random.default_rng(1)
    frames = [planes(random, *size, chroma="420", interleaved=True) for _ in range(2)]
    for resample in ("lanczos", "bicubic"):
        options = {"height": 336, "width": 588, "chroma": "420", "interleaved": True, "resample": resample}
        same(convert.convert(frames, device=CUDA, **options), video.convert(frames, **options))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("patch", "factor"), [(14, 28), (16, 32)])
def test_patches(dtype, patch, factor):
    random = np.random.default_rng(2)
    frames = [
        planes(random, 240, 320, chroma="420") for _ in range(35)
    ]  # more than two launches, an odd number
    options = {"height": 6 * factor, "width": 9 * factor, "chroma": "420", "out": "patches", "patch": patch}
    got = convert.convert(frames, device=CUDA, dtype=dtype, **options)
    same(got, video.convert(frames, dtype=dtype, **options).view(np.uint8).reshape(got.shape[0], -1).view(
        {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]))  # fmt: skip


def test_the_work_is_in_the_order_of_the_current_stream():
    random = np.random.default_rng(3)
    options = {"height": 112, "width": 196, "chroma": "420"}
    frames = [planes(random, 270, 480, chroma="420") for _ in range(8)]
    expected = video.convert(frames, **options)
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # what comes after must wait
            results.append(convert.convert(frames, device=CUDA, **options).clone())
    for plane in (p for f in frames for p in f):
        plane[:] = 0  # already copied
    torch.cuda.synchronize()
    for result in results:
        same(result, expected)


# --- NVDEC ------------------------------------------------------------------------------------------------

CLIPS = {
    "h264": ("libx264", "yuv420p", {"bf": "3", "g": "20"}),
    "h264 one GOP": ("libx264", "yuv420p", {"bf": "2", "g": "1000"}),
    "h264 interlaced": ("libx264", "yuv420p", {"x264-params": "tff=1:keyint=20"}),
    "h264 10 bits": ("libx264", "yuv420p10le", {"g": "20"}),
    "h264 4:2:2": ("libx264", "yuv422p", {"g": "20"}),
    "h264 4:2:2 10 bits": ("libx264", "yuv422p10le", {"g": "20"}),
    "h264 4:4:4": ("libx264", "yuv444p", {"g": "20"}),
    "hevc": ("libx265", "yuv420p", {"x265-params": "log-level=error:keyint=20"}),
    "hevc 10 bits": ("libx265", "yuv420p10le", {"x265-params": "log-level=error:keyint=20"}),
    "hevc 4:2:2": ("libx265", "yuv422p", {"x265-params": "log-level=error:keyint=20"}),
    "hevc 4:2:2 10 bits": ("libx265", "yuv422p10le", {"x265-params": "log-level=error:keyint=20"}),
    "hevc 4:4:4": ("libx265", "yuv444p", {"x265-params": "log-level=error:keyint=20"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"g": "20", "cpu-used": "8", "deadline": "realtime"}),
    "av1": ("libsvtav1", "yuv420p", {"g": "20", "preset": "12"}),
    "av1 10 bits": ("libsvtav1", "yuv420p10le", {"g": "20", "preset": "12"}),
}
# First of all whether NVDEC is there: without the driver's video library the rest says nothing.
NVDEC_MISSING = nvdec.missing()
with_nvdec = pytest.mark.skipif(NVDEC_MISSING is not None, reason=f"no NVDEC: {NVDEC_MISSING}")
SIZE = (180, 318)  # no multiples of 16: a display area inside the coded frames
FRAMES = 60


@pytest.fixture(scope="module")
def clips():
    made: dict[str, bytes] = {}

    def clip(name: str) -> bytes:
        if name not in made:
            codec, pixels, options = CLIPS[name]
            try:
                av.Codec(codec, "w")
            except ValueError:
                pytest.skip(f"this FFmpeg has no encoder {codec}")
            file = io.BytesIO()
            with av.open(file, "w", format="mp4") as out:
                stream = out.add_stream(
                    codec, rate=25, width=SIZE[1], height=SIZE[0], pix_fmt=pixels, options=options
                )
                rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
                for i in range(FRAMES):
                    waves = [
                        np.sin(columns / 9 + i / 5),
                        np.cos(rows / 7 - i / 3),
                        np.sin((rows + columns) / 15 + i),
                    ]
                    picture = av.VideoFrame.from_ndarray(
                        (np.stack(waves, -1) * 120 + 128).astype(np.uint8), format="rgb24"
                    )
                    picture.pts, picture.time_base = i, Fraction(1, 25)
                    out.mux(stream.encode(picture))
                out.mux(stream.encode(None))
            made[name] = file.getvalue()
        return made[name]

    return clip


OUTPUT = {"height": 112, "width": 196, "matrix": "bt601", "full_range": False, "siting": "left"}


def refusal(data: bytes) -> str | None:
    with av.open(io.BytesIO(data)) as container:
        context = container.streams.video[0].codec_context
        name = context.pix_fmt
        depth = 10 if "10" in name else 8
        chroma = "420" if "420" in name else "422" if "422" in name else "444"
        return nvdec.available(context.name, chroma, depth, context.width, context.height, CUDA)


def decoded(data: bytes, chosen: list[int], **options) -> torch.Tensor:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        step = int(1 / (25 * stream.time_base))
        packets = (p for p in container.demux(stream) if p.size)
        wanted = [n * step for n in chosen]
        return nvdec.decode(packets, stream, wanted, device=CUDA, **(OUTPUT | options))


def in_software(data: bytes, chosen: list[int], **options) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        parts = [planes_of(frames[n]) for n in chosen]
        layout = parts[0][1]
        described = {k: getattr(layout, k) for k in ("chroma", "depth", "shift", "interleaved")}
        return video.convert([p for p, _, _ in parts], **(OUTPUT | described | options))


def test_nvdec_is_there():
    """The reason stands in the list of skipped tests before those of all other tests of NVDEC."""
    if NVDEC_MISSING is not None:
        pytest.skip(NVDEC_MISSING)


@with_nvdec
@pytest.mark.parametrize("name", CLIPS)
def test_nvdec_gives_the_frames_of_software(clips, name):
    data = clips(name)
    reason = refusal(data)
    if reason is not None:
        assert "NVDEC" in reason
        pytest.skip(reason)
    chosen = [0, 1, 7, 19, 20, 21, 38, 59, 40, 7]  # in any order, one twice
    same(decoded(data, chosen), in_software(data, chosen))
    patches = {"out": "patches", "dtype": "bfloat16", "rotation": 90, "height": 196, "width": 112}
    got = decoded(data, chosen[:5], **patches)
    same(got, in_software(data, chosen[:5], **patches))


@with_nvdec
def test_every_frame_of_many_videos_at_once(clips):
    names = ["h264", "h264 one GOP", "hevc"]
    expected = {name: in_software(clips(name), list(range(FRAMES))) for name in names}

    def one(number: int) -> None:
        name = names[number % len(names)]
        with torch.cuda.stream(torch.cuda.Stream()):
            same(decoded(clips(name), list(range(FRAMES))), expected[name])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(48)))


@with_nvdec
def test_memory_is_flat(clips):
    data = clips("h264")

    def free() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    for _ in range(5):
        decoded(data, [0, 30])
    before = free()
    for _ in range(100):
        decoded(data, [0, 30])
    assert before - free() < 32 << 20


@with_nvdec
def test_what_is_missing_or_damaged_is_named(clips):
    data = clips("h264")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        last = max(p.pts for p in packets)
        with pytest.raises(nvdec.NvdecError, match="does not show") as caught:
            nvdec.decode(iter(packets), stream, [0, last + 12345], device=CUDA, **OUTPUT)
        assert caught.value.pts == last + 12345


# --- the whole way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [FramePolicy(), None], ids=["resized", "own size"])
@pytest.mark.parametrize("name", CLIPS)
def test_read_frames_on_a_gpu(clips, name, policy):
    """Whatever the chip decodes: the same frames, and the decoder is named."""
    data = clips(name)
    times = [0.0, 0.5, 1.0, 1.7]
    host, device = (read_frames(data, policy, times=times, device=d) for d in ("cpu", CUDA))
    assert device.pixels is not None
    assert device.pixels.device == CUDA
    same(device.pixels, host.pixels)
    assert ("nvdec" in device.decoder) == (refusal(data) is None), device.decoder
    assert "nvdec" not in host.decoder
