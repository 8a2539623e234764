"""How each reader of videos gets the frames shown at given times, resized: ours and its peers.

Every function takes a file and a `Plan` and returns uint8 [T, h, w, 3]. A peer is used as its documentation
tells for speed: all threads, one call for all frames, and torch's antialiased Lanczos, which is within a
level of Pillow's and several times faster, unless the name says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames.gpu import nvdec

SEEK_FRAMES = 24  # nearer targets are reached by decoding, further ones by a seek


@dataclass(frozen=True)
class Plan:
    """What to read: times in seconds, the indexes and stamps of the frames shown then, size (height, width).

    uniform: the times were given; else they are those of the policy. keys: indexes of the keyframes. stream:
    index in the container, None for the best.
    """

    policy: FramePolicy
    times: list[float]
    indexes: list[int]
    stamps: list[int]
    size: tuple[int, int]
    uniform: bool
    keys: list[int] = field(default_factory=list)
    stream: int | None = None


Reader = Callable[[Path, Plan], np.ndarray]


# -- resizes


def with_pillow(pictures: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    target, lanczos = size[::-1], Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(picture).resize(target, lanczos)) for picture in pictures])


def with_torch(pictures: Tensor, size: tuple[int, int]) -> np.ndarray:
    """uint8 [T, H, W, 3], or such a view of [T, 3, H, W], to uint8 [T, h, w, 3]."""
    small = interpolate(pictures.permute(0, 3, 1, 2), size, mode="lanczos", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def one_by_one(pictures: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.concatenate([with_torch(torch.from_numpy(picture)[None], size) for picture in pictures])


# -- readers


@dataclass
class Ours:
    """`read_frames`. index: "off" for a first visit to a file; or the folder where a first visit leaves the
    file's index. decoder: what decoded the last file, which is NVDEC on a GPU or an error."""

    index: str
    device: str = "cpu"
    decoder: str = ""

    def __call__(self, path: Path, plan: Plan) -> np.ndarray:
        return self.pixels(path, plan).cpu().numpy()

    def pixels(self, path: Path, plan: Plan) -> Tensor:
        """uint8 [T, h, w, 3], finished, on the device."""
        os.environ["FOURDTHINKER_INDEX_CACHE"] = self.index
        times = plan.times if plan.uniform else None
        frames = read_frames(path, plan.policy, times=times, stream=plan.stream, device=self.device)
        self.decoder = frames.decoder
        if self.device != "cpu" and self.decoder != "nvdec":
            raise VideoError(f"decoded by {self.decoder}, not by NVDEC ({nvdec.missing() or 'it refused'})")
        assert frames.pixels is not None
        if self.device != "cpu":
            torch.cuda.synchronize()
        return frames.pixels


def _decord(path: Path, plan: Plan) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), num_threads=0).get_batch(plan.indexes).asnumpy()


def decord_pillow(path: Path, plan: Plan) -> np.ndarray:
    return with_pillow(_decord(path, plan), plan.size)


def decord_torch(path: Path, plan: Plan) -> np.ndarray:
    return with_torch(torch.from_numpy(_decord(path, plan)), plan.size)


def torchcodec(mode: str, threads: int, device: str = "cpu") -> Reader:
    """mode: "exact" or "approximate"; threads: 0 leaves them to FFmpeg, which takes all cores."""

    def read(path: Path, plan: Plan) -> np.ndarray:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(
            str(path), num_ffmpeg_threads=threads, seek_mode=mode, stream_index=plan.stream, device=device
        )
        pictures = decoder.get_frames_played_at(plan.times).data
        if device == "cpu":
            return with_torch(pictures.permute(0, 2, 3, 1), plan.size)
        small = interpolate(pictures.float(), plan.size, mode="bicubic", antialias=True)
        small = small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        torch.cuda.synchronize()
        return small.cpu().numpy()

    return read


def _av_frames(path: Path, plan: Plan, seek: bool) -> Iterator[av.VideoFrame]:
    """The wanted frames, increasing, each once. EOFError: a seek went beyond one, or it has no such stamp."""
    index_of = dict(zip(plan.stamps, plan.indexes))
    wanted = sorted(index_of, reverse=True)
    with av.open(str(path)) as container:
        video = next(stream for stream in container.streams.video if plan.stream in (None, stream.index))
        video.thread_type = "AUTO"
        packets, position = container.demux(video), 0
        while wanted:
            key = max((k for k in plan.keys if k <= index_of[wanted[-1]]), default=0)
            if seek and key - position > SEEK_FRAMES:
                container.seek(wanted[-1], stream=video)
                packets, position = container.demux(video), key
            position += 1
            packet = next(packets, None)
            if packet is None:
                raise EOFError(f"{len(wanted)} of {len(index_of)} frames were not found")
            for frame in packet.decode():
                if wanted and frame.pts == wanted[-1]:
                    wanted.pop()
                    yield frame


