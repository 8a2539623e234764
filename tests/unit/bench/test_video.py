"""The bench of videos: what decoded is named, software in NVDEC's place is a failure, frames a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import _measure as measure
from bench import _readers, video
from bench._clips import Clip, clip_file
from bench._readers import OURS, Ours, Plan
from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy
from fourdthinker.frames.convert import Frames

CLIP = Clip("h264", 240, 5, 1, rate=10)


@pytest.fixture
def row(tmp_path: Path) -> video.Row:
    return next(video._rows(CLIP.name, clip_file(CLIP, tmp_path), False, True))


def decoded_by(decoder: str) -> Callable[..., Frames]:
    return lambda *_, **__: Frames(pixels=torch.zeros(2, 8, 8, 3, dtype=torch.uint8), decoder=decoder)


def test_software_in_the_place_of_nvdec_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    plan = Plan(FramePolicy(), [0.0], [0], [0], (8, 8), True)
    on_gpu, on_host = Ours("off", "cuda"), Ours("off")
    monkeypatch.setattr(_readers, "read_frames", decoded_by("nvdec"))
    assert len(on_gpu(Path("clip"), plan)) == 2
    assert on_gpu.decoder == "nvdec"
    monkeypatch.setattr(_readers, "read_frames", decoded_by("pyav"))
    assert len(on_host(Path("clip"), plan)) == 2
    assert on_host.decoder == "pyav"
    with pytest.raises(VideoError, match="decoded by pyav, not by NVDEC"):
        on_gpu(Path("clip"), plan)


def test_every_frame_is_read_and_counted(row: video.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", None)  # frames of a GPU stay there
    record = video._every_frame(row, "cpu")
    assert record["frames"] == CLIP.frames
    assert record["decoder"]
    assert record["fault"] == ""
    assert record["frames_per_s"] == pytest.approx(CLIP.frames / record["median"], rel=0.05)
    monkeypatch.setattr(_readers, "read_frames", decoded_by("pyav"))
    assert "not by NVDEC" in video._every_frame(row, "cuda")["fault"]


@pytest.mark.parametrize("decoder", ["nvdec", "pyav"])
def test_a_row_names_its_decoder_and_fails_by_software(
    decoder: str, row: video.Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frames = video.pyav_pillow(row.path, row.plan)

    def read(path: Path, policy: FramePolicy, **_: Any) -> Frames:
        return Frames(pixels=torch.from_numpy(np.array(frames)), decoder=decoder)

    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "device_name", lambda device="cpu": device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "made up")
    monkeypatch.setattr(video, "readers", lambda device, kept: {OURS: Ours("off", device)})
    monkeypatch.setattr(video, "_generated", lambda *_: [row])
    monkeypatch.setattr(_readers, "read_frames", read)
    status = video.main(["--device", "cuda", "--only", "h264", "--videos", str(tmp_path / "none"), "--save"])
    assert status == (0 if decoder == "nvdec" else 1)
    (path,) = (tmp_path / "results").iterdir()
    (record,) = json.loads(path.read_text())["video cuda"]["rows"]
    assert record["decoder"] == ("nvdec" if status == 0 else "")
    assert ("frames_per_s" in record) == (status == 0)
    assert ("not by NVDEC" in record["fault"]) == (status == 1)
