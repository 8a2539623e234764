"""What a DeepSpeed config may say: how the model is divided, and nothing that the settings say.

An own optimizer or schedule of DeepSpeed would replace those of the run without a word, and with them rates
of parts, decay and warm-up; without `gradient_clipping` nothing is clipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fourdthinker.errors import ConfigError, install
from fourdthinker.files import read_json_object
from fourdthinker.trainers.settings import TrainConfig

_LIVE = 10**9  # DeepSpeed's own value where a config gives none
_FLOAT32 = ("fp32", "float32", "float", "torch.float32")  # as DeepSpeed calls the type
_REPLACED = {
    "optimizer": "optim, learning_rate, learning_rates, weight_decay and adam_*",
    "scheduler": "lr_scheduler_type, lr_scheduler_kwargs and warmup_steps",
}


def check_deepspeed(config: TrainConfig, processes: int) -> None:
    """Check the file that `config.deepspeed` names.

    Args:
        config: the settings.
        processes: how many were started.

    Raises:
        ConfigError: DeepSpeed is not installed, there is no such file, or it contradicts the settings.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"deepspeed is {config.deepspeed}, but the package is not installed; "
            f"{install('zero')}, or set deepspeed=null"
        )
    path = Path(str(config.deepspeed))
    if not path.is_file():
        raise ConfigError(
            f"deepspeed is {config.deepspeed}, and there is no such file; in a YAML file the path is "
            "relative to that file, on the command line to the current folder"
        )
    given = read_json_object(str(path), "mend the DeepSpeed config")
    for name, replaced in _REPLACED.items():
        if name in given:
            raise ConfigError(
                f"deepspeed: {path} has a section {name!r}, which would replace {replaced}; leave it out: "
                "DeepSpeed then runs with these settings"
            )
    if zero_stage(config)[1] and not config.optim.startswith("adamw"):
        raise ConfigError(
            f"deepspeed: {path} has offload_optimizer, with which accelerate takes DeepSpeed's AdamW for any "
            f"optimizer, and optim is {config.optim}; set optim=adamw_torch, or do without offload_optimizer"
        )
    for name in ("bf16", "fp16"):
        if not isinstance(given.get(name, {}), dict):
            raise ConfigError(
                f'deepspeed: {name} of {path} is {given[name]!r}; give a mapping, as {{"enabled": "auto"}}'
            )
    for name, (setting, wanted) in _meanings(config, processes).items():
        _check_value(path, given, name, setting, wanted)
    _check_by_deepspeed(path, given, _section(config, "data_types").get("grad_accum_dtype"))


def _check_by_deepspeed(path: Path, given: dict[str, Any], sums: Any) -> None:
    """ConfigError where DeepSpeed does not know a key or a value; it says so itself once a model is there."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError, DtypeEnum

    batch = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}  # checked before
    filled = {name: value for name, value in _without_auto(given).items() if name != "train_batch_size"}
    try:
        DeepSpeedConfig(filled | batch)
        if sums is not None:
            DtypeEnum(sums)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors()
        ]
        raise ConfigError(f"deepspeed: {'; '.join(wrong)}; mend it in {path}") from error
    except (ValueError, TypeError, AttributeError, AssertionError, DeepSpeedConfigError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"deepspeed: DeepSpeed refuses {path}: {text}; mend the file") from error


def _without_auto(value: Any) -> Any:
    """A mapping without what transformers fills in, at any depth."""
    if not isinstance(value, dict):
        return value
    return {name: _without_auto(part) for name, part in value.items() if part != "auto"}


def zero_stage(config: TrainConfig) -> tuple[int, bool]:
    """The stage of ZeRO, 0 without DeepSpeed, and whether the optimizer is kept on the host.

    Raises:
        ConfigError: the file that `config.deepspeed` names cannot be read, or says neither as DeepSpeed does.
    """
    zero = _zero(config)
    stage, offload = zero.get("stage", 0), zero.get("offload_optimizer") or {}
    if isinstance(stage, bool) or stage not in range(4):
        raise ConfigError(
            f"deepspeed: zero_optimization.stage of {config.deepspeed} is {stage!r}; give 0, 1, 2 or 3"
        )
    if not isinstance(offload, dict):
        raise ConfigError(
            f"deepspeed: zero_optimization.offload_optimizer of {config.deepspeed} is {offload!r}; give a "
            'mapping, as {"device": "cpu"}'
        )
    return int(stage), offload.get("device", "none") != "none"


def live_parameters(config: TrainConfig) -> int:
    """How many parameters ZeRO-3 keeps gathered at a time where they are used again soon.

    Raises:
        ConfigError: as `zero_stage`.
    """
    given = [_zero(config).get(name) for name in ("stage3_max_live_parameters", "stage3_max_reuse_distance")]
    return max(int(value) if isinstance(value, (int, float)) else _LIVE for value in given)


def float32_sums(config: TrainConfig) -> bool:
    """Whether DeepSpeed adds gradients of bfloat16 weights up in float32.

    Raises:
        ConfigError: as `zero_stage`.
    """
    return _section(config, "data_types").get("grad_accum_dtype") in _FLOAT32


def _zero(config: TrainConfig) -> dict[str, Any]:
    return _section(config, "zero_optimization")


def _section(config: TrainConfig, name: str) -> dict[str, Any]:
    if config.deepspeed is None:
        return {}
    section = read_json_object(config.deepspeed, "mend the DeepSpeed config").get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"deepspeed: {name} of {config.deepspeed} is {section!r}; give a mapping")
    return section


def _meanings(config: TrainConfig, processes: int) -> dict[str, tuple[str, Any]]:
    """Keys of a DeepSpeed config that a setting means too: its name and value."""
    batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    return {
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
        "bf16.enabled": ("bf16", config.bf16),
        "fp16.enabled": ("float16, which is no setting", False),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulation),
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", batch),
        "train_batch_size": ("the batch of all processes", batch * accumulation * processes),
    }


def _check_value(path: Path, given: dict[str, Any], name: str, setting: str, wanted: Any) -> None:
    """What is left out is off (clipping, a section without "enabled"), or as the settings say."""
    section, _, key = name.rpartition(".")
    inner = given.get(section, {}) if section else given
    value = inner.get(key) if isinstance(inner, dict) else inner
    if value is None and name != "gradient_clipping" and section not in given:
        return
    if value == "auto" or (value or 0) == wanted:
        return
    raise ConfigError(
        f"deepspeed: {name} is {'missing' if value is None else repr(value)} in {path}, and {setting} is "
        f'{wanted}; write "auto" there, which takes the setting'
    )
