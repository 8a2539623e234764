"""Prompts of Qwen3-VL: seconds as text, a slot for every temporal patch, answers that the template opens."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.frames import FramePolicy, Frames, patchify, read_frames
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import Vision
from tests.clips import make_clip, picture
from tests.tiny import CHAT_TEMPLATE, tiny_checkpoint

PLAIN = PromptStyle(instruction="")
SMALL = FramePolicy(factor=32, max_pixels=64 * 64, min_pixels=32 * 32)
# As of Qwen3-VL Thinking, which writes the first words of every answer.
THINKING = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(family="qwen3_vl", policy=SMALL, style=PLAIN)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "clip.mp4", [100 * k for k in range(45)])
    for k in range(2):
        Image.fromarray(picture(k, 64, 64)).save(folder / f"{k}.png")
    return folder


def encoder_of(
    checkpoint: Checkpoint, style: PromptStyle = PLAIN, template: str = CHAT_TEMPLATE, **policy: Any
) -> Encoder:
    backbone, tokenizer = checkpoint.backbone, copy.deepcopy(checkpoint.tokenizer)
    tokenizer.chat_template = template
    return Encoder(tokenizer, backbone.vision, backbone.latents, replace(SMALL, **policy), style)


def makers_text(text: str, indices: list[int], fps: float, grid: torch.Tensor) -> str:
    """The slots of a clip by the processor's own code, in the place of the template's, as the makers had it.

    The processor cannot be made here (its video processor needs torchvision): its methods are called alone.
    """
    own = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
    )
    own._calculate_timestamps = partial(Qwen3VLProcessor._calculate_timestamps, own)
    inputs = {"video_grid_thw": grid, "video_metadata": [SimpleNamespace(fps=fps, frames_indices=indices)]}
    slots = Qwen3VLProcessor.replace_video_token(own, inputs, 0)
    return text.replace("<|vision_start|><|video_pad|><|vision_end|>", slots, 1)


@pytest.mark.parametrize("policy", [{}, {"fps": 2.0}, {"fps": 4.0, "max_frames": 7}])
def test_prompt_ids_equal_the_makers(checkpoint: Checkpoint, files: Path, policy: dict[str, Any]) -> None:
    encoder = encoder_of(checkpoint, **policy)
    record = Record("rl", "r", "Which way?", video=str(files / "clip.mp4"))
    prompt = encoder.prompt(record)
    seconds = read_frames(record.video or "", encoder.policy).seconds
    assert len(seconds) % 2
    text = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which way?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    # Frames k of a file of 1000 frames a second, as the makers count them.
    assert prompt.vision is not None
    grid = prompt.vision.grid_thw
    assert grid.tolist() == [[len(seconds) // 2 + 1, 4, 4]]
    expected = makers_text(text, [round(1000 * t) for t in seconds], 1000.0, grid)
    assert "<0." in expected
    ids = encoder.tokenizer(expected, add_special_tokens=False).input_ids
    assert prompt.input_ids.tolist() == ids
    assert prompt.family == "qwen3_vl"
    assert prompt.assistant_prefix == ""


def test_patches_are_normalised_as_the_family_wants(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint)
    record = Record(
        "dift", "r", "?", video=str(files / "clip.mp4"), images=[str(files / f"{k}.png") for k in (0, 1)]
    )
    record.text_output = "<output_image> and <output_image>"
    sample = encoder.sample(record)
    frames = read_frames(record.video or "", SMALL)
    assert frames.pixels is not None
    half = (0.5, 0.5, 0.5)
    expected, grid = patchify(frames.pixels, patch=16, mean=half, std=half)
    for vision in (sample.vision, Vision.from_frames(frames, encoder.spec)):
        assert vision is not None
        assert torch.equal(vision.grid_thw, grid)
        torch.testing.assert_close(vision.patches, expected)
    assert sample.imagery is not None
    assert sample.imagery.grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    assert sample.imagery.patches is not None
    assert sample.imagery.patches.shape[1] == 1536
    assert sample.imagery.patches.min() >= -1 >= -1.0001
    assert (sample.input_ids == encoder.spec.video_token_id).sum() == len(sample.vision_index)
    assert sample.family == "qwen3_vl"


def test_times_of_clips(checkpoint: Checkpoint, files: Path) -> None:
    def times(encoder: Encoder, record: Record, frames: Frames | Vision | None = None) -> list[str]:
        text = encoder.tokenizer.decode(encoder.prompt(record, frames).input_ids)
        return [
            piece.split(" seconds>")[0].rpartition("<")[2] for piece in text.split("<|vision_start|>")[:-1]
        ]

    record = Record("rl", "r", "?", video=str(files / "clip.mp4"))
    assert times(encoder_of(checkpoint), record) == ["0.5", "2.5", "4.0"]
    # A part of a file is a clip of its own, whose clock begins with it.
    assert times(encoder_of(checkpoint), replace(record, start=1.0)) == ["0.5", "2.5"]
    # A checkpoint trained on another clock.
    assert times(encoder_of(checkpoint, replace(PLAIN, seconds_per_grid=1.0)), record) == [
        "0.2",
        "1.2",
        "2.2",
    ]
    # Frames that lie unevenly.
    pixels = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    uneven = Frames(pixels=pixels, seconds=[10.0, 11.0, 14.0, 20.0])
    assert times(encoder_of(checkpoint), record, uneven) == ["0.5", "7.0"]
    # Cached features may come without times.
    cached = Vision(torch.tensor([[2, 4, 4]]), features=torch.zeros(8, 96), seconds_per_grid=[4.0])
    assert times(encoder_of(checkpoint), record, cached) == ["1.0", "5.0"]
    assert times(encoder_of(checkpoint), record, replace(cached, seconds_per_grid=None)) == ["0.2", "1.2"]
    with pytest.raises(ConfigError, match="clip 0 has 2 temporal patches and 1 times"):
        times(encoder_of(checkpoint), record, replace(cached, times=[[0.5]]))


def test_pictures(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint)
    images = Record("rl", "r", "Same?", frames=[str(files / f"{k}.png") for k in (0, 1)], separate=True)
    prompt = encoder.prompt(images)
    slot = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
    assert encoder.tokenizer.decode(prompt.input_ids) == (
        f"<|im_start|>user\n{slot}{slot}Same?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_a_slot(checkpoint: Checkpoint, files: Path) -> None:
    bare = CHAT_TEMPLATE.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    encoder = encoder_of(checkpoint, template=bare)
    with pytest.raises(
        ConfigError, match=r"made 0 video slots for 1 videos; it must write <\|vision_start\|>"
    ):
        encoder.prompt(Record("rl", "r", "?", video=str(files / "clip.mp4")))


@pytest.mark.parametrize("newline", [True, False])
def test_the_template_opens_the_answer(checkpoint: Checkpoint, newline: bool) -> None:
    """Thinking: prompts end as the template says, and samples go on from there, whatever the style."""
    encoder = encoder_of(checkpoint, replace(PLAIN, newline_after_assistant=newline), THINKING)
    record = Record(
        "dift", "r", "Left?", text_output="<think> I see. </think>\n<answer>A</answer>", where="d:3"
    )
    prompt, sample = encoder.prompt(record), encoder.sample(record)
    asked = "<|im_start|>user\nLeft?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert encoder.tokenizer.decode(prompt.input_ids) == asked
    assert prompt.assistant_prefix == "<think>\n"
    assert prompt.input_ids.tolist() == sample.input_ids[: len(prompt.input_ids)].tolist()
    supervised = sample.labels[sample.labels != -100]
    assert encoder.tokenizer.decode(supervised) == "I see. </think>\n<answer>A</answer><|im_end|>\n"
    assert torch.equal(sample.labels[len(prompt.input_ids) :], supervised)
    with pytest.raises(
        RecordError, match="d:3: text_output does not begin with <think>, which the chat template"
    ):
        encoder.sample(replace(record, text_output="<answer>A</answer>"))


def test_what_was_made_for_the_other_family(checkpoint: Checkpoint, files: Path) -> None:
    with pytest.raises(ConfigError) as error:
        encoder_of(checkpoint, factor=28)
    assert "factor is 28 (as for a qwen2_5_vl), and this model needs 32, as a qwen3_vl" in str(error.value)
    encoder = encoder_of(checkpoint)
    record = Record("rl", "r", "?", video=str(files / "clip.mp4"))
    small = FramePolicy(max_pixels=56 * 56)
    pixels = read_frames(record.video or "", small)
    with pytest.raises(ConfigError, match=r"are 56x56 pixels, and a qwen3_vl needs multiples of 32"):
        encoder.prompt(record, pixels)
    patches = read_frames(record.video or "", small, out="patches")
    with pytest.raises(
        ConfigError, match=r"have 1176 values, and a qwen3_vl reads 1536; they were cut for another"
    ):
        encoder.prompt(record, patches)
