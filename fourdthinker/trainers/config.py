"""Settings of a run: YAML over typed dataclasses, `--config file.yaml key=value ...` on the command line.

A setting has the name it has in `transformers.TrainingArguments` where it means the same, and is passed on
under that name. Unknown keys, wrong types and values out of range are `ConfigError`s that name the key.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy

RESOLVED_CONFIG = "config.yaml"


@dataclass(kw_only=True)
class LoraSettings:
    """A low-rank adapter on the language model is trained instead of its weights (peft, `train` extra)."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    # linear layers of the decoder layers
    target_modules: list[str] = field(
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    )
    train_embeddings: bool = False  # embedding and head in full: what new latent tokens need

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"lora.r is {self.r}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; give a number from 0 to below 1")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty; name at least one layer, such as q_proj")


@dataclass(kw_only=True)
class TrainConfig:
    """What both trainers need.

    Fields without a comment mean what they mean in `transformers.TrainingArguments`.
    """

    model: str = ""  # folder of a checkpoint with latent tokens; may stay empty when a loaded one is given
    subfolder: str | None = None
    data: list[str] = field(default_factory=list)  # record files (JSONL), read one after the other
    media_root: str | None = None  # every path that a record names must lie below it
    on_bad_record: Literal["raise", "skip"] = "raise"
    check_media: bool = (
        True  # read every clip and picture once before training (filling a cache does it anyway)
    )
    frames: FramePolicy | None = None  # None: the checkpoint's own policy
    override_policy: bool = (
        False  # allows `frames` to differ from the policy that the checkpoint was trained on
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the weights; auto: as saved
    freeze_vision: bool = True
    lora: LoraSettings | None = None  # None: all weights of the language model are trained
    cache_dir: str | None = None  # vision features are computed once before training and kept here
    max_bad_steps: int = 3  # steps skipped for a non-finite loss or gradient before the run ends

    output_dir: str = "runs/run"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None  # "auto": the newest complete checkpoint in output_dir, if any
    num_train_epochs: float = 1.0
    max_steps: int = -1
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_steps: float = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch_fused"
    bf16: bool = False
    tf32: bool | None = None
    gradient_checkpointing: bool = False
    deepspeed: str | None = None
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    save_steps: int = 500  # 0: only the final checkpoint
    save_total_limit: int | None = 2
    save_only_model: bool = False
    seed: int = 42
    use_cpu: bool = False
    dataloader_num_workers: int = 0
    dataloader_prefetch_factor: int | None = None
    dataloader_persistent_workers: bool = False
    dataloader_pin_memory: bool = False
    ddp_timeout: int = 1800

    def __post_init__(self) -> None:
        self._at_least(1, "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        self._at_least(
            0, "save_steps", "max_bad_steps", "max_grad_norm", "weight_decay", "dataloader_num_workers"
        )
        if self.max_steps == 0 or self.max_steps < -1:
            raise ConfigError(
                f"max_steps is {self.max_steps}; give a number above 0, or -1 to use num_train_epochs"
            )
        if self.max_steps < 0 and self.num_train_epochs <= 0:
            raise ConfigError(
                f"num_train_epochs is {self.num_train_epochs}; give a number above 0, or max_steps"
            )
        if self.save_total_limit is not None:
            self._at_least(1, "save_total_limit")

    def _at_least(self, bound: float, *names: str) -> None:
        for name in names:
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {bound}")


@dataclass(kw_only=True)
class DiftConfig(TrainConfig):
    """Settings of DIFT. Published: 8 GPUs, batch 1, one epoch, 1e-5 linear, warm-up 10, decay 0.01."""

    output_dir: str = "runs/dift"
    warmup_steps: float = 10
    weight_decay: float = 0.01
    latent_size: int | None = (
        None  # grow the vocabulary of a base checkpoint that has no latent tokens, K latents a block
    )
    ce_loss_weight: float | None = None  # None: the checkpoint's
    sim_loss_weight: float | None = None  # None: the checkpoint's
    cache_video: bool = (
        False  # with cache_dir: keep the features of the videos too, not only the imagery targets
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_size is not None:
            self._at_least(1, "latent_size")
        for name in ("ce_loss_weight", "sim_loss_weight"):
            if getattr(self, name) is not None:
                self._at_least(0, name)
        if self.cache_dir is not None and not self.freeze_vision:
            raise ConfigError(
                "cache_dir keeps features of a frozen tower; set freeze_vision=true or leave cache_dir out"
            )
        if self.cache_video and self.cache_dir is None:
            raise ConfigError("cache_video=true needs cache_dir, the folder that the features are kept in")


@dataclass(kw_only=True)
class GrpoConfig(TrainConfig):
    """Settings of 4DRL (GRPO).

    `per_device_train_batch_size` counts prompts; each gets `num_generations` rollouts. One update of the
    weights uses per_device_train_batch_size * gradient_accumulation_steps prompts on every rank. The
    published recipe: learning rate 1e-6, beta 0.01, 8 rollouts, rewards accuracy 1.0 and format 0.2.
    """

    output_dir: str = "runs/grpo"
    learning_rate: float = 1e-6
    save_steps: int = 100
    logging_steps: int = 1

    num_generations: int = 8
    max_completion_length: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_blocks: int = 8
    train_start: bool = False  # whether the choice to open a block is trained too
    share_prompt: bool = True  # the training forward runs each prompt once for all its rollouts (needs SDPA)
    rows_per_forward: int = 0  # rows of the training forward at a time; 0: all rows of a micro-batch

    rewards: list[str] = field(
        default_factory=lambda: ["fourdthinker.rewards:accuracy_reward", "fourdthinker.rewards:format_reward"]
    )
    reward_weights: list[float] = field(default_factory=lambda: [1.0, 0.2])
    scale_rewards: Literal["group", "none", "batch", "leave_one_out"] = "group"
    drop_equal_groups: bool = False  # rows of a group whose rewards are all equal are left out of the loss
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    kl: Literal["k2", "k3"] = "k3"
    beta: float = 0.01
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    num_iterations: int = 1  # updates on each batch of rollouts
    entropy_coef: float = 0.0

    log_rollouts_steps: int = 10  # every so many updates ...
    log_rollouts: int = 8  # ... so many rollouts of the first rank are written to rollouts.jsonl

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "max_completion_length", "num_iterations", "log_rollouts_steps")
        self._at_least(0, "rows_per_forward", "beta", "epsilon", "top_k", "max_blocks", "log_rollouts")
        self._at_least(2, "num_generations")
        if self.temperature <= 0:
            raise ConfigError(
                f"temperature is {self.temperature}; rollouts are sampled, give a number above 0"
            )
        if self.lora is not None and self.lora.dropout:
            raise ConfigError(
                f"lora.dropout is {self.lora.dropout}; the policy that is trained must be the one that was "
                "sampled from, so set lora.dropout=0"
            )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if high < 0:
            raise ConfigError(f"epsilon_high is {high}; give at least 0, or leave it out to use epsilon")
        if self.delta is not None and self.delta <= 1 + high:
            raise ConfigError(f"delta is {self.delta}; it must be above 1 + epsilon_high = {1 + high}")
        if len(self.rewards) != len(self.reward_weights) or not self.rewards:
            raise ConfigError(
                f"rewards names {len(self.rewards)} functions and reward_weights has "
                f"{len(self.reward_weights)} numbers; give one weight a function, and at least one"
            )
        if self.save_steps % self.num_iterations:
            raise ConfigError(
                f"save_steps is {self.save_steps} and num_iterations {self.num_iterations}: a checkpoint "
                "within a batch of rollouts could not be resumed; make save_steps a multiple"
            )


C = TypeVar("C", bound=TrainConfig)


def make_config(cls: type[C], values: Mapping[str, Any], *, where: str = "config") -> C:
    """A `cls` from plain values as YAML gives them. Raises ConfigError for unknown keys and wrong types."""
    return typing.cast(C, _dataclass(cls, values, prefix="", where=where))


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """A `cls` from a YAML file and `key=value` overrides; `frames.fps=2` reaches into a nested setting."""
    values: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot read the config ({error}); give an existing YAML file"
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML ({error})") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: holds a {type(loaded).__name__}; write `key: value` lines")
        values = dict(loaded or {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"argument {override!r}: write key=value, for example max_steps=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"argument {override!r}: the value is not valid YAML ({error})") from error
        target = values
        *parents, last = key.strip().split(".")
        for parent in parents:
            inner = target.get(parent)
            target[parent] = dict(inner) if isinstance(inner, dict) else {}
            target = target[parent]
        target[last] = value
    return make_config(cls, values, where=where)


def parse_command_line(cls: type[C], argv: Sequence[str] | None, *, program: str, description: str) -> C:
    """The config that a command line describes: `[--config FILE] [key=value ...]`."""
    lines = "\n".join(f"  {f.name} = {_default(f)!r}" for f in dataclasses.fields(cls))
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"settings and their defaults:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file"
    )
    arguments = parser.parse_args(argv)
    return load_config(cls, arguments.config, arguments.overrides)


def save_config(config: TrainConfig, folder: str | Path) -> Path:
    """Write the resolved settings to `folder`/config.yaml; `load_config` reads them back equal."""
    path = Path(folder) / RESOLVED_CONFIG
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")
    return path


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _dataclass(cls: type, values: Mapping[str, Any], *, prefix: str, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    unknown = [key for key in values if key not in known]
    if unknown:
        messages = []
        for key in unknown:
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5) or difflib.get_close_matches(
                str(key), known, n=3, cutoff=0.0
            )
            messages.append(
                f"unknown key {prefix + str(key)!r}, the nearest are {', '.join(prefix + n for n in near)}"
            )
        raise ConfigError(f"{where}: {'; '.join(messages)}")
    checked = {key: _value(hints[key], value, prefix + key, where) for key, value in values.items()}
    return cls(**checked)


def _value(hint: Any, value: Any, key: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [a for a in arguments if a is not type(None)]
        if len(members) == 1:
            return _value(members[0], value, key, where)
    elif origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: {key} is {value!r}; choose one of {', '.join(map(str, arguments))}")
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _dataclass(typing.cast(type, hint), value, prefix=key + ".", where=where)
        if isinstance(value, typing.cast(type, hint)):
            return value
    elif origin is list:
        if isinstance(value, str) and arguments == (str,):
            return [value]
        if isinstance(value, (list, tuple)):
            return [_value(arguments[0], item, f"{key}[{i}]", where) for i, item in enumerate(value)]
    elif origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
            try:
                return float(value)
            except ValueError:
                pass
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise ConfigError(f"{where}: {key} is {value!r} ({type(value).__name__}); give {wanted or hint}")
