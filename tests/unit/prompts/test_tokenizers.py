"""Control tokens of the makers' own tokenizers: none of them comes from a record's text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import LatentSpec
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import IGNORE
from tests.tiny import tiny_checkpoint
from tests.unit.prompts.test_conversations import PLAIN, rule, talk

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "tokenizers"
FACTORS = {"qwen2_5_vl": 28, "qwen3_vl": 32}
RECORD = Record("dift", "r", "Which way?", text_output="<think>Hm.</think>Left.", where="d.jsonl:3")


@pytest.fixture(scope="module", params=FACTORS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if not (FOLDER / request.param / "tokenizer.json").exists():
        pytest.skip(f"{FOLDER / request.param} is absent: the makers' tokenizers are not part of the project")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / request.param)
    names = ("<|latent_pad|>", "<|latent_start|>", "<|latent_end|>")
    tokenizer.add_tokens(list(names), special_tokens=True)
    ids = dict(
        zip(("pad_id", "start_id", "end_id"), tokenizer.convert_tokens_to_ids(list(names)), strict=True)
    )
    spec = tiny_checkpoint(family=request.param).backbone.vision
    named = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in (
            ("image_token", "image_pad"), ("video_token", "video_pad"),
            ("vision_start", "vision_start"), ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    policy = FramePolicy(factor=FACTORS[request.param], min_pixels=32 * 32, max_pixels=64 * 64)
    latents = LatentSpec(latent_size=4, **ids)
    return Encoder(tokenizer, replace(spec, **named), latents, policy, PromptStyle())


@pytest.mark.parametrize("key", ["question", "options", "system", "text_output"])
def test_every_added_token_is_refused_in_a_text(encoder: Encoder, key: str) -> None:
    """But for the tags that an answer is made of; the instruction, which is ours, may name them too."""
    for token in encoder.tokenizer.get_added_vocab():
        text = f"<think>see {token} here" if key == "text_output" else f"see {token} here"
        changes: dict[str, Any] = {key: {"A": text, "B": "right"} if key == "options" else text}
        record = replace(RECORD, **changes)
        if key == "text_output" and token in ("<think>", "</think>"):
            encoder.sample(record)
            continue
        with pytest.raises(RecordError, match=r"d\.jsonl:3: .* holds the control token <.*remove it"):
            encoder.sample(record)
        with pytest.raises(RecordError, match="holds the control token"):
            encoder.check_text(record)


def test_the_instruction_is_ours_but_no_turn_of_its_own(encoder: Encoder) -> None:
    latents, style = encoder.latents, PromptStyle(instruction="a<|im_end|>b")
    with pytest.raises(ConfigError, match=r"the instruction holds the control token <\|im_end\|>"):
        Encoder(encoder.tokenizer, encoder.spec, latents, encoder.policy, style)


def test_text_that_is_no_control_token_stays_text(encoder: Encoder) -> None:
    record = replace(RECORD, question="< think> <thinking> <answer> a <b> tool_call")
    encoder.check_text(record)
    text = encoder.tokenizer.decode(encoder.prompt(record).input_ids)
    assert record.question in text


def test_labels_of_conversations_are_those_of_mllm4d(encoder: Encoder) -> None:
    """Its rule looks for id 77091 anywhere: a user who writes "assistant" opens an answer, unlike here."""
    assert encoder.tokenizer.convert_tokens_to_ids("assistant") == 77091
    plain = Encoder(encoder.tokenizer, encoder.spec, encoder.latents, encoder.policy, PLAIN)
    prefilled = plain.prompt(talk("How far?", "x")).assistant_prefix
    for asked in ("How far?", "assistant\nHow far?"):
        sample = plain.sample(talk(asked, "<think>Hm.</think>Two.", "So?", "<think>It is.</think>Yes."))
        published, intended = rule(plain, sample.input_ids, "assistant"), rule(plain, sample.input_ids)
        for labels in (published, intended):
            if prefilled:  # "<think>" and a newline stand in the prompt
                starts = (sample.input_ids == plain.tokenizer.convert_tokens_to_ids("<think>")).nonzero()[
                    :, 0
                ]
                labels[torch.cat([starts, starts + 1])] = IGNORE
        assert torch.equal(sample.labels, intended)
        assert torch.equal(sample.labels, published) == (asked == "How far?")
    assert (sample.labels == 151645).sum() == 2
