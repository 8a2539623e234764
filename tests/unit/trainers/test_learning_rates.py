"""Parts of a model that learn at rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from fourdthinker.backbones.parts import PARTS, part_names
from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.learning_rates import freeze_parts
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.settings_sections import LearningRates
from tests.e2e.training import BARE, POLICIES, pixel_samples, samples
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_weight_belongs_to_one_part(family: str) -> None:
    backbone = tiny_checkpoint(family=family, layers=1, tied=False).backbone
    names = part_names(backbone)
    by_part: dict[str, set[str]] = {part: set() for part in PARTS}
    for name, parameter in backbone.hf.named_parameters():
        by_part[names[id(parameter)]].add(name)
    assert by_part["embeddings"] == {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert by_part["projector"] == {n for n in by_part["projector"] if "visual" in n and "merger" in n}
    assert by_part["tower"] == {n for n in by_part["tower"] if "visual" in n and "merger" not in n}
    assert by_part["model"] == {n for n in by_part["model"] if n.startswith("model.language_model.")}
    assert all(by_part.values())


class Rates(TrainerCallback):
    """Writes down what the optimizer was given."""

    def __init__(self) -> None:
        self.seen: list[dict[int, float]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.seen.append({id(p): group["lr"] for group in groups for p in group["params"]})


def config_of(folder: Path, **values: Any) -> DiftConfig:
    base = BARE | {"max_steps": 2, "learning_rate": 1e-3, "output_dir": str(folder), "weight_decay": 0.1}
    return make_config(DiftConfig, base | values)


def test_each_part_learns_at_its_rate(tmp_path: Path) -> None:
    """Half of it after half of a linear schedule; a part of rate 0 stays as it is, the decay included."""
    checkpoint, rates = tiny_checkpoint(layers=1, policy=POLICIES["qwen2_5_vl"]), Rates()
    given = {"projector": 4e-3, "tower": 0, "embeddings": 2e-3}
    before = {name: p.clone() for name, p in checkpoint.backbone.named_parameters()}
    config = config_of(tmp_path, learning_rates=given, freeze_vision=False)
    train_dift(config, checkpoint=checkpoint, samples=pixel_samples(checkpoint, 2), callbacks=[rates])
    names, wanted = part_names(checkpoint.backbone), given | {"model": 1e-3}
    assert {names[i] for i in rates.seen[0]} == {"model", "embeddings", "projector"}
    for step, share in enumerate((1.0, 0.5)):
        for i, rate in rates.seen[step].items():
            assert rate == pytest.approx(share * wanted[names[i]])
    changed: dict[str, list[bool]] = {part: [] for part in PARTS}
    for name, parameter in checkpoint.backbone.named_parameters():
        changed[names[id(parameter)]].append(not torch.equal(before[name], parameter))
    assert not any(changed["tower"])
    assert all(any(changed[part]) for part in ("model", "embeddings", "projector"))


def test_adapter_and_bfloat16_keep_their_rates(tmp_path: Path) -> None:
    checkpoint, rates = tiny_checkpoint(layers=1), Rates()
    checkpoint.backbone.to(torch.bfloat16)
    lora = {"r": 2, "train_embeddings": True}
    config = config_of(tmp_path, learning_rates={"embeddings": 2e-3, "model": 1e-4}, lora=lora, max_steps=1)
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2), callbacks=[rates])
    assert sorted({round(rate, 6) for rate in rates.seen[0].values()}) == [1e-4, 2e-3]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"tower": 1e-6}, r"learning_rates\.tower is 1e-06, .*set freeze_vision=false"),
        ({"model": 0, "embeddings": 0}, "nothing would be learnt"),
    ],
)
def test_rates_that_teach_nothing(rates: dict[str, float], words: str) -> None:
    backbone = tiny_checkpoint(layers=1).backbone
    backbone.freeze_vision()
    with pytest.raises(ConfigError, match=words):
        freeze_parts(backbone, LearningRates(**rates))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"learning_rates": {"projektor": 1e-5}},
            r"unknown key 'learning_rates\.projektor'.*learning_rates\.projector",
        ),
        ({"learning_rates": {"tower": -1}}, r"learning_rates\.tower is -1"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(DiftConfig, values)
