"""What a DeepSpeed config says beside the settings is used or refused, never silently one of both."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.deepspeed_config import check_deepspeed, float32_sums, zero_stage
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig
from fourdthinker.trainers.settings_files import load_config

CONFIGS = Path(__file__).parents[3] / "train" / "configs"
CLIPPED: dict[str, Any] = {"gradient_clipping": "auto"}
KNOWN = {
    key for path in CONFIGS.glob("*.json") for key in json.loads(path.read_text())["zero_optimization"]
} - {
    "stage",
    "offload_optimizer",
}


class Zero(BaseModel):
    """A section as DeepSpeed's own models read it: no key that it does not know."""

    model_config = ConfigDict(extra="forbid")
    stage: int = 0
    offload_optimizer: dict[Literal["device", "pin_memory"], Literal["none", "cpu", "nvme", True]] = {}


def read_by_deepspeed(given: dict[str, Any]) -> None:
    section = {name: value for name, value in given.get("zero_optimization", {}).items() if name not in KNOWN}
    Zero(**section)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, as far as a file is checked by it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    dtypes = Enum("DtypeEnum", {"fp32": "fp32", "float32": "float32"})
    made = {"DeepSpeedConfig": read_by_deepspeed, "DeepSpeedConfigError": KeyError, "DtypeEnum": dtypes}
    module = ModuleType("deepspeed.runtime.config")
    vars(module).update(made)
    for name in ("deepspeed", "deepspeed.runtime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


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
        ({"bf16": False}, 'bf16 of .* is False; give a mapping, as {"enabled": "auto"}'),
        ({"bf16": True}, 'bf16 of .* is True; give a mapping, as {"enabled": "auto"}'),
        ({"bf16": "auto"}, "bf16 of .* is 'auto'; give a mapping"),
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
        ({"zero_optimization": {"overlap_com": True}}, "overlap_com is True: .* mend it in"),
        ({"data_types": {"grad_accum_dtype": "f32"}}, "DeepSpeed refuses .* 'f32' is not a valid DtypeEnum"),
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


def test_a_device_that_deepspeed_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(CLIPPED | {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}))
    with pytest.raises(
        ConfigError, match=r"offload_optimizer.device is 'gpu': .*'cpu'.*; mend it in .*zero.json"
    ):
        check(path)


@pytest.mark.parametrize(("name", "wide"), [("fp32", True), ("float32", True), ("bf16", False)])
def test_float32_sums_have_the_names_of_deepspeed(tmp_path: Path, name: str, wide: bool) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"data_types": {"grad_accum_dtype": name}}))
    assert float32_sums(make_config(DiftConfig, {"deepspeed": str(path)})) == wide


def test_what_transformers_fills_in_is_no_mistake_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": "auto"}}
    path.write_text(json.dumps(CLIPPED | {"bf16": {"enabled": "auto"}, "zero_optimization": zero}))
    check(path)


def test_a_section_that_is_no_mapping_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks it for its keys."""
    made = sys.modules["deepspeed.runtime.config"]
    monkeypatch.setattr(made, "DeepSpeedConfig", lambda given: given["activation_checkpointing"].get("x"))
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(CLIPPED | {"activation_checkpointing": True}))
    with pytest.raises(ConfigError, match=r"DeepSpeed refuses .*'bool' object has no attribute"):
        check(path)
