"""Clips and pictures of a conversation, kept in the cache together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.trainers.vision_cache import VisionCache
from tests.clips import make_clip, picture
from tests.e2e.training import POLICIES
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_cached_sample_is_the_sample(family: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(
        family=family, layers=1, policy=POLICIES[family], style=PromptStyle(instruction="")
    )
    for name, frames in (("v", 15), ("w", 25)):
        make_clip(tmp_path / f"{name}.mp4", [100 * k for k in range(frames)])
    Image.fromarray(picture(0, 64, 64)).save(tmp_path / "a.png")
    media = [("video", "v.mp4"), ("image", "a.png"), ("video", "w.mp4")]
    turns = [("user", "<video> then <image> and <video>?"), ("assistant", "Yes.")]
    record = Record("dift", "r", "then and ?", text_output="Yes.", turns=turns)
    record.media = [(kind, str(tmp_path / name)) for kind, name in media]
    encoder, backbone = checkpoint.encoder(), checkpoint.backbone
    cache = VisionCache(tmp_path / "cache", backbone, encoder, clips=True, imagery=True)
    assert cache.fill(backbone, [record, record]) == 1
    picture_path = str(tmp_path / "a.png")  # as a clip and as an image, which are not read alike
    forms: list[dict[str, Any]] = [{"video": picture_path}, {"frames": [picture_path]}]
    forms.append({"frames": [picture_path], "separate": True})
    assert cache.fill(backbone, [Record("ask", "a", "?", **form) for form in forms]) == 3
    kept, read = cache.sample(record), encoder.sample(record)
    assert torch.equal(kept.input_ids, read.input_ids)
    assert torch.equal(kept.position_ids, read.position_ids)
    assert kept.vision is not None
    assert read.vision is not None
    assert (kept.vision.kinds, kept.vision.times) == (read.vision.kinds, read.vision.times)
    assert read.vision.kinds == ["video", "image", "video"]
    features = backbone.encode_vision(read.vision.patches, read.vision.grid_thw)  # type: ignore[arg-type]
    assert torch.allclose(kept.vision.features, features, atol=1e-5)  # type: ignore[arg-type]
