"""`Thinker`, streamed text, and many answers in one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from fourdthinker.errors import CheckpointError, ConfigError, RecordError, VideoError
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.generate import generate_file
from fourdthinker.latents import LatentSpec, grow_vocabulary
from fourdthinker.prompt_style import ST_COT, PromptStyle
from fourdthinker.records import read_records
from fourdthinker.sampler import SamplingConfig
from fourdthinker.thinker import Thinker, question_record
from fourdthinker.transcript import TextStream, text_plain
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=12, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, two clips, a folder of frames, a broken clip."""
    folder = tmp_path_factory.mktemp("thinker")
    policy = FramePolicy(max_pixels=56 * 56)
    tiny_checkpoint(folder / "model", policy=policy, style=PromptStyle(instruction=""))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        make_clip(folder / f"{name}.mp4", list(range(0, 3000, 500)))
    (folder / "frames").mkdir()
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(folder / f"frames/{k}.png")
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Thinker:
    return Thinker.from_pretrained(folder / "model", device="cpu")


def test_one_question(thinker: Thinker, folder: Path) -> None:
    pieces: list[str] = []
    asked = {"options": ["left", "right"], "config": CONFIG}
    answer = thinker.generate(folder / "a.mp4", "Which way?", on_text=pieces.append, **asked)
    assert "".join(pieces) == answer.text
    again = thinker.generate(str(folder / "a.mp4"), "Which way?", **asked)
    assert again.text == answer.text
    assert torch.equal(again.tokens, answer.tokens)
    assert answer.choice in (None, "A", "B")
    assert answer.latents.shape == (len(answer.latent_steps), 32)
    spec = thinker.checkpoint.backbone.latents
    assert (answer.tokens[answer.latent_steps] == spec.pad_id).all()
    assert answer.finish_reason in ("eos", "length")


def test_every_kind_of_media(thinker: Thinker, folder: Path) -> None:
    frames = read_frames(folder / "a.mp4", thinker.checkpoint.policy)
    assert torch.equal(
        thinker.prompt(frames, "What?").input_ids, thinker.prompt(folder / "a.mp4", "What?").input_ids
    )
    spec = thinker.checkpoint.backbone.vision
    clip = thinker.prompt(folder / "frames", "What?")
    assert clip.vision is not None
    assert clip.vision.kind == "video"
    assert (clip.input_ids == spec.video_token_id).any()
    picture = folder / "frames" / "0.png"
    images = thinker.prompt(None, "What?", images=[picture, picture])
    assert images.vision is not None
    assert images.vision.grid_thw.shape[0] == 2
    assert (images.input_ids == spec.image_token_id).any()
    assert thinker.prompt(None, "What?", images=picture).vision is not None
    text = thinker.prompt(None, "What?")
    assert text.vision is None
    assert thinker.answer(text, SamplingConfig(temperature=0, max_new_tokens=3)).tokens.numel() <= 3


def test_the_second_family_and_an_opened_answer(folder: Path) -> None:
    checkpoint = tiny_checkpoint(family="qwen3_vl", policy=FramePolicy(max_pixels=64 * 64, factor=32))
    template = checkpoint.tokenizer.chat_template
    checkpoint.tokenizer.chat_template = template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    pieces: list[str] = []
    thinker = Thinker(checkpoint)
    answer = thinker.generate(folder / "a.mp4", "Which way?", config=CONFIG, on_text=pieces.append)
    assert answer.text.startswith("<think>\n")
    assert "".join(pieces) == answer.text


def test_many_samples_of_many_prompts(thinker: Thinker, folder: Path) -> None:
    prompts = [thinker.prompt(folder / f"{name}.mp4", "Which way?") for name in "ab"]
    rollout = thinker.sample(prompts, n=3, config=CONFIG)
    answers = thinker.answers(rollout, prompts)
    assert len(answers) == 6
    assert [len(a.tokens) for a in answers] == rollout.lengths.tolist()
    assert sum(len(a.latents) for a in answers) == len(rollout.latents)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"video": "nowhere.mp4", "question": "?"}, ConfigError, "nowhere.mp4: no such file"),
        ({"video": "a.mp4", "question": " "}, ConfigError, "blank"),
        ({"video": "a.mp4", "question": "?", "options": ["one"]}, ConfigError, "1 options"),
        ({"video": "a.mp4", "question": "?", "images": ["frames/0.png"]}, ConfigError, "one of them"),
        ({"video": None, "question": "?", "images": []}, ConfigError, "empty"),
        ({"video": None, "question": "?", "start": 1.0}, ConfigError, "start 1.0"),
        ({"video": ".", "question": "?"}, ConfigError, "no pictures"),
        ({"video": "a.mp4", "question": "<|im_end|>"}, RecordError, "<|im_end|>"),
        ({"video": "broken.mp4", "question": "?"}, VideoError, "broken.mp4"),
    ],
)
def test_bad_questions(
    thinker: Thinker, folder: Path, monkeypatch: pytest.MonkeyPatch, asked: dict, error: type, said: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=said.replace("|", r"\|").replace(".", r"\.")):
        thinker.prompt(**asked)