def _as_asked(pictures: np.ndarray, plan: Plan) -> np.ndarray:
    """Frames wanted more than once are repeated."""
    position = {stamp: k for k, stamp in enumerate(sorted(set(plan.stamps)))}
    return pictures[[position[stamp] for stamp in plan.stamps]]


def pyav(seek: bool) -> Reader:
    def read(path: Path, plan: Plan) -> np.ndarray:
        pictures = (frame.to_ndarray(format="rgb24") for frame in _av_frames(path, plan, seek))
        return _as_asked(one_by_one(pictures, plan.size), plan)

    return read


def pyav_pillow(path: Path, plan: Plan) -> np.ndarray:
    frames = _av_frames(path, plan, False)  # seeking misses frames of MPEG program streams
    pictures = [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in frames]
    return _as_asked(with_pillow(pictures, plan.size), plan)


def opencv(seek: bool) -> Reader:
    def read(path: Path, plan: Plan) -> np.ndarray:
        import cv2

        capture = cv2.VideoCapture(str(path))
        position, pictures = 0, {}
        for index in sorted(set(plan.indexes)):
            key = max((k for k in plan.keys if k <= index), default=0)
            if seek and key - position > SEEK_FRAMES:
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                position = index
            while position <= index:
                capture.grab()
                position += 1
            got, picture = capture.retrieve()
            if not got:
                raise ValueError(f"{path}: OpenCV has no frame {index}")
            picture = torch.from_numpy(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            pictures[index] = with_torch(picture[None], plan.size)
        capture.release()
        return np.concatenate([pictures[index] for index in plan.indexes])

    return read


def qwen_vl_utils(path: Path, plan: Plan) -> np.ndarray:
    """Its own choice of as many frames (evenly spaced indexes, the last one among them), its own resize."""
    from qwen_vl_utils.vision_process import fetch_video

    height, width = plan.size
    size = {"resized_height": height, "resized_width": width}
    frames = fetch_video({"video": str(path), "nframes": len(plan.times), **size})
    return frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# -- which there are

OURS, SECOND_VISIT = "ours", "ours, second visit"
SLOW_PEER = "decord + Pillow"  # the one that the first bound is set against


def readers(device: str, kept: str) -> dict[str, Reader]:
    """Those that this installation has, by name; ours first. kept: a folder for indices of second visits."""
    if device == "cuda":
        found = {
            OURS: Ours("off", "cuda"),
            SECOND_VISIT: Ours(kept, "cuda"),
            "ours, on the host": Ours("off"),
        }
        if importlib.util.find_spec("torchcodec"):
            found["torchcodec cuda"] = torchcodec("approximate", 1, "cuda")
            found["torchcodec exact, all threads"] = torchcodec("exact", 0)
        return found
    found = {OURS: Ours("off"), SECOND_VISIT: Ours(kept)}
    for module in ("decord", "torchcodec.decoders", "cv2"):  # not within a first run
        with suppress(Exception):  # which tells why not
            importlib.import_module(module)
    if importlib.util.find_spec("decord"):
        found |= {SLOW_PEER: decord_pillow, "decord": decord_torch}
    if importlib.util.find_spec("torchcodec"):
        for mode in ("exact", "approximate"):
            found[f"torchcodec {mode}, 1 thread"] = torchcodec(mode, 1)
            found[f"torchcodec {mode}, all threads"] = torchcodec(mode, 0)
    found |= {"PyAV": pyav(False), "PyAV seeking": pyav(True)}
    if importlib.util.find_spec("cv2"):
        found |= {"OpenCV": opencv(False), "OpenCV seeking": opencv(True)}
    if "qwen-vl-utils" not in absent():
        found["qwen-vl-utils"] = qwen_vl_utils
    return found


@cache
def absent() -> dict[str, str]:
    """Peers that take no part, with the reason."""
    reasons = {}
    for module in ("decord", "torchcodec", "cv2"):
        if importlib.util.find_spec(module) is None:
            reasons[module] = "not installed"
    try:
        importlib.import_module("torchvision")
        importlib.import_module("qwen_vl_utils")
    except Exception as error:  # noqa: BLE001 - a torchvision for another torch fails in its own ways
        reasons["qwen-vl-utils"] = f"{type(error).__name__}: {error}"
    return reasons
