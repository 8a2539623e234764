"""The model card: base, data, frame policy, latents, metrics with baselines, versions; and its upload."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import yaml

from fourdthinker import __version__, cli
from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.weights import weights_of
from fourdthinker.frames import FramePolicy
from fourdthinker.integrations import hub as hub_module
from fourdthinker.integrations.hub import CardFacts, model_card, push
from fourdthinker.integrations.origin import Origin, named_base, trained_origin
from tests.odd_values import ODD, spoilt
from tests.tiny import tiny_checkpoint


def accuracy(value: float) -> dict[str, Any]:
    return {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "greedy": value, "n": 200}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, an evaluation and an audit."""
    folder = tmp_path_factory.mktemp("card") / "grpo-3b"
    folder.mkdir()
    checkpoint = tiny_checkpoint(folder / "final", policy=FramePolicy(fps=2.0), latent_size=3)
    config = {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "data": ["/home/somebody/data/rl.jsonl"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = {
        "chance": accuracy(0.25), "option_prior": accuracy(0.4), "model": accuracy(0.7),
        "shown_black": accuracy(0.35), "model_minus_shown_black": {"mean": 0.35, "low": 0.3, "high": 0.4},
        "checkpoint": "/home/somebody/runs/grpo | <b>", "benchmark": {"title": "VLM4D"},
    }  # fmt: skip
    audit = {
        "questions": 200,
        "modes": {
            "own": accuracy(0.7),
            "zero": accuracy(0.69)
            | {"difference": {"mean": -0.01, "low": -0.02, "high": 0.0}, "flips": 0.05},
        },
    }
    results["settings"] = audit["settings"] = weights_of(checkpoint.backbone)
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps(results))
    (folder / "eval" / "latents.json").write_text(json.dumps(audit))
    return folder


def fetched(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these models alone be in the hub's cache."""
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file: f"/cache/{file}" if name in names else None,
    )


def test_the_card_says_what_a_number_is_worth(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(monkeypatch, "Qwen/Qwen2.5-VL-3B-Instruct")
    origin = trained_origin(run / "final")
    assert origin == Origin(*2 * ["Qwen/Qwen2.5-VL-3B-Instruct"], data=("data/rl.jsonl",))
    card = model_card(run / "final", CardFacts(origin, [run / "eval"]))
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == origin.base
    assert header["pipeline_tag"] == "video-text-to-text"
    for line in (
        "# grpo-3b", "- Data: data/rl.jsonl", "| fps | 2.0 |", "Blocks of K = 3 latents (targets: average)",
        "## Accuracy: VLM4D", "Of `runs/grpo \\| &lt;b>`.", "| Option-text prior | 40.0\u00a0% |",
        "| Chance | 25.0\u00a0% | 20.0 – 30.0\u00a0% | 25.0\u00a0% | 200 |",
        "| Black frames | 35.0\u00a0% |", "| Model − black | +35.0 points |",
        "| zero | 69.0\u00a0% | −1.0 | −2.0 … +0.0 | 5.0\u00a0% |", f"fourdthinker {__version__}",
    ):  # fmt: skip
        assert line in card, line
    assert "somebody" not in card


def test_a_local_base_is_no_model_id(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert "base_model" not in model_card(run / "final", CardFacts(named_base("grpo-3b/final")))
    assert "base_model: me/mine" in model_card(run / "final", CardFacts(named_base("me/mine")))
    assert named_base("/home/somebody/runs/dift/final") == Origin("dift/final")
    assert "- Base: not told" in model_card(run / "final", CardFacts())


def trained(folder: Path, name: str, model: str, data: str) -> Path:
    (folder / name / "final").mkdir(parents=True)
    (folder / name / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": [data]}))
    return folder / name / "final"


def test_the_base_is_that_of_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary recipe: DIFT, then 4DRL from runs/NAME/final; paths are relative to where training ran."""
    fetched(monkeypatch, "Qwen/Qwen3-VL-4B")
    trained(tmp_path, "runs/dift", "Qwen/Qwen3-VL-4B", "data/dift.jsonl")
    last = trained(tmp_path, "runs/grpo", "runs/dift/final", "data/rl.jsonl")
    found = trained_origin(last)
    assert found.base == found.model_id == "Qwen/Qwen3-VL-4B"
    assert (found.through, found.data) == (("dift/final",), ("data/dift.jsonl", "data/rl.jsonl"))
    tiny_checkpoint(last, layers=1)
    assert "- Base: Qwen/Qwen3-VL-4B, through dift/final\n" in model_card(last, CardFacts(found))


@pytest.mark.parametrize(
    "model", ["models/start", "runs/grpo-3b/final", "../dift/final", "runs/gone", "runs/gone/final", ""]
)
def test_a_folder_is_never_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """There (a start that `init` made, the run itself) or gone."""
    fetched(monkeypatch, "grpo-3b/final", "gone/final", "models/start")
    (tmp_path / "models" / "start").mkdir(parents=True)
    found = trained_origin(trained(tmp_path, "runs/grpo-3b", model, "d"))
    assert found.model_id == ""
    assert found.base == "/".join(Path(model).parts[-2:])


def test_results_of_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("results.json", "latents.json"):
        folder = tmp_path / name
        folder.mkdir()
        content = json.loads((run / "eval" / name).read_text())
        for dtype in (torch.float32, torch.bfloat16):
            content["settings"] = weights_of(load_checkpoint(run / "final", dtype=dtype).backbone)
            (folder / name).write_text(json.dumps(content))
            model_card(run / "final", CardFacts(results=[folder]))
        content["settings"] |= {"weights": "0123456789abcdef"}
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=rf"{name}: was made with other weights \(0123456789abcdef\)"):
            model_card(run / "final", CardFacts(results=[folder]))
        del content["settings"]
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=rf"{name}: does not say with which weights"):
            model_card(run / "final", CardFacts(results=[folder]))


class Hub:
    """Takes the place of the hub's API."""

    called: ClassVar[list[tuple[Any, ...]]] = []
    public = False
    card: Path | None = None

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        self.called.append((name, private, exist_ok))

    def model_info(self, name: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def file_exists(self, name: str, path: str) -> bool:
        return path == "README.md" and self.card is not None

    def hf_hub_download(self, name: str, path: str) -> str:
        return str(self.card)

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> str:
        files = [path.name for path in folder_path.iterdir()]
        kept = sorted(set(files) - {name for one in ignore_patterns for name in fnmatch.filter(files, one)})
        self.called.append((repo_id, folder_path, kept))
        return "https://hub/it"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    class Fresh(Hub):
        called: ClassVar[list[tuple[Any, ...]]] = []

    monkeypatch.setattr(huggingface_hub, "HfApi", Fresh)
    return Fresh


def test_push_uploads_the_model_with_its_card(
    run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "final"
    kept_back = (
        "run.json",
        "optimizer.pt",
        "rng_state_0.pth",
        ".lock",
        "masters.safetensors",
        "reference.safetensors",
    )
    kept_back += ("rollouts_0.safetensors", "left_out.jsonl", "entropy_control.json", "latest", "scaler.pt")
    for name in kept_back:
        (checkpoint / name).touch()
    assert cli.main(["push", str(checkpoint), "me/model", "--results", str(run / "eval")]) == 0
    made, (name, folder, files) = hub.called
    assert made == ("me/model", True, True)
    assert (name, folder) == ("me/model", checkpoint)
    assert {"README.md", "config.json", "model.safetensors", "frame_policy.json"} <= set(files)
    assert not set(kept_back) & set(files)
    assert capsys.readouterr().out == "https://hub/it\n"
    hub.called.clear()
    assert cli.main(["push", str(checkpoint), "--base", "A/b", "--data", "mine"]) == 0  # the card alone
    assert hub.called == []
    assert "- Data: mine" in (checkpoint / "README.md").read_text()


def test_what_is_on_the_hub_is_looked_at_first(run: Path, hub: type[Hub], tmp_path: Path) -> None:
    hub.public = True
    with pytest.raises(ConfigError, match="me/model is there and public; give --public"):
        push(run / "final", "me/model", CardFacts())
    assert push(run / "final", "me/model", CardFacts(), private=False) == "https://hub/it"
    hub.card = tmp_path / "README.md"
    hub.card.write_text("somebody's words")
    with pytest.raises(ConfigError, match="of me/model was not written by this command"):
        push(run / "final", "me/model", CardFacts(), private=False)
    hub.card.write_text(model_card(run / "final", CardFacts()))
    assert push(run / "final", "me/model", CardFacts(), private=False) == "https://hub/it"
    assert len([call for call in hub.called if len(call) == 3 and call[1] == run / "final"]) == 2


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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"model: [a"),
        ("config.yaml", b"model: \xff"),
        ("config.yaml", b"[" * 20_000),
        ("config.yaml", b"- a"),
        ("config.yaml", b"data: 5"),
        ("config.yaml", b"data: [5]"),
        ("config.yaml", b"model: [a]"),
        ("model/config.json", b"[]"),
        ("model/config.json", b"{"),
        ("model/frame_policy.json", b"{"),
        ("model/frame_policy.json", b"[]"),
        ("model/frame_policy.json", b"{}"),
        ("model/frame_policy.json", b'{"policy": []}'),
        ("eval/latents.json", b"{"),
        ("eval/latents.json", b"{}"),
        ("eval/latents.json", b'{"modes": []}'),
        ("eval/latents.json", b'{"modes": {"own": []}}'),
        ("eval/latents.json", b'{"modes": {"own": {"difference": 3}}}'),
        ("eval/latents.json", b'{"modes": {"own": {"difference": {"low": 0.1}}}}'),
        ("eval/results.json", b"[]"),
        ("eval/results.json", b"\xff"),
    ],
)
def test_a_malformed_file_is_named(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "eval").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "eval" / "results.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    assert cli.main(["push", str(tmp_path / "model"), "--results", str(tmp_path / "eval")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path / name) in said
    assert len(said) < 500


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
def test_odd_values_are_named_or_shown(run: Path, odd: Any, tmp_path: Path) -> None:
    for file in ("results.json", "latents.json"):
        for changed in spoilt(json.loads((run / "eval" / file).read_text()), odd):
            (tmp_path / file).write_text(json.dumps(changed))
            with contextlib.suppress(ConfigError):
                hub_module._found(tmp_path)
        (tmp_path / file).unlink()
    (tmp_path / "final").mkdir()
    for changed in spoilt({"model": "a/b", "data": ["c"]}, odd):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed))
        with contextlib.suppress(ConfigError):
            trained_origin(tmp_path / "final")
