"""Every recipe of train/configs makes five updates under its own name, at tiny shapes, and so does every
training that README and docs show."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import save_checkpoint
from fourdthinker.trainers import dift, grpo
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.settings_files import load_config
from tests.e2e.training import ROOT, metrics, settings, write_data
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.unit.cli.test_docs import shell_lines

CONFIGS = ROOT / "train" / "configs"
# Without DeepSpeed: accelerate's plugin does not work on a CPU. Its engine is tried in test_zero.py, files of
# these recipes are checked in tests/unit/trainers/test_deepspeed_config.py.
SMALL: dict[str, Any] = {
    "use_cpu": True, "report_to": [], "deepspeed": None, "max_steps": 5, "logging_steps": 1, "save_steps": 0,
    "per_device_train_batch_size": 1, "dataloader_num_workers": 0, "liger": False,
}  # fmt: skip
SMALL_GRPO = {"num_generations": 2, "max_completion_length": 8, "log_rollouts": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of every form, and two models of each family, with latent tokens and without."""
    folder = tmp_path_factory.mktemp("recipes")
    _, questions = write_data(folder, 3)
    asked_of = {"Question": "Which is first?", "A": "the cube", "B": "none", "Correct": "A"}
    several = {"video_path": ["0.mp4", "1.mp4"], "images": ["1_0.png", "0_0.png"]}
    with questions.open("a") as file:  # clips and pictures in one prompt, and words alone
        file.writelines(json.dumps(line) + "\n" for line in (asked_of | several, asked_of))
    user, gpt = ({"from": "human"}, {"from": "gpt"})
    talks: list[dict[str, Any]] = [
        {
            "video": "0.mp4",
            "conversations": [user | {"value": "<video>\nWhich way?"}, gpt | {"value": "Left."}],
        },
        {
            "image": ["1_0.png"], "video": "1.mp4",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                user | {"value": "Is <image> in <video>?"}, gpt | {"value": "Yes."},
                user | {"value": "Where?"}, gpt | {"value": "At the end."},
            ],
        },
        {"conversations": [user | {"value": "Hello?"}, gpt | {"value": "Hello."}]},
    ]  # fmt: skip
    solution = [
        {"answer": "left", "camera_center": [[0, 0, 0], [0, 0, 1]], "object_center": [None, [1, 0, 2]]}
    ]
    asked = [
        {"conversations": talk["conversations"][:1], "solution": solution} for talk in (talks[0], talks[2])
    ]
    asked[0] |= {"video": "0.mp4"}
    for name, lines in (("talks", talks), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for family in ("qwen2_5_vl", "qwen3_vl"):
        base = folder / f"{family}-plain"
        tokenizer = tiny_tokenizer()
        tiny_model(tokenizer, family=family, layers=1, spare_rows=8).save_pretrained(base)
        tokenizer.save_pretrained(base)
        trained = tiny_checkpoint(family=family, layers=1)
        ids = list(trained.backbone.latents.ids)
        with torch.no_grad():  # as if it had learnt them
            trained.backbone.embedding_weight[ids] += torch.randn(
                3, 32, generator=torch.Generator().manual_seed(0)
            )
        save_checkpoint(folder / family, trained)
    return folder


def adjusted(name: str, data: Path, out: Path) -> dict[str, Any]:
    """Model and records of a recipe, by its name."""
    family = "qwen3_vl" if "qwen3" in name or "mllm4d" in name else "qwen2_5_vl"
    rl = name.startswith("grpo")
    plain = "mllm4d" in name or "plain" in name or not rl  # DIFT's recipes begin with a base model
    records = ("asked" if rl else "talks") if "mllm4d" in name else "rl" if rl else "dift"
    records = "talks" if name.startswith("sft") else records
    values = {"model": str(data / (f"{family}-plain" if plain else family)), "output_dir": str(out / "run")}
    values |= {"data": [str(data / f"{records}.jsonl")]}
    if name.startswith("dift"):
        values["cache_dir"] = str(out / "cache")
    return SMALL | values | (SMALL_GRPO if rl else {})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_five_updates(path: Path, data: Path, tmp_path: Path) -> None:
    overrides = settings(adjusted(path.stem, data, tmp_path))
    if path.stem.startswith("grpo"):
        final = train_grpo(load_config(GrpoConfig, path, overrides))
    else:
        final = train_dift(load_config(DiftConfig, path, overrides))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["bad_steps"] == 0
    assert ("latent_size" in json.loads((final / "config.json").read_text())) == (
        "latents: false" not in path.read_text()
    )


def documented_trainings() -> list[tuple[str, list[str]]]:
    """Page and words of each training on one machine that a page shows in full."""
    return [
        (page, words)
        for page, words in shell_lines()
        if "--config" in words and "..." not in words and "--nnodes" not in words
    ]


TRAININGS = {" ".join(words[words.index("--config") + 1 :]): words for _, words in documented_trainings()}
BASES = {
    "my/model": "qwen2_5_vl", "runs/dift-3b/final": "qwen2_5_vl", "runs/dift-7b/final": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl-plain", "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl-plain",
}  # fmt: skip


@pytest.mark.parametrize("shown", TRAININGS.values(), ids=TRAININGS)
def test_documented_trainings_run(
    shown: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folders that they name hold a tiny model and tiny records."""
    module: Any = dift if any("dift" in word for word in shown[:4]) else grpo
    _, questions = write_data(tmp_path / "my", 2)
    questions.rename(tmp_path / "my" / "4drl.jsonl")
    shutil.copy(data / "talks.jsonl", tmp_path / "my" / "conversations.jsonl")
    for name, model in BASES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(data / model)
    monkeypatch.chdir(tmp_path)
    position = shown.index("--config")
    arguments = ["--config", str(ROOT / shown[position + 1]), *shown[position + 2 :]]
    if "--dry-run" in shown:
        monkeypatch.setenv("WORLD_SIZE", "8")
        module.main(["--dry-run", *arguments])
        return
    small = SMALL | {"output_dir": "run", "max_steps": 2} | (SMALL_GRPO if module is grpo else {})
    if any("soft_overlong_reward" in word for word in shown):
        small["reward_arguments.soft_overlong_reward.buffer"] = 4
    module.main([*arguments, *settings(small)])
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "final" / "config.json").exists()
