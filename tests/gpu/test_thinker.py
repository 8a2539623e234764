"""A checkpoint that answers on a GPU, from pictures alone: no video has to be decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourdthinker.backbones import FAMILIES
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.sampler import SamplingConfig
from fourdthinker.thinker import Thinker
from tests.gpu.device import DEVICE
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_first_gpu_is_taken_and_answers_as_the_cpu_does(family: str, tmp_path: Path) -> None:
    factor = {"qwen2_5_vl": 28, "qwen3_vl": 32}[family]
    policy = FramePolicy(max_pixels=4 * factor**2, min_pixels=factor**2, factor=factor)
    tiny_checkpoint(tmp_path / "model", family=family, policy=policy, style=PromptStyle(instruction=""))
    frames = tmp_path / "frames"
    frames.mkdir()
    generator = np.random.default_rng(0)
    for k in range(3):
        picture = generator.integers(0, 255, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(picture).save(frames / f"{k}.png")
    config = SamplingConfig(temperature=0.0, max_new_tokens=8)
    answers = []
    for device in (None, "cpu"):
        thinker = Thinker.from_pretrained(tmp_path / "model", device=device)
        assert thinker.checkpoint.backbone.device.type == (device or DEVICE.type)
        pieces: list[str] = []
        answer = thinker.generate(frames, "Which way?", config=config, on_text=pieces.append)
        assert "".join(pieces) == answer.text
        answers.append(answer)
    mine, other = (answer.tokens.cpu() for answer in answers)
    assert torch.equal(mine[:1], other[:1])  # later ids hang on rounding