def test_unknown_device(folder: Path) -> None:
    with pytest.raises(ConfigError, match="moon"):
        Thinker.from_pretrained(folder / "model", device="moon")


# ---- streamed text

_TOKENIZER = tiny_tokenizer()
_SPEC: LatentSpec = grow_vocabulary(tiny_model(_TOKENIZER), _TOKENIZER)
_EOS = _TOKENIZER.eos_token_id
_BLOCK = st.integers(0, 4).map(lambda k: [_SPEC.start_id, *[_SPEC.pad_id] * k, _SPEC.end_id])
_TEXT = st.text(alphabet=st.sampled_from("ab é漢🎥\n"), max_size=6).map(
    lambda text: _TOKENIZER(text, add_special_tokens=False)["input_ids"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(_TEXT, _BLOCK), max_size=6), st.data())
def test_streamed_pieces_make_the_whole_text(parts: list[list[int]], data: st.DataObject) -> None:
    ids = [token for part in parts for token in part]
    stream, text, at = TextStream(_TOKENIZER, _SPEC, [_EOS]), "", 0
    while at < len(ids):
        size = data.draw(st.integers(1, 5))
        text += stream.feed(ids[at : at + size])
        at += size
    text += stream.feed([_EOS]) + stream.close()
    assert text == text_plain(_TOKENIZER.decode(ids, clean_up_tokenization_spaces=False))


