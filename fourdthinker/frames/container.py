"""A video file opened through PyAV: which formats, which stream, and for how long."""

from __future__ import annotations

import errno
import io
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.bitstream import gif, png
from fourdthinker.frames.image_file import check_source_size, contents, source_limit
from fourdthinker.frames.threads import set_threads

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


Source = str | os.PathLike[str] | bytes
# Containers that hold one file's media and refer to nothing else (playlists and scripts are not opened).
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,ivf,gif,mxf,wav,mp3,"
    "aac,flac,h264,hevc,vvc,m4v,av1,obu,apng,yuv4mpegpipe,rm,nut,image2pipe,png_pipe,jpeg_pipe,webp_pipe"
)
# How files begin of which FFmpeg mixes the pictures of two that stand one behind the other. MXF: the key of a
# header partition (SMPTE ST 377-1, 7.1).
_BEGINNINGS = {
    "nut": b"nut/multimedia container\0",
    "mxf": b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",
}
_BLOCK = 1 << 20  # bytes that are searched at once


class Deadline:
    """Ends a reading that takes longer than `timeout` seconds (None: never).

    Looked at between packets, and by FFmpeg while it waits for data; one call of a decoder is not
    interrupted.
    """

    def __init__(self, name: str, timeout: float | None) -> None:
        self.name, self.timeout = name, timeout
        self.until = None if timeout is None else time.monotonic() + timeout

    def check(self) -> None:
        """Raise VideoError if the time is over."""
        if self.until is not None and time.monotonic() > self.until:
            raise VideoError(
                f"{self.name}: not read within {self.timeout:g} s; raise timeout, or drop the file"
            )

    def left(self) -> float | None:
        """Seconds that are left, at least 0.001; None without a limit. Raises VideoError if none are."""
        self.check()
        return None if self.until is None else max(0.001, self.until - time.monotonic())


def name_of(source: Source) -> str:
    """What messages call a source: its absolute path, or "<bytes>"."""
    return "<bytes>" if isinstance(source, bytes) else os.path.abspath(os.fspath(source))


def _pyav(name: str) -> ModuleType:
    """PyAV, which nothing but the reading of a video needs."""
    try:
        import av.error
        import av.stream
    except ImportError as error:
        raise ConfigError(
            f"{name}: reading a video needs PyAV, which cannot be imported ({error}): pip install av"
        ) from error
    return av


