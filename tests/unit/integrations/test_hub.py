"""The model card: base, data, frame policy, latents, metrics with baselines, versions; and its upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from fourdthinker import __version__, cli
from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.integrations.hub import CardFacts, model_card, push, trained_facts
from tests.tiny import tiny_checkpoint


def accuracy(value: float) -> dict[str, Any]:
    return {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "greedy": value, "n": 200}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, an evaluation and an audit."""
    folder = tmp_path_factory.mktemp("card") / "grpo-3b"
    folder.mkdir()
    tiny_checkpoint(folder / "final", policy=FramePolicy(fps=2.0), latent_size=3)
    config = {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "data": ["/home/somebody/data/rl.jsonl"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = {
        "chance": accuracy(0.25), "option_prior": accuracy(0.4), "model": accuracy(0.7),
        "shown_black": accuracy(0.35), "model_minus_shown_black": {"mean": 0.35, "low": 0.3, "high": 0.4},
        "checkpoint": "grpo | <b>", "benchmark": {"title": "VLM4D"},
    }  # fmt: skip
    audit = {
        "questions": 200,
        "modes": {
            "own": accuracy(0.7),
            "zero": accuracy(0.69)
            | {"difference": {"mean": -0.01, "low": -0.02, "high": 0.0}, "flips": 0.05},
        },
    }
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps(results))
    (folder / "eval" / "latents.json").write_text(json.dumps(audit))
    return folder


def test_the_card_says_what_a_number_is_worth(run: Path) -> None:
    base, data = trained_facts(run / "final")
    assert (base, data) == ("Qwen/Qwen2.5-VL-3B-Instruct", ["data/rl.jsonl"])
    card = model_card(run / "final", CardFacts(base, data, [run / "eval"]))
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == base
    assert header["pipeline_tag"] == "video-text-to-text"
    for line in (
        "# grpo-3b", "- Data: data/rl.jsonl", "| fps | 2.0 |", "Blocks of K = 3 latents (targets: average)",
        "## Accuracy: VLM4D", "Of `grpo \\| &lt;b>`.", "| Option-text prior | 40.0\u00a0% |",
        "| Chance | 25.0\u00a0% | 20.0 – 30.0\u00a0% | 25.0\u00a0% | 200 |",
        "| Black frames | 35.0\u00a0% |", "| Model − black | +35.0 points |",
        "| zero | 69.0\u00a0% | −1.0 | −2.0 … +0.0 | 5.0\u00a0% |", f"fourdthinker {__version__}",
    ):  # fmt: skip
        assert line in card, line
    assert "somebody" not in card


def test_a_local_base_is_no_model_id(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert "base_model" not in model_card(run / "final", CardFacts("grpo-3b/final"))
    assert "- Base: not told" in model_card(run / "final", CardFacts())


def test_push_uploads_the_folder_with_its_card(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[Any, ...]] = []

    class Hub:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            called.append((name, private, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
            called.append((repo_id, folder_path, (folder_path / "README.md").exists()))
            return "https://hub/it"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    checkpoint = run / "final"
    assert cli.main(["push", str(checkpoint), "me/model", "--results", str(run / "eval")]) == 0
    assert called == [("me/model", True, True), ("me/model", checkpoint, True)]
    assert capsys.readouterr().out == "https://hub/it\n"
    called.clear()
    assert cli.main(["push", str(checkpoint), "--base", "A/b", "--data", "mine"]) == 0  # the card alone
    assert called == []
    assert "- Data: mine" in (checkpoint / "README.md").read_text()


def test_what_cannot_be_pushed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'model'; name it owner/name"):
        push(run / "final", "model", CardFacts())
    with pytest.raises(ConfigError, match=r"no results\.json and no latents\.json"):
        model_card(run / "final", CardFacts(results=[tmp_path]))
    with pytest.raises(ConfigError, match=r"config\.json"):
        model_card(tmp_path, CardFacts())
    tiny_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="not written by this command and is not replaced"):
        push(tmp_path / "c", None, CardFacts())