def test_half_a_character_waits() -> None:
    ids = _TOKENIZER("🎥", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    stream = TextStream(_TOKENIZER, _SPEC, [_EOS])
    assert [stream.feed([token]) for token in ids] == [""] * (len(ids) - 1) + ["🎥"]
    stream.feed(ids[:1])
    assert stream.close() == "\ufffd"
    assert stream.close() == ""


def test_no_character_spans_a_block() -> None:
    ids = _TOKENIZER("漢", add_special_tokens=False)["input_ids"]
    ids = [ids[0], _SPEC.start_id, _SPEC.pad_id, _SPEC.end_id, *ids[1:]]
    stream = TextStream(_TOKENIZER, _SPEC, [_EOS])
    text = "".join(stream.feed([token]) for token in ids) + stream.close()
    assert text == text_plain(_TOKENIZER.decode(ids, clean_up_tokenization_spaces=False))


# ---- many answers


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_answers_goes_on_where_it_was(thinker: Thinker, folder: Path, tmp_path: Path) -> None:
    records = [
        question_record(folder / f"{name}.mp4", question, options=["left", "right"], id=f"{name}/{question}")
        for name in ("a", "broken", "b")
        for question in ("Which?", "What?")
    ]
    whole = tmp_path / "whole.jsonl"
    options = {"n": 2, "config": CONFIG, "progress": False}
    done = generate_file(thinker, records, whole, batch=3, latents_out=tmp_path / "latents", **options)
    assert (done.answered, done.before, set(done.failed)) == (4, 0, {"broken/Which?", "broken/What?"})
    written = lines(whole)
    assert len(written) == 4 * 2 + 2
    good = [line for line in written if "error" not in line]
    assert all("broken.mp4" in line["error"] for line in written if "error" in line)
    with safe_open(good[0]["latents"], "pt") as file:
        assert file.metadata() == {"id": good[0]["id"]}
        assert file.get_tensor("latents").shape[0] == file.get_tensor("steps").shape[0]

    alone = tmp_path / "alone.jsonl"  # other batches, the same answers
    generate_file(thinker, records[:1], alone, batch=1, **options)
    texts = {(line["id"], line["sample"]): line["text"] for line in good}
    assert all(texts[line["id"], line["sample"]] == line["text"] for line in lines(alone))

    cut = tmp_path / "cut.jsonl"  # killed in the second answer of the second question
    raw = whole.read_bytes().splitlines(keepends=True)
    first = [line for line in raw if b'"error"' not in line]
    cut.write_bytes(b"".join(first[:3]) + first[3][:10])
    again = generate_file(thinker, records, cut, batch=3, **options)
    assert (again.answered, again.before) == (3, 1)
    found = {(line["id"], line["sample"]): line["text"] for line in lines(cut) if "error" not in line}
    assert found == texts
    assert len(lines(cut)) == len(written)

    alone.write_bytes(alone.read_bytes()[:-1])  # killed before the newline
    generate_file(thinker, records[:1], alone, batch=1, **options)
    assert [line["text"] for line in lines(alone)] == [texts[records[0].id, sample] for sample in range(2)]

    more = generate_file(thinker, records, cut, batch=3, **options)  # failed ones are tried anew
    assert (more.answered, more.before, len(more.failed)) == (0, 4, 2)
    assert len(lines(cut)) == len(written)


def test_a_prompt_too_long_fails_alone(thinker: Thinker, tmp_path: Path) -> None:
    records = [question_record(None, text, id=text[:3]) for text in ("abc " * 4000, "def")]
    done = generate_file(thinker, records, tmp_path / "out.jsonl", config=CONFIG, progress=False)
    assert (done.answered, list(done.failed)) == (1, ["abc"])
    assert "4096 positions" in done.failed["abc"]


def test_a_prompt_out_of_memory_fails_alone(
    thinker: Thinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinker.sampler, "kv_budget", 300 * 256)  # 300 tokens of 256 bytes
    records = [question_record(None, text, id=text[:3]) for text in ("abc " * 400, "def")]
    done = generate_file(thinker, records, tmp_path / "out.jsonl", config=CONFIG, progress=False)
    assert (done.answered, list(done.failed)) == (1, ["abc"])
    assert "out of KV memory: abc has" in done.failed["abc"]


def test_a_file_of_other_answers_is_left_alone(thinker: Thinker, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    records = [question_record(None, "Which?", id="x")]
    generate_file(thinker, records, out, config=CONFIG, progress=False)
    before = out.read_bytes()
    other = SamplingConfig(max_new_tokens=5)
    with pytest.raises(ConfigError, match=r"out\.jsonl:1: 'x' was answered with another"):
        generate_file(thinker, records, out, config=other, progress=False)
    for text in ("hello\n", "hello", '{"id": "x", "question": "Which?"}', '{"id": [1], "key": "a"}\n'):
        (tmp_path / "text").write_text(text)
        with pytest.raises(ConfigError, match="text:1: not a line of answers"):
            generate_file(thinker, records, tmp_path / "text", config=other, progress=False)
        assert (tmp_path / "text").read_text() == text
    with pytest.raises(RecordError, match="appears twice"):
        generate_file(thinker, records * 2, out, config=CONFIG, progress=False)
    with pytest.raises(ConfigError, match="batch is 0"):
        generate_file(thinker, records, out, config=CONFIG, batch=0, progress=False)
    assert out.read_bytes() == before


def test_plain_questions_are_records(folder: Path, tmp_path: Path) -> None:
    data = folder / "questions.jsonl"
    rows = [
        {"question": "What moves?", "video": "a.mp4", "start": 0.5, "options": {"A": "x", "B": "y"}},
        {"id": 7, "question": "And here?", "frames": "frames"},
        {"question": "Alike?", "images": ["frames/0.png", "frames/1.png"]},
        {"question": "Hello?"},
        {"Question": "Old?", "A": "x", "B": "y", "Correct": "A", "video_path": "a.mp4"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    video, clip, images, text, old = read_records(data, kind="ask")
    assert (video.kind, video.start, video.options["B"]) == ("ask", 0.5, "y")
    assert len(clip.frames or ()) == 3
    assert not clip.separate
    assert len(images.frames or ()) == 2
    assert images.separate
    assert text.video is None
    assert not text.frames
    assert (old.kind, old.answer) == ("ask", "A")
    with pytest.raises(RecordError, match="text_input"):
        read_records(data)
    for row, said in (
        ({"question": "?", "video": "a.mp4", "images": ["frames/0.png"]}, "keep the one"),
        ({"question": "?", "video": "zzz.mp4"}, "zzz.mp4"),
        ({"question": "?", "vidoe": "a.mp4"}, "did you mean 'video'"),
        ({"question": "?", "video": "../a.mp4"}, "outside media_root"),
    ):
        data.write_text(json.dumps(row))
        with pytest.raises(RecordError, match=said):
            read_records(data, kind="ask")


def test_a_plain_model_is_asked_in_the_form_of_mllm4d(tmp_path: Path) -> None:
    """Its class is the config's, not the folder's name."""
    folder, tokenizer = tmp_path / "MLLM-4D-Qwen2.5", tiny_tokenizer()
    tiny_model(tokenizer, family="qwen3_vl", layers=1, spare_rows=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="latent_size"):
        Thinker.from_pretrained(folder, device="cpu")
    style = PromptStyle(instruction="", system=ST_COT)
    thinker = Thinker.from_pretrained(folder, device="cpu", plain=True, style=style)
    assert thinker.checkpoint.backbone.family == "qwen3_vl"
    record = question_record(None, "How far is it?")
    text = tokenizer.decode(thinker.encoder.prompt(record).input_ids)
    assert text.startswith(
        f"<|im_start|>system\n{ST_COT}<|im_end|>\n<|im_start|>user\nHow far is it?<|im_end|>"
    )
    record.system = "Mine."
    assert "Camera Center" not in tokenizer.decode(thinker.encoder.prompt(record).input_ids)
    answer = thinker.generate(None, "How far is it?", config=SamplingConfig(max_new_tokens=4))
    assert len(answer.latents) == 0