@contextmanager
def opened(
    source: Source,
    stream: int | None,
    threads: int,
    deadline: Deadline,
    *,
    quick: bool = False,
    longest_delay: bool = False,
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, or the one asked for, open for reading.

    Args:
        source: a path, or the bytes of a file.
        stream: index of the video stream; None: FFmpeg's best.
        threads: of its decoder.
        deadline: names the source in messages, and bounds how long opening and reading may take.
        quick: where the container's header tells enough, FFmpeg does not decode the first pictures, which it
            does to learn their format and how far they are reordered.
        longest_delay: see `set_threads`.

    Yields:
        (container, video stream), which stands at its beginning.

    Raises:
        VideoError: no file, or none that is read here; its pictures have more than max_source_pixels pixels;
            the time is over.
        ConfigError: PyAV cannot be imported.
    """
    av = _pyav(deadline.name)
    name = deadline.name
    _check_file(source, name)
    left = deadline.left()
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "ignore_editlist": "1"}
    head = _head(source, name)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        raise VideoError(
            f"{name}: an animated WebP, which is not read as a video; convert it to an animated PNG or GIF"
        )
    if quick and (head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"):  # MP4, Matroska
        options["codec_whitelist"] = "none"  # for what avformat opens itself
    _check_header_size(head, name)
    if head[:6] in gif.SIGNATURES:
        source = _gif(source, name)
    elif head[:8] == png.SIGNATURE:
        with contents(source) as data:
            source = png.with_delays(data[:]) if png.moves(data) else source
    try:
        # Titles and the like are not read here, and many files hold them in another encoding than UTF-8.
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else name,
            options=options,
            metadata_errors="replace",
            timeout=left,
        )
    except av.error.ExitError:
        deadline.until = 0.0
        deadline.check()
        raise
    except av.error.FFmpegError as error:
        cause = "its type is not one of those read here" if error.errno == errno.EINVAL else error.strerror
        raise VideoError(
            f"{name}: not a video that can be opened ({cause}); it may be cut off, or no video at all"
        ) from error
    with container:
        video = _stream(container, stream, name)
        context = video.codec_context
        if context is None:
            raise VideoError(f"{name}: no decoder for the codec of stream {video.index}; convert it to H.264")
        check_source_size(name, context.height, context.width, source_limit())
        for other in container.streams:
            if other.index != video.index:
                other.discard = av.stream.Discard.all
        _check_alpha(container, video, name)
        set_threads(video, threads, longest_delay=longest_delay)
        yield container, video


def _check_file(source: Source, name: str) -> None:
    size = (
        len(source) if isinstance(source, bytes) else os.path.getsize(name) if os.path.isfile(name) else None
    )
    if size is None:
        kind = "a folder" if os.path.isdir(name) else "no regular file"
        raise VideoError(f"{name}: {f'is {kind}, not a video' if os.path.exists(name) else 'no such file'}")
    if size == 0:
        raise VideoError(f"{name}: the file is empty (0 bytes)")
    if not isinstance(source, bytes) and not os.access(name, os.R_OK):
        raise VideoError(f"{name}: the file may not be read; ask for the right to, or drop it")


def _head(source: Source, name: str) -> bytes:
    """The first bytes of a file, zeros where it has fewer."""
    if isinstance(source, bytes):
        return source[:24].ljust(24, b"\0")
    with open(name, "rb") as file:
        return file.read(24).ljust(24, b"\0")


def _check_header_size(head: bytes, name: str) -> None:
    """Refuse a GIF or PNG of too many pixels before FFmpeg opens it, which decodes its first picture."""
    if head[:6] in gif.SIGNATURES:
        width, height = struct.unpack_from("<HH", head, 6)
    elif head[:8] == png.SIGNATURE:
        width, height = struct.unpack_from(">II", head, 16)
    else:
        return
    check_source_size(name, height, width, source_limit())


def _gif(source: Source, name: str) -> bytes:
    """A GIF file as FFmpeg tells its pictures and their times apart."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(name, "rb") as file:
        try:
            return gif.in_packets(file.read())
        except gif.Text as error:
            raise VideoError(
                f"{name}: the GIF has text that a viewer must draw, which is not read here; write it anew "
                "with the text in its pictures"
            ) from error


def _check_alpha(container: InputContainer, video: VideoStream, name: str) -> None:
    """Refuse alpha that is coded as a picture of its own, which FFmpeg's decoders leave out."""
    form = container.format.name
    webm = form.startswith("matroska") and video.metadata.get("alpha_mode") == "1"
    avif = form.startswith("mov") and container.metadata.get("major_brand") == "avis"
    if webm or (avif and len({other.id for other in container.streams.video}) > 1):
        raise VideoError(
            f"{name}: its alpha is coded apart from its pictures, and not read; put it over a background, or "
            "convert it to ProRes 4444 (of a WebM, ffmpeg reads it with -c:v libvpx-vp9 or libvpx before -i)"
        )


def check_single(source: Source, name: str, form: str, check: Callable[[], None]) -> None:
    """Refuse files put one behind the other, in formats where FFmpeg does not notice.

    Args:
        source: the file, or its bytes.
        name: of the file.
        form: FFmpeg's name of its format.
        check: called for each block that is read.

    Raises:
        VideoError: a second file begins within this one.
    """
    beginning = _BEGINNINGS.get(form)
    if beginning is None:
        return
    count, kept = 0, b""
    with io.BytesIO(source) if isinstance(source, bytes) else open(name, "rb") as file:
        while block := file.read(_BLOCK):
            check()
            count += (kept + block).count(beginning)
            kept = (kept + block)[1 - len(beginning) :]
    if count > 1:
        raise VideoError(
            f"{name}: a second {form.upper()} file begins behind the first; split them, or join them with "
            "a muxer"
        )


def breaks_off(source: Source, form: str) -> bool:
    """Whether a GIF or animated PNG goes on behind its last whole picture, or should.

    Args:
        source: the file, or its bytes.
        form: FFmpeg's name of its format.
    """
    broken = {"gif": gif.broken, "apng": png.broken}.get(form)
    if broken is None:
        return False
    with contents(source) as data:
        return broken(data[:])


def aspect_of(video: VideoStream) -> float:
    """Width to height of a pixel: by the container, else by the first picture, once it is decoded."""
    return float(video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio or 1) or 1.0


def _stream(container: InputContainer, index: int | None, name: str) -> VideoStream:
    import av.stream

    covers = av.stream.Disposition.attached_pic
    videos = {s.index: s for s in container.streams.video if not s.disposition & covers}
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoError(f"{name}: no video stream (streams: {kinds})")
    if index is None:
        best = container.streams.best("video")
        return videos.get(best.index if best is not None else -1, next(iter(videos.values())))
    if index not in videos:
        known = ", ".join(str(i) for i in videos)
        raise VideoError(f"{name}: stream {index} is no video stream; video streams are {known}")
    return videos[index]
