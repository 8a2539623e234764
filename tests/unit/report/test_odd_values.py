"""Values of other types in answers.jsonl, thoughts.jsonl and latents.json: named or shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import compare, load_result
from fourdthinker.report import latents, questions, write_report
from tests.odd_values import ODD, spoilt

SETTINGS = {"settings": {"name": "run", "n": 2, "greedy": True}}
ANSWER = {
    "id": "q", "type": "side", "cluster": "v", "options": {"A": "left", "B": "right"}, "answer": "A",
    "answers": ["A", None], "greedy": "A", "texts": ["<answer>A</answer>", "?"], "greedy_text": "A",
    "lengths": [3, 4], "truncated": 0, "failed": "", "times_from": "container",
    "letters": {"A": 0.5, "B": 0.5}, "question": "Which?",
    "shown": {"media": [["frame", "none.png"]], "start": 0.5, "end": 1.0},
}  # fmt: skip
NUMBER = ANSWER | {"options": {}, "answer": "7", "answers": ["7", "8"], "greedy": None, "letters": None}
ROW = {"accuracy": 0.5, "low": 0.4, "high": 0.6}
LATENTS = {
    "questions": 4, "videos": 2,
    "modes": {
        "own": ROW,
        "zero": ROW | {"difference": {"mean": 0.1, "low": 0.0, "high": 0.2},
"flips": 0.5, "kl": {"mean": 0.1}},
    },
    "blocks": [{"block": 1, "rows": 4, "oracle_cosine": 0.5, "effective_rank": 2.5}],
    "failed": {"q": "gone"}, "without_blocks": 0.5,
}  # fmt: skip
THOUGHT = {
    "id": "q", "question": "Which?", "options": {"A": "left", "B": "right"}, "answer": "A", "type": "side",
    "media": [["frame", "none.png"]], "start": 0.5, "end": 1.0, "text": "<answer>A</answer>",
    "tokens": ["<answer>", "A", "</answer>"], "logprobs": [None, -0.5, None], "finish_reason": "eos",
    "modes": {"own": {"answer": "A", "right": 0.5}, "zero": {"answer": "B", "right": 0.4}},
    "blocks": [{"norms": [1.0], "cosines": [0.5], "nearest": [
        {"medium": 0, "share": 0.5, "seconds": 0.5, "box": [0.0, 0.0, 0.5, 0.5], "cosine": 0.5},
    ]}],
}  # fmt: skip


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
@pytest.mark.parametrize("sound", [ANSWER, NUMBER], ids=["options", "number"])
def test_a_wrong_line_of_answers_is_named_and_any_other_is_shown(
    sound: dict[str, Any], odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken, refused = tmp_path / "answers.jsonl", [], []
    for line in spoilt(sound, odd):
        write(path, [SETTINGS, ANSWER, line])
        try:
            load_result(tmp_path)
        except ConfigError as error:
            refused.append(str(error))
        else:
            taken.append(line | {"id": f"q{len(taken)}"})
    assert [text for text in refused if f"{path}:3: " not in text or len(text) > 400] == []
    monkeypatch.setattr(questions, "_MOST", 1000)
    write(path, [SETTINGS, *taken])
    result = load_result(tmp_path)
    compare(result, result)
    result.summary()
    write_report(tmp_path, tmp_path)


def test_a_line_of_answers_that_is_no_object_or_lacks_a_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for line in (*ODD, *({k: v for k, v in ANSWER.items() if k != gone} for gone in ("id", "options"))):
        write(path, [SETTINGS, line])
        with pytest.raises(ConfigError, match=r"answers\.jsonl:2: not the answers of an evaluation"):
            load_result(tmp_path)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
def test_odd_settings_of_answers_are_named(odd: Any, tmp_path: Path) -> None:
    for line in spoilt(SETTINGS, odd):
        write(tmp_path / "answers.jsonl", [line, ANSWER])
        if line in ({"settings": SETTINGS["settings"] | {"name": "s"}}, SETTINGS):
            continue
        if line == {"settings": SETTINGS["settings"] | {"greedy": True}}:
            continue
        with pytest.raises(ConfigError, match=r"answers\.jsonl:[12]: not the answers of an evaluation"):
            load_result(tmp_path)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
def test_odd_thoughts_and_latents_end_no_report(
    odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "_MOST", 1000)
    write(tmp_path / "thoughts.jsonl", [THOUGHT, *spoilt(THOUGHT, odd)])
    for found in spoilt(LATENTS, odd):
        latents.latent_tables(found)
        (tmp_path / "latents.json").write_text(json.dumps(found))
    assert "What the latents show" in write_report(tmp_path).read_text()
