"""Tokens by their probability, and the regions that latents are nearest to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourdthinker.report.completions import (
    Row,
    audit_deltas,
    read_row,
    shaded_parts,
    shown_blocks,
)
from fourdthinker.report.media import Album, Clip

BLOCK = "<|latent_start|><|latent_pad|><|latent_pad|><|latent_end|>"


def row(tokens: list[str], probabilities: list[float | None], prefix: str = "") -> Row:
    logprobs = [None if p is None else math.log(p) for p in probabilities]
    return Row(prefix + "".join(tokens), tokens, logprobs)


def shades(found: Row) -> list[tuple[str, str, int]]:
    return [(part.kind, part.text, part.shade) for part in shaded_parts(found)]


def test_unlikely_tokens_are_darker() -> None:
    tokens = ["It ", "moves ", "left", " or", " so", "."]
    assert shades(row(tokens, [0.95, 0.8, 0.5, 0.2, 0.1, None])) == [
        ("text", "It ", 0), ("text", "moves ", 1), ("text", "left", 2), ("text", " or", 3),
        ("text", " so", 4), ("text", ".", 0),
    ]  # fmt: skip
    assert [p.title for p in shaded_parts(row(["a"], [0.25]))] == ["probability 0.25"]


def test_tags_and_blocks_keep_their_form_and_a_prefix_has_no_shade() -> None:
    tokens = ["<answer>", "A", BLOCK, "b", "</answer>"]
    assert shades(row(tokens, [0.1, 0.1, None, 0.1, 0.1], prefix="<think>x")) == [
        ("tag", "<think>", 0), ("text", "x", 0), ("tag", "<answer>", 0), ("text", "A", 4),
        ("imagery", "2", 0), ("text", "b", 4), ("tag", "</answer>", 0),
    ]  # fmt: skip


def test_a_token_that_reaches_over_a_tag_is_cut() -> None:
    assert shades(row(["a<thi", "nk>b"], [0.5, 0.5])) == [
        ("text", "a", 2), ("tag", "<think>", 0), ("text", "b", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        {"text": "abc", "tokens": ["x"], "logprobs": [-1.0]},
        {"text": "abc", "tokens": ["abc"], "logprobs": []},
        {"text": "abc", "tokens": "abc", "logprobs": "abc"},
    ],
)
def test_tokens_of_another_text_give_no_shades(entry: dict[str, Any]) -> None:
    assert shades(read_row(entry)) == [("text", "abc", 0)]


def region(share: float, **others: Any) -> dict[str, Any]:
    return {
        "medium": 0,
        "share": share,
        "seconds": None,
        "box": [0.25, 0.5, 0.75, 1.0],
        "cosine": -0.25,
    } | others


def test_a_latent_shows_its_region_in_its_frame(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((40, 80, 3), 60 * number, np.uint8)).save(tmp_path / f"{number}.png")
    clip = Clip(tuple(("frame", f"{number}.png") for number in range(4)))
    album = Album(tmp_path)
    block = {"norms": [3.14159, 2.0], "cosines": [0.5, -0.5], "nearest": [region(0.625), region(0.1)]}
    ((shown,), other) = shown_blocks(Row("", blocks=[block]), clip, album), album.pictures(clip)
    first, second = shown.latents
    assert first.picture == other[0][2]
    assert first.box == (20.0, 20.0, 40.0, 20.0)
    assert first.facts == "‖h‖ 3.14 · target 0.50"
    assert first.title == "latent 1 is nearest to a region of the frame 3, cosine −0.25"
    assert second.picture == other[0][0]
    assert second.facts == "‖h‖ 2 · target −0.50"
    assert len(album.urls) == 4  # each picture once


@pytest.mark.parametrize(
    "near", [region(0.5, medium=3), region(0.5, box=[0, 0, 1]), region(0.5, box=[0.5, 0, 0, 1]), None, 3, {}]
)
def test_what_is_no_region_has_no_picture(near: Any, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    clip = Clip((("image", "a.png"),))
    (block,) = shown_blocks(Row("", blocks=[{"norms": [1.0], "nearest": [near]}]), clip, Album(tmp_path))
    assert block.latents[0].picture is None
    assert block.latents[0].facts == "‖h‖ 1"


def test_several_media_are_counted_by_their_kind(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (28, 28)).save(tmp_path / f"{name}.png")
    album, clip = Album(tmp_path), Clip((("image", "a.png"), ("image", "b.png")))
    assert [[p.title for p in part] for part in album.pictures(clip)] == [["image 1"], ["image 2"]]


def test_the_audit_says_how_the_right_letter_fares() -> None:
    modes = {"own": {"right": 0.9}, "zero": {"right": 0.4}, "none": {"right": None}, "pad": {"right": 0.9}}
    assert audit_deltas(Row("", audit=modes)) == "right letter 0.90 · zero −0.50 · pad +0.00"
    assert audit_deltas(Row("", audit={"zero": {"right": 0.4}})) == ""
