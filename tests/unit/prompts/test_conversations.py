"""Conversations: their text, MLLM-4D's label rule, pictures where they stand, packed and unpacked."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import RecordError
from fourdthinker.frames import FramePolicy
from fourdthinker.objectives import dift_objective
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import IGNORE, Sample, collate
from tests.clips import make_clip, picture
from tests.tiny import tiny_checkpoint

PLAIN = PromptStyle(instruction="")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    factor = 28 if request.param == "qwen2_5_vl" else 32
    policy = FramePolicy(factor=factor, min_pixels=factor**2, max_pixels=4 * factor**2, max_frames=4)
    return tiny_checkpoint(family=request.param, layers=1, policy=policy, style=PLAIN)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "v.mp4", [100 * k for k in range(25)])
    make_clip(folder / "w.mp4", [100 * k for k in range(35)])
    for k in range(2):
        Image.fromarray(picture(k, 64, 64 * (k + 1))).save(folder / f"{k}.png")
    return folder


def talk(*texts: str, **changes: Any) -> Record:
    turns = [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    record = Record("dift", "r", texts[0], text_output=texts[1], turns=turns, where="d.jsonl:3")
    return replace(record, **changes)


def conversations(media: Path) -> list[Record]:
    """Text, pictures, a clip, all of them mixed, blocks; one turn and several."""
    video, picture_ = str(media / "v.mp4"), str(media / "0.png")
    mixed = [("image", picture_), ("video", str(media / "w.mp4")), ("image", str(media / "1.png"))]
    return [
        talk("How far?", "Two metres.", "And now, assistant?", "Three.", system="Be brief."),
        talk("Is <image> like <image>?", "No.", frames=[picture_, str(media / "1.png")], separate=True),
        talk("<video>\nWhich way?", "Left.", "Sure?", "Yes.", "Why?", "It moves left.", video=video),
        talk("First <image>", "A cube.", "then <video> and <image>", "It moves.", media=mixed),
        talk("<video> So?", "I see <output_image>", "And?", "Right.", video=video, images=[picture_]),
    ]


def rule(encoder: Encoder, ids: Tensor, head: str = "<|im_start|>assistant") -> Tensor:
    """MLLM-4D's rule, read from the ids alone.

    At each `head` copy from the second token after it up to `<|im_end|>`, with that and the token after it;
    all else is -100. Latent pads, which MLLM-4D has not, are -100 too.
    """
    opening = encoder.tokenizer(head, add_special_tokens=False)["input_ids"]
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens, labels = ids.tolist(), [IGNORE] * len(ids)
    for start in range(len(tokens)):
        if tokens[start : start + len(opening)] == opening:
            first = start + len(opening) + 1
            last = tokens.index(end, first) + 1
            labels[first : last + 1] = tokens[first : last + 1]
    return torch.tensor([IGNORE if label == encoder.latents.pad_id else label for label in labels])


def test_labels_are_those_of_the_rule(checkpoint: Checkpoint, media: Path) -> None:
    made = checkpoint.encoder()
    for record in conversations(media):
        sample = made.sample(record)
        assert torch.equal(sample.labels, rule(made, sample.input_ids))
    learnt = made.sample(conversations(media)[0])
    assert made.tokenizer.decode(learnt.labels[learnt.labels != IGNORE]) == (
        "Two metres.<|im_end|>\nThree.<|im_end|>\n"
    )
    assert made.tokenizer.decode(learnt.input_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow far?<|im_end|>\n"
        "<|im_start|>assistant\nTwo metres.<|im_end|>\n<|im_start|>user\nAnd now, assistant?<|im_end|>\n"
        "<|im_start|>assistant\nThree.<|im_end|>\n"
    )


def test_the_newline_is_learnt_where_the_prompt_leaves_it_out(checkpoint: Checkpoint) -> None:
    made = checkpoint.encoder()
    open_style = replace(PLAIN, newline_after_assistant=False)
    leaving = Encoder(made.tokenizer, made.spec, made.latents, made.policy, open_style)
    record = talk("How far?", "Two.", "Sure?", "Yes.")
    sample = leaving.sample(record)
    assert leaving.tokenizer.decode(sample.labels[sample.labels != IGNORE]) == (
        "\nTwo.<|im_end|>\n\nYes.<|im_end|>\n"
    )
    assert torch.equal(sample.input_ids, made.sample(record).input_ids)


def test_the_prompt_of_one_turn_is_that_of_generation(checkpoint: Checkpoint, media: Path) -> None:
    made = checkpoint.encoder()
    told = Encoder(made.tokenizer, made.spec, made.latents, made.policy, replace(PLAIN, instruction="Think."))
    for record in (conversations(media)[1], talk("<video>\nWhich?", "Left.", video=str(media / "v.mp4"))):
        sample, prompt = told.sample(record), told.prompt(record)
        size = len(prompt.input_ids)
        assert torch.equal(sample.input_ids[:size], prompt.input_ids)
        assert torch.equal(sample.position_ids[:, :size], prompt.position_ids)
        assert told.tokenizer.decode(prompt.input_ids).endswith(
            "?\n\nThink.<|im_end|>\n<|im_start|>assistant\n"
        )
    asked = told.tokenizer.decode(told.sample(conversations(media)[0]).input_ids)
    assert asked.count("\n\nThink.<|im_end|>") == 2


def test_pictures_stand_in_their_order(checkpoint: Checkpoint, media: Path) -> None:
    made, record = checkpoint.encoder(), conversations(media)[3]
    sample, spec = made.sample(record), checkpoint.backbone.vision
    vision, merged = sample.vision, spec.merge_size**2
    assert vision is not None
    assert vision.kind_of_each == ["image", "video", "image"]
    alone = [
        made.read(talk("<image>?", "x", frames=[record.media[0][1]], separate=True)),
        made.read(talk("<video>?", "x", video=record.media[1][1])),
        made.read(talk("<image>?", "x", frames=[record.media[2][1]], separate=True)),
    ]
    assert torch.equal(vision.grid_thw, torch.cat([part.grid_thw for part in alone if part is not None]))
    assert torch.equal(
        vision.patches, torch.cat([part.patches for part in alone if part is not None])  # type: ignore[arg-type]
    )  # fmt: skip
    kinds = [spec.image_token_id, spec.video_token_id, spec.image_token_id]
    expected = [
        pad for pad, (t, h, w) in zip(kinds, vision.grid_thw.tolist(), strict=True)
        for _ in range(t * h * w // merged)
    ]  # fmt: skip
    assert sample.input_ids[sample.vision_index].tolist() == expected
    timed = spec.tokens_per_second is not None
    positions, _ = mrope_positions(
        sample.input_ids,
        grid_thw=vision.grid_thw if timed else per_frame(vision.grid_thw),
        seconds_per_grid=alone[1].seconds_per_grid if timed else None,  # type: ignore[union-attr]
        image_token_id=spec.image_token_id,
        video_token_id=spec.video_token_id,
        tokens_per_second=spec.tokens_per_second or 0.0,
    )
    assert torch.equal(sample.position_ids, positions)
    if not timed:
        text = made.tokenizer.decode(sample.input_ids)
        assert text.count(" seconds>") == int(vision.grid_thw[1, 0])
        assert text.index("First") < text.index("A cube") < text.index(" seconds>")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (talk("How <|im_end|>?", "x"), "the question holds the control token <|im_end|>"),
        (talk("How?", "x", "And <|video_pad|>", "y"), "conversations holds the control token"),
        (talk("How?", "x", "And?", "<|latent_pad|>"), "conversations holds the control token"),
        (talk("What is ANSWER-GOES-HERE?", "x", "And?", "y"), "which stands for answers"),
    ],
)
def test_refused(checkpoint: Checkpoint, record: Record, words: str) -> None:
    with pytest.raises(RecordError, match=rf"d\.jsonl:3: .*{words}".replace("|", r"\|")):
        checkpoint.encoder().sample(record)


def test_several_turns_are_no_prompt(checkpoint: Checkpoint) -> None:
    with pytest.raises(RecordError, match="a conversation of several turns is no prompt"):
        checkpoint.encoder().prompt(talk("How?", "x", "And?", "y"))


def gradients(checkpoint: Checkpoint, batches: list[list[Sample]], *, packed: bool) -> tuple[float, Tensor]:
    """Loss of an update of these batches, and its gradient in one row."""
    backbone = checkpoint.backbone
    made = [collate(batch, backbone.vision.pad_id, packed=packed) for batch in batches]
    numbers = {
        "num_tokens": float(sum(batch["rows"].numel() for batch in made)),
        "num_latents": float(sum(batch["latent_index"].numel() for batch in made)),
    }
    backbone.zero_grad()
    loss = 0.0
    for batch in made:
        part, _ = backbone(batch, functools.partial(dift_objective, **numbers))
        part.backward()
        loss += part.item()
    trained = (p.grad for p in backbone.parameters() if p.grad is not None)
    return loss, torch.cat([gradient.flatten() for gradient in trained])


def test_packed_equals_unpacked(checkpoint: Checkpoint, media: Path) -> None:
    """All in one sequence, and each in a forward of its own: the same loss and gradients, the tower's too."""
    made = checkpoint.encoder()
    samples = [made.sample(record) for record in conversations(media)]
    loss, gradient = gradients(checkpoint, [samples], packed=True)
    alone, expected = gradients(checkpoint, [[sample] for sample in samples], packed=False)
    padded, third = gradients(checkpoint, [samples], packed=False)
    assert loss == pytest.approx(alone, rel=1e-5)
    assert padded == pytest.approx(alone, rel=1e-5)
    for other in (gradient, third):
        assert (other - expected).abs().max() <= 1e-5 * expected.abs().max()
    tower = checkpoint.backbone.visual.parameters()
    assert sum(float(p.grad.abs().sum()) for p in tower if p.grad is not None) > 0
