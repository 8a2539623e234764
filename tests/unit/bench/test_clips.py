"""Clips of the video bench: every codec is encoded, read back, and its pictures carry their numbers."""

from pathlib import Path

import pytest

from bench import _clips
from bench._clips import FORMS, Clip, clip_file, number_of
from bench.video import MATRIX
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames.codecs import CODECS


@pytest.fixture(autouse=True)
def small_textures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clips, "TILE", 512)
    monkeypatch.setattr(_clips, "_textures", _clips._textures.__wrapped__)
    monkeypatch.setitem(_clips.WIDTHS, 96, 128)


@pytest.mark.parametrize("codec", FORMS)
def test_a_clip_of_every_codec(codec: str, tmp_path: Path) -> None:
    path = clip_file(Clip(codec, 96, 4, 0.4, rate=25), tmp_path)
    frames = read_frames(path, FramePolicy(fps=12.5))
    assert [number_of(picture) for picture in frames.pixels.numpy()] == [0, 2, 4, 6, 8]


def test_the_matrix_has_every_codec_that_can_be_emptied() -> None:
    decoders = {"libx264": "h264", "libx265": "hevc", "libsvtav1": "av1", "libvpx-vp9": "vp9",
                "libvpx": "vp8", "prores_ks": "prores"}  # fmt: skip
    encoded = {FORMS[clip.codec].encoder for clip in MATRIX}
    covered = {decoders.get(name, name) for name in encoded}
    missing = {name for name, codec in CODECS.items() if codec.flushes and not covered & {*codec.decoders}}
    assert missing == {"vvc"}  # FFmpeg has no encoder of it
