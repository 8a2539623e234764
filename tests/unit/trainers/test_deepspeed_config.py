"""What a DeepSpeed config says beside the settings is used or refused, never silently one of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.deepspeed_config import check_deepspeed, zero_stage
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig
from fourdthinker.trainers.settings_files import load_config

CONFIGS = Path(__file__).parents[3] / "train" / "configs"
CLIPPED: dict[str, Any] = {"gradient_clipping": "auto"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def check(path: Path, **values: Any) -> None:
    check_deepspeed(make_config(DiftConfig, {"deepspeed": str(path)} | values), 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"optimizer": {"type": "AdamW"}},
            "section 'optimizer', which would replace optim, .*learning_rates",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "section 'scheduler', which would replace lr_scheduler_type"),
        ({"gradient_clipping": 0.5}, 'gradient_clipping is 0.5 .* max_grad_norm is 1.0; write "auto"'),
        ({"bf16": {"enabled": False}}, "bf16.enabled is False .* bf16 is True"),
        ({"bf16": {"immediate_grad_update": True}}, "bf16.enabled is missing .* bf16 is True"),
        ({"bf16": False}, "bf16.enabled is False .* bf16 is True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True .* no setting is False"),
        ({"gradient_accumulation_steps": 4}, "is 4 .* gradient_accumulation_steps is 2"),
        ({"train_micro_batch_size_per_gpu": 8}, "is 8 .* per_device_train_batch_size is 3"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "AdamW for any .* optim is sgd; set",
        ),
        (
            {"zero_optimization": {"offload_optimizer": "cpu"}},
            r"zero_optimization.offload_optimizer of .* is 'cpu'; give a mapping",
        ),
        ({"zero_optimization": {"stage": "auto"}}, r"zero_optimization.stage of .* is 'auto'; give 0, 1"),
        ({"zero_optimization": {"stage": [2]}}, r"zero_optimization.stage of .* is \[2\]; give 0, 1"),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization.stage of .* is 4; give 0, 1"),
        ({"train_batch_size": 6}, "is 6 .* the batch of all processes is 12"),
    ],
)
def test_what_contradicts_a_setting_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(CLIPPED | given))
    values = {"bf16": True, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    with pytest.raises(ConfigError, match=said) as error:
        check(path, optim="sgd", **values)
    assert str(path) in str(error.value)


def test_clipping_that_is_missing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"gradient_clipping is missing in .* max_grad_norm is 1.0"):
        check(path)
    check(path, max_grad_norm=0)


def test_what_says_the_same_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"gradient_clipping": 1, "bf16": {"enabled": False}, "train_batch_size": 2}))
    check(path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_ours_leave_it_to_the_settings(path: Path) -> None:
    check(path, bf16=True, max_grad_norm=0.3)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_fit_the_file_that_they_name(path: Path) -> None:
    cls: type[TrainConfig] = GrpoConfig if path.stem.startswith("grpo") else DiftConfig
    config = load_config(cls, path)
    assert (config.deepspeed is None) == ("deepspeed:" not in path.read_text())
    if config.deepspeed is not None:
        check_deepspeed(config, 8)
        assert zero_stage(config) == (3 if "7b" in path.stem else 2, False)
