"""A page stays within its size and its links lead to one place, however much is logged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourdthinker.report import media, write_report

TOKENS = 400


def rollout(step: int, id: str, tokens: list[str], frames: list[str]) -> dict[str, Any]:
    near = {"medium": 0, "share": 0.5, "seconds": None, "box": [0, 0, 1, 1], "cosine": 0.3}
    return {
        "step": step, "id": id, "question": "Which way?", "options": {"A": "left", "B": "right"},
        "answer": "B",
        "text": "".join(tokens), "tokens": tokens, "logprobs": [-1.0 - k % 3 for k in range(len(tokens))],
        "reward": 1.0, "advantage": 0.0, "media": [["frame", frame] for frame in frames],
        "blocks": [{"norms": [3.0], "nearest": [near]}],
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four groups of four completions, about frames of their own; the first of each is ten times as long."""
    lines = []
    for group in range(4):
        frames = [f"{group}-{k}.png" for k in range(4)]
        for k, frame in enumerate(frames):
            noise = np.random.default_rng(10 * group + k).integers(0, 255, (56, 56, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / frame)
        for row in range(4):
            tokens = [f" {k % 7}" for k in range(TOKENS * (10 if row == 0 else 1))]
            lines.append(rollout(1, f"q{group}", tokens, frames))
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def texts(page: str) -> list[str]:
    return re.findall(r'<p class="text"[^>]*>(.*?)</p>', page, re.DOTALL)


def test_long_completions_lose_shades_then_their_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_report(run).read_text(encoding="utf-8")
    written = sum(map(len, texts(whole)))
    assert (len(texts(whole)), whole.count("<article")) == (16, 4)
    for room, shaded in ((written // 2, True), (written // 8, True), (20_000, False)):
        monkeypatch.setattr("fourdthinker.report.page.ROOM", room)
        page = write_report(run).read_text(encoding="utf-8")
        assert sum(map(len, texts(page))) < room
        assert page.count("<article") == 4  # every question is there
        assert len(page) < len(whole) - written + room
        assert ('class="p' in "".join(texts(page))) == shaded
        assert ("cut here; all of it is in the log" in page) == (room == 20_000)


def test_questions_options_and_quotation_marks_are_within_the_size_too(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    plain = len(write_report(run).read_bytes())
    for line in lines:
        line["question"] = "Which? " + "é" * 20_000
        line["options"] = {"A": "left" * 5_000, "B": '"<' * 5_000}
        line["tokens"] = line["logprobs"] = []
        line["text"] = '"<' * 5_000
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("fourdthinker.report.page.ROOM", 40_000)
    page = write_report(run).read_text(encoding="utf-8")
    assert len(page.encode()) < plain + 40_000
    assert page.count("<h3>Which? éé") == page.count("<article") == 4
    assert page.count("(cut here; all of it is in the log)") >= 4 * 4


def test_pictures_beyond_the_room_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_report(run).read_text(encoding="utf-8")
    assert whole.count("<image ") == 16
    monkeypatch.setattr(media, "ROOM", 40_000)
    page = write_report(run).read_text(encoding="utf-8")
    assert 4 <= page.count("<image ") < 16
    assert "The frames are left out: the page has" in page
    assert page.count("<article") == 4


def test_two_audits_of_the_same_questions_have_links_of_their_own(tmp_path: Path) -> None:
    line = {
        "id": "q",
        "question": "Which way?",
        "answer": "A",
        "text": "A",
        "modes": {"own": {"answer": "A"}},
    }
    for name in ("before it", "before-it"):  # alike in links
        (tmp_path / name).mkdir()
        (tmp_path / name / "thoughts.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
        (tmp_path / name / "rollouts.jsonl").write_text(json.dumps(rollout(1, "q", ["a"], [])) + "\n")
    page = write_report(tmp_path / "before it", tmp_path / "before-it").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("What the latents show · before") == 2
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
