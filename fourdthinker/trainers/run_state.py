"""What a checkpoint belongs to, in its file `run.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError
from fourdthinker.files import parse_json, write_json
from fourdthinker.trainers.run_folder import STATE
from fourdthinker.trainers.settings import GrpoConfig, TrainConfig

RUN = "run.json"
LAST = (RUN, STATE)  # files of a checkpoint that are written after all others
# Settings that the state of the optimizer, the weights or the order of the data depend on.
_HELD = (
    "model",
    "subfolder",
    "dtype",
    "latents",
    "freeze_vision",
    "lora",
    "latent_size",
    "latent_pooling",
    "latent_bottleneck",
    "latent_norm",
    "self_feed",
    "shuffle_dataset",
    "seed",
    "learning_rate",
    "learning_rates",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
    "num_iterations",
    "sync_ref_model",
)

# What stays when the number of processes changes, and with it both of these.
_SHARES = "steps_per_generation / gradient_accumulation_steps"
# Of checkpoints that older versions wrote, without these.
_FORMER = {_SHARES: 1, "shuffle_dataset": True}

# Settings that the memory of a forward depends on: with the same ones it need not run out a second time.
_SIZES = (
    "per_device_train_batch_size",
    "max_tokens_per_forward",
    "gradient_checkpointing",
    "bf16",
    "share_prompt",
    "num_generations",
    "max_completion_length",
)


@dataclass(frozen=True)
class RunState:
    """What a checkpoint belongs to.

    Attributes:
        updates: how many its weights have seen.
        settings: those that a run that goes on from it must have too.
        records_per_update: on all processes together.
        processes: that wrote it.
        engine: what divided the model, as messages name it: "ZeRO-2", "FSDP" or None.
        divisions: how often its forwards were halved because memory ran out, with the settings `sizes`.
        sizes: settings that memory depends on, as they were.
        resumable: whether it has the state of the optimizer.
        data: a hash of the records.
        measure: a hash of what the evaluations depend on by which it knows the best checkpoint; None: there
            were none.
        start: a digest of the weights that a run of 4DRL began from, which its reference model has; None: the
            run is one of DIFT, or an older version wrote this.
        files: bytes of all other files that a run goes on from, by their paths in the folder.
        digests: `file_digest` of those of them that no other program writes anew, as it may JSON.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    updates: NonNegativeInt
    settings: dict[str, Any]
    records_per_update: PositiveInt
    processes: PositiveInt
    engine: str | None
    divisions: NonNegativeInt
    sizes: dict[str, Any]
    resumable: bool
    data: str
    measure: str | None
    start: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> dict[str, Any]:
        """The settings, also those that older versions did not write down."""
        return _FORMER | self.settings

    @property
    def within_iterations(self) -> bool:
        """Whether the next update is on rollouts that were sampled before the last one."""
        return self.updates % (self.held.get("num_iterations", 1) * self.held[_SHARES]) > 0

    def write(self, folder: Path) -> None:
        """Into `folder`/run.json."""
        write_json(folder / RUN, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """Of a checkpoint.

        Raises:
            CheckpointError: it has none that can be read.
        """
        try:
            state: RunState = _STATE.validate_python(parse_json((folder / RUN).read_bytes()))
            _ = state.within_iterations
        except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
            said = str(error)
            if isinstance(error, ValidationError):
                wrong = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
                said = "; ".join(f"{name or 'all of it'}: {reason}" for name, reason in wrong)
            raise CheckpointError(
                f"{folder / RUN} cannot be read ({said}); name a checkpoint that a run of this version wrote"
            ) from error
        return state


_STATE = TypeAdapter(RunState)


def rollouts_file(rank: int) -> str:
    """Of a checkpoint between updates on the same rollouts, the file with those of a rank."""
    return f"rollouts_{rank}.safetensors"


def run_state(
    config: TrainConfig,
    args: TrainingArguments,
    updates: int,
    data: str,
    divisions: int = 0,
    *,
    start: str | None = None,
    measure: str | None = None,
    files: Mapping[str, int] | None = None,
    digests: Mapping[str, str] | None = None,
) -> RunState:
    """What a checkpoint of this run belongs to.

    Args:
        config: the settings.
        args: of Trainer.
        updates: made so far.
        data: a hash of the records.
        divisions: how often forwards were halved because memory ran out.
        start: a digest of the weights that the run began from, if a reference may be needed.
        measure: a hash of what evaluations depend on, if there are any.
        files: bytes of the checkpoint's other files, by path.
        digests: of those that are no JSON.
    """
    values = config.model_dump(mode="json")
    held = {name: value for name, value in values.items() if name in _HELD}
    held[_SHARES] = config.shares if isinstance(config, GrpoConfig) else 1
    return RunState(
        updates=updates,
        settings=held,
        records_per_update=records_per_update(config, args),
        processes=args.world_size,
        engine=_engine(args),
        divisions=divisions,
        sizes={name: values[name] for name in _SIZES if name in values},
        resumable=not args.save_only_model,
        data=data,
        measure=measure,
        start=start,
        files=dict(files or {}),
        digests=dict(digests or {}),
    )


def _engine(args: TrainingArguments) -> str | None:
    if args.deepspeed:
        return f"ZeRO-{args.deepspeed_plugin.zero_stage}"
    return "FSDP" if args.fsdp else None


def records_per_update(config: TrainConfig, args: TrainingArguments) -> int:
    """Records (in 4DRL prompts) of one update, on all processes together."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * args.world_size
