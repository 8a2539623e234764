"""Prompts, training samples and batches."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fourdthinker.backbones import Checkpoint
from fourdthinker.demo.model import make_tokenizer
from fourdthinker.errors import ConfigError, RecordError, VideoError
from fourdthinker.frames import FramePolicy, Frames, patchify, read_frames
from fourdthinker.latents import IMAGERY
from fourdthinker.positions import mrope_positions
from fourdthinker.prompt_style import RELEASED, PromptStyle, question_text
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Sample, Vision, collate
from tests.clips import Encoded, make_clip, picture
from tests.tiny import tiny_checkpoint

PLAIN = PromptStyle(instruction="Think, then answer.")
OPTIONS = {"A": "left", "B": "right"}
TEXT = "<think>I see <output_image> then <output_image> so.</think>\n<answer>A. left</answer>"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "clip.mp4", [100 * k for k in range(35)])
    for k in range(3):
        Image.fromarray(picture(k, 56, 28 * (k + 2))).save(folder / f"{k}.png")
    return folder


def encoder_of(checkpoint: Checkpoint, style: PromptStyle = PLAIN, **policy: Any) -> Encoder:
    backbone = checkpoint.backbone
    return Encoder(checkpoint.tokenizer, backbone.vision, backbone.latents, FramePolicy(**policy), style)


def record_of(files: Path, **changes: Any) -> Record:
    record = Record("dift", "r", "Which way?", OPTIONS, "A", TEXT, where="data.jsonl:7")
    record.video, record.images = str(files / "clip.mp4"), [str(files / "0.png"), str(files / "1.png")]
    return replace(record, **changes)


def text_of(encoder: Encoder, ids: torch.Tensor, *, pads: bool = False) -> str:
    hidden = () if pads else (encoder.spec.video_token_id, encoder.spec.image_token_id)
    kept = [i for i in ids.tolist() if i not in hidden]
    return encoder.tokenizer.decode(kept)


def test_prompt_in_full(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint)
    prompt = encoder.prompt(record_of(files))
    assert text_of(encoder, prompt.input_ids) == (
        "<|im_start|>user\n<|vision_start|><|vision_end|>Which way?\n\nA. left\nB. right\n\n"
        "Think, then answer.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.vision is not None
    assert prompt.vision.grid_thw.tolist() == [[2, 4, 4]]
    assert (prompt.input_ids == encoder.spec.video_token_id).sum() == 2 * 2 * 2
    assert prompt.next_position == int(prompt.position_ids.max()) + 1
    assert prompt.record is not None


@pytest.mark.parametrize("newline", [True, False])
def test_a_sample_begins_with_the_prompt(checkpoint: Checkpoint, files: Path, newline: bool) -> None:
    encoder = encoder_of(checkpoint, replace(PLAIN, newline_after_assistant=newline))
    record = record_of(files, text_output="\n" + TEXT)
    prompt, sample = encoder.prompt(record), encoder.sample(record)
    length = len(prompt.input_ids)
    assert text_of(encoder, prompt.input_ids).endswith("assistant\n" if newline else "<|im_start|>assistant")
    assert torch.equal(sample.input_ids[:length], prompt.input_ids)
    assert torch.equal(sample.position_ids[:, :length], prompt.position_ids)
    assert sample.position_ids[:, length].tolist() == [prompt.next_position] * 3


@pytest.mark.parametrize("newline", [True, False])
def test_labels(checkpoint: Checkpoint, files: Path, newline: bool) -> None:
    encoder = encoder_of(checkpoint, replace(PLAIN, newline_after_assistant=newline))
    sample = encoder.sample(record_of(files))
    spec = encoder.latents
    supervised = sample.labels != -100
    first = int(supervised.nonzero()[0])
    assert text_of(encoder, sample.input_ids[:first]).endswith("<|im_start|>assistant")
    assert torch.equal(sample.labels[supervised], sample.input_ids[supervised])
    assert text_of(encoder, sample.labels[supervised]) == (
        "\n<think>I see <|latent_start|><|latent_end|> then <|latent_start|><|latent_end|> so.</think>\n"
        "<answer>A. left</answer><|im_end|>\n"
    )
    assert torch.equal(~supervised[first:], sample.input_ids[first:] == spec.pad_id)
    assert torch.equal(sample.latent_index, (sample.input_ids == spec.pad_id).nonzero().flatten())
    starts = (sample.input_ids == spec.start_id).nonzero().flatten()
    assert len(starts) == 2
    for start in starts.tolist():
        block = sample.input_ids[start : start + spec.latent_size + 2].tolist()
        assert block == [spec.start_id, *[spec.pad_id] * spec.latent_size, spec.end_id]
    assert sample.imagery is not None
    assert sample.imagery.grid_thw.tolist() == [[1, 4, 4], [1, 4, 6]]
    assert sample.imagery.patches is not None
    assert sample.imagery.patches.shape == (16 + 24, 1176)


def test_seconds_in_positions(checkpoint: Checkpoint, files: Path) -> None:
    record = record_of(files)
    for style, policy, seconds in [
        (PLAIN, {"fps": 1.0}, 2.0),
        (PLAIN, {"fps": 4.0}, 0.5),
        (PLAIN, {"fps": 4.0, "max_frames": 7}, 1.0),  # capped: 3.5 s in 7 frames
        (replace(PLAIN, seconds_per_grid=1.0), {"fps": 1.0}, 1.0),
        (RELEASED, {"fps": 1.0}, 1.0),
    ]:
        encoder = encoder_of(checkpoint, style, **policy)
        prompt = encoder.prompt(record)
        assert prompt.vision is not None
        expected, following = mrope_positions(
            prompt.input_ids,
            grid_thw=prompt.vision.grid_thw,
            seconds_per_grid=[seconds],
            image_token_id=encoder.spec.image_token_id,
            video_token_id=encoder.spec.video_token_id,
        )
        assert torch.equal(prompt.position_ids, expected)
        assert prompt.next_position == following
        times = prompt.position_ids[0, prompt.input_ids == encoder.spec.video_token_id].unique()
        assert times.diff().tolist() == [int(2 * seconds)] * (len(times) - 1)


def test_pictures_text_only_and_system(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint, replace(PLAIN, instruction=""))
    images = Record("rl", "r", "Same?", frames=[str(files / "0.png"), str(files / "2.png")], separate=True)
    prompt = encoder.prompt(images)
    assert text_of(encoder, prompt.input_ids) == (
        "<|im_start|>user\n<|vision_start|><|vision_end|><|vision_start|><|vision_end|>Same?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.vision is not None
    assert prompt.vision.kind == "image"
    assert (prompt.input_ids == encoder.spec.image_token_id).sum() == 4 + 8
    text = encoder.prompt(Record("rl", "r", "Hello?", system="Be brief."))
    assert text.vision is None
    assert text_of(encoder, text.input_ids, pads=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert torch.equal(text.position_ids, torch.arange(len(text.input_ids)).expand(3, -1))


def test_frames_features_and_latents_may_be_given(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint)
    record = record_of(files)
    read = encoder.sample(record)
    pixels = read_frames(record.video or "", encoder.policy)
    absent = replace(record, video="/nowhere.mp4", images=["/nowhere.png"] * 2)
    assert read.vision is not None
    features = Vision(
        read.vision.grid_thw, features=torch.zeros(8, 32), seconds_per_grid=[pixels.seconds_per_grid]
    )
    for frames in (pixels, features):
        given = encoder.sample(absent, frames=frames, imagery=torch.zeros(8, 32))
        assert torch.equal(given.input_ids, read.input_ids)
        assert torch.equal(given.position_ids, read.position_ids)
        assert given.latents is not None
        assert given.imagery is None
    with pytest.raises(
        RecordError, match=r"data\.jsonl:7: text_output has 2 .* and there are 4 cached latents"
    ):
        encoder.sample(absent, frames=pixels, imagery=torch.zeros(4, 32))
    overlay = Frames(pixels=torch.zeros(1, 28, 28, 3, dtype=torch.uint8), kind="image", source="x")
    with pytest.raises(RecordError, match="overlay 0 has 1 features, and a block needs 4"):
        encoder.sample(replace(absent, text_output="<output_image>"), frames=pixels, imagery=overlay)
    fifths = replace(encoder.latents, latent_size=5, compress_strategy="grid")
    other = Encoder(encoder.tokenizer, encoder.spec, fifths, encoder.policy, encoder.style)
    square = Frames(pixels=torch.zeros(1, 84, 84, 3, dtype=torch.uint8), kind="image", source="x")
    with pytest.raises(RecordError, match="overlay 0 has 3 x 3 features, of which no grid has 5 cells"):
        other.sample(replace(absent, text_output="<output_image>"), frames=pixels, imagery=square)
    Image.new("RGB", (28, 28)).save(files / "small.png")
    with pytest.raises(RecordError, match=r"data\.jsonl:7: overlay 1 has 1 features"):
        encoder.overlays(replace(record, images=[record.images[0], str(files / "small.png")]))
    with pytest.raises(RecordError, match="there are 1 images"):
        encoder.sample(absent, frames=pixels, imagery=overlay)
    with pytest.raises(RecordError, match="there are 1 images"):
        encoder.sample(replace(record, images=record.images[:1]))
    with pytest.raises(RecordError, match="text_output is missing"):
        encoder.sample(replace(record, text_output=None))
    with pytest.raises(VideoError, match="no such file"):
        encoder.prompt(absent)
    with pytest.raises(ConfigError, match="neither pixels nor patches"):
        encoder.prompt(record, Frames(source="x"))
    with pytest.raises(ConfigError, match="kind of pictures is 'film'"):
        encoder.prompt(record, replace(features, kind="film"))


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    before=st.text(max_size=8),
    after=st.text(max_size=8),
    key=st.sampled_from(["question", "option", "text_output", "system"]),
)
def test_text_never_becomes_a_control_token(
    checkpoint: Checkpoint, data: Any, before: str, after: str, key: str
) -> None:
    encoder = encoder_of(checkpoint)
    token = data.draw(st.sampled_from(sorted(encoder.tokenizer.get_added_vocab())))
    changes: dict[str, Any] = {
        "question": {"question": before + token + after},
        "option": {"options": {"A": before + token + after, "B": "right"}},
        "text_output": {"text_output": before + token + after},
        "system": {"system": before + token + after},
    }[key]
    with pytest.raises(RecordError, match=r"d\.jsonl:3: .* holds the control token <\|.*remove it"):
        encoder.sample(replace(Record("dift", "r", "Q?", text_output="x", where="d.jsonl:3"), **changes))


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_other_text_is_kept(checkpoint: Checkpoint, text: str) -> None:
    encoder = encoder_of(checkpoint, replace(PLAIN, instruction=""))
    if "<output_image>" in text or "<|" in text:
        return
    record = Record("dift", "r", "Q" + text, text_output=text + "!")
    sample = encoder.sample(record)
    assert text_of(encoder, sample.input_ids) == (
        f"<|im_start|>user\nQ{text}<|im_end|>\n<|im_start|>assistant\n{text}!<|im_end|>\n"
    )
    control = [i for i in sample.input_ids.tolist() if i in encoder._control]
    assert len(control) == 4


def test_question_text() -> None:
    listed = Record("rl", "r", "Which?\nA) left\nB) right", OPTIONS)
    assert question_text(listed) == listed.question
    assert question_text(Record("rl", "r", "Which?", OPTIONS), "Go.") == "Which?\n\nA. left\nB. right\n\nGo."
    assert question_text(Record("rl", "r", "Which?")) == "Which?"


def test_templates(checkpoint: Checkpoint, files: Path) -> None:
    tokenizer = pickle.loads(pickle.dumps(checkpoint.tokenizer))
    backbone, record = checkpoint.backbone, record_of(files)

    def make(template: str | None) -> Encoder:
        tokenizer.chat_template = template
        return Encoder(
            tokenizer, backbone.vision, backbone.latents, FramePolicy(), replace(PLAIN, instruction="")
        )

    own = make(None)
    assert text_of(own, own.sample(record).input_ids).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    )
    assert text_of(own, own.prompt(record).input_ids).endswith("B. right<|im_end|>\n<|im_start|>assistant\n")
    assert "You are" not in text_of(own, own.prompt(replace(record, system="Brief.")).input_ids)
    short = make(
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}<|im_end|>{% else %}"
        "{% for p in m.content %}{{ '<|video_pad|>' if p.type == 'video' else p.text }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    sample, prompt = short.sample(record), short.prompt(record)
    assert text_of(short, prompt.input_ids) == "Which way?\n\nA. left\nB. right"
    assert torch.equal(sample.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert text_of(short, sample.labels[sample.labels != -100]).startswith("<think>I see")
    with pytest.raises(ConfigError, match=r"made 0 video slots for 1 videos; it must write <\|video_pad\|>"):
        make("{% for m in messages %}{{ m.role }}{% endfor %}").prompt(record)
    with pytest.raises(ConfigError, match="writes nothing after an assistant's turn"):
        make("{% for m in messages %}{{ m.content }}{% endfor %}").sample(
            Record("dift", "r", "?", text_output="x")
        )


def test_policy_must_fit_the_model(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"factor is 32 \(as for a qwen3_vl\).* needs 28, as a qwen2_5_vl"):
        encoder_of(checkpoint, factor=32)


def batch_of(checkpoint: Checkpoint, files: Path) -> tuple[Encoder, list[Sample], dict[str, torch.Tensor]]:
    encoder = encoder_of(checkpoint)
    samples = [
        encoder.sample(record_of(files)),
        encoder.sample(Record("dift", "t", "Hello?", text_output="Hello.")),
        encoder.sample(record_of(files, video=None, frames=[str(files / "2.png")], separate=True)),
        encoder.sample(record_of(files, text_output="No pictures.", images=[])),
    ]
    return encoder, samples, collate(samples, encoder.spec.pad_id)


def test_collate_mixed(checkpoint: Checkpoint, files: Path) -> None:
    encoder, samples, batch = batch_of(checkpoint, files)
    width = max(len(s.input_ids) for s in samples)
    assert batch["input_ids"].shape == (4, width)
    assert batch["position_ids"].shape == (3, 4, width)
    for row, sample in enumerate(samples):
        n = len(sample.input_ids)
        assert torch.equal(batch["input_ids"][row, :n], sample.input_ids)
        assert torch.equal(batch["labels"][row, :n], sample.labels)
        assert torch.equal(batch["position_ids"][:, row, :n], sample.position_ids)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
        assert (batch["input_ids"][row, n:] == encoder.spec.pad_id).all()
        assert (batch["labels"][row, n:] == -100).all()
    assert torch.equal(batch["target"][:, :-1], batch["labels"][:, 1:])
    assert (batch["target"][:, -1] == -100).all()
    flat = batch["input_ids"].flatten()
    assert torch.equal(batch["rows"], (batch["target"].flatten() != -100).nonzero().flatten())
    assert torch.equal(batch["latent_index"], (flat == encoder.latents.pad_id).nonzero().flatten())
    pads = (flat == encoder.spec.video_token_id) | (flat == encoder.spec.image_token_id)
    assert torch.equal(batch["vision_index"], pads.nonzero().flatten())
    assert batch["grid_thw"].tolist() == [[2, 4, 4], [1, 4, 8], [2, 4, 4]]
    assert batch["patches"].shape == (32 + 32 + 32, 1176)
    assert len(batch["vision_index"]) == len(batch["patches"]) // 4
    assert batch["imagery_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6]] * 2
    assert len(batch["latent_index"]) == 4 * encoder.latents.latent_size
    hidden = checkpoint.backbone(batch, lambda _, hidden, __: hidden)
    assert hidden.shape == (4, width, checkpoint.backbone.hidden_size)


def test_a_batch_gives_what_its_samples_give_alone(checkpoint: Checkpoint, files: Path) -> None:
    encoder, samples, batch = batch_of(checkpoint, files)
    with torch.no_grad():
        together = checkpoint.backbone(batch, lambda _, hidden, __: hidden)
        for row, sample in enumerate(samples):
            alone = checkpoint.backbone(collate([sample], encoder.spec.pad_id), lambda _, hidden, __: hidden)
            torch.testing.assert_close(together[row, : len(sample.input_ids)], alone[0], rtol=1e-4, atol=1e-5)


def test_collate_cached_and_without_pictures(checkpoint: Checkpoint, files: Path) -> None:
    encoder = encoder_of(checkpoint)
    text = encoder.sample(Record("dift", "t", "Hello?", text_output="Hello."))
    batch = collate([text], 0)
    assert not {"patches", "grid_thw", "vision_features", "latents", "imagery_patches"} & set(batch)
    assert batch["latent_index"].tolist() == batch["vision_index"].tolist() == []
    record = record_of(files)
    read = encoder.sample(record)
    assert read.vision is not None
    features = Vision(read.vision.grid_thw, features=torch.rand(8, 32), seconds_per_grid=[2.0])
    cached = encoder.sample(record, features, torch.rand(8, 32))
    batch = collate([cached, text, cached], 0)
    assert torch.equal(batch["vision_features"], torch.cat([features.features] * 2))
    assert torch.equal(batch["latents"], torch.cat([cached.latents] * 2))
    assert "patches" not in batch
    with pytest.raises(ConfigError, match="mixes cached vision features and patches"):
        collate([cached, replace(read, imagery=None, latents=cached.latents)], 0)
    with pytest.raises(ConfigError, match="mixes cached latents and pictures"):
        collate([read, replace(cached, vision=read.vision)], 0)
    with pytest.raises(ConfigError, match="no samples"):
        collate([], 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_worker_processes(checkpoint: Checkpoint, files: Path, method: str) -> None:
    data = Encoded(encoder_of(checkpoint), [record_of(files)] * 2)
    here = collate([data[0], data[1]], 0)
    loader = DataLoader(
        data, 2, collate_fn=partial(collate, pad_id=0), num_workers=1, multiprocessing_context=method
    )
    (there,) = list(loader)
    assert set(here) == set(there)
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_prompt_and_patches_are_plain_data(checkpoint: Checkpoint, files: Path) -> None:
    prompt = encoder_of(checkpoint).prompt(record_of(files))
    again = pickle.loads(pickle.dumps(prompt))
    assert isinstance(again, Prompt)
    assert torch.equal(again.input_ids, prompt.input_ids)
    pixels = read_frames(files / "clip.mp4").pixels
    assert pixels is not None
    assert prompt.vision is not None
    assert torch.equal(patchify(pixels)[0], prompt.vision.patches)


def test_what_stands_for_a_block_is_no_text(checkpoint: Checkpoint) -> None:
    """A tokenizer of words has no id for it; what it does not know in a text is refused."""
    encoder = encoder_of(replace(checkpoint, tokenizer=make_tokenizer()), replace(PLAIN, instruction=""))
    known = encoder.tokenizer.convert_ids_to_tokens(5)
    encoder.check_text(Record("dift", "r", known, text_output=f"{known} {IMAGERY} {known}", where="a:1"))
    with pytest.raises(RecordError, match=r"a:1: text_output holds the control token <unk>"):
        encoder.check_text(Record("dift", "r", known, text_output=f"{known} {IMAGERY} zebra", where="a:1"))
