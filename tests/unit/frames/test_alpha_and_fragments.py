"""Alpha that FFmpeg's decoders leave out, and fragments whose header counts from 0."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames


def written(path: Path, codec: str, form: str, begin: int = 0, **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25, options={"auto-alt-ref": "0"} if "vp" in codec else {})
        stream.height, stream.width, stream.pix_fmt = 32, 32, form
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 4), 90, np.uint8), format="rgba")
            frame.pts, frame.time_base = begin + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_of_webm_is_refused(tmp_path: Path, codec: str) -> None:
    with pytest.raises(VideoError, match="its alpha is coded apart from its pictures"):
        read_frames(written(tmp_path / "c.webm", codec, "yuva420p"))
    assert len(read_frames(written(tmp_path / "d.webm", codec, "yuv420p"), times=[0.1]).seconds) == 1


def test_fragments_that_begin_late(tmp_path: Path) -> None:
    path = written(tmp_path / "c.mp4", "libx264", "yuv420p", 1000, movflags="dash+frag_keyframe+delay_moov")
    frames = read_frames(path)
    assert frames.shown[0] == pytest.approx(40, abs=0.1)
