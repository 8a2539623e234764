"""Where the chroma samples of a stream lie, as its header declares."""

from __future__ import annotations

from av.video.stream import VideoStream


def siting_of(video: VideoStream) -> str:
    """ "left" (MPEG-2 and all that came after, also where nothing is declared), "center" or "topleft"."""
    return "center" if video.codec_context.name == "mjpeg" else "left"
