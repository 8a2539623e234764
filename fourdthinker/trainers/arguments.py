"""`TrainingArguments` of the settings, and the processes of a run.

Beside `passes.py`, `trainer.py` and `checkpointing.py` the only file that touches private members of
`transformers` and accelerate; each says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from fourdthinker.errors import ConfigError
from fourdthinker.integrations.trackers import require_trackers
from fourdthinker.trainers import fsdp
from fourdthinker.trainers.deepspeed_config import check_deepspeed
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.watch import grace

_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_DEVICE = "ACCELERATE_TORCH_DEVICE"
_WRITTEN = ("ACCELERATE_", "FSDP_")  # how variables begin that transformers and accelerate write


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The `TrainingArguments` of a config: settings of the same name are passed on, the rest is fixed.

    Raises:
        ConfigError: transformers refuses a setting, or a package that it needs is missing.
    """
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    shared = {name: getattr(config, name) for name in type(config).model_fields if name in names}
    # Done here, not by Trainer.
    for name in ("resume_from_checkpoint", "gradient_checkpointing", "torch_compile", "save_total_limit"):
        shared.pop(name)
    if config.fsdp:
        shared["fsdp_config"] = {"version": 2}
    _check_launcher(config)
    _check_processes(config)
    if config.deepspeed is not None:
        check_deepspeed(config, int(os.environ.get("WORLD_SIZE", "1")))
    require_trackers(config.report_to)
    shared["ddp_timeout"] = patience(config)
    shared["save_strategy"] = "steps" if config.save_steps else "no"
    shared["save_steps"] = config.save_steps or 1
    try:
        with _cpu_processes(config):
            args = TrainingArguments(
                **shared,
                logging_nan_inf_filter=False,  # non-finite losses are handled here
                remove_unused_columns=False,
                ddp_find_unused_parameters=False,  # every trained part runs in every batch
                disable_tqdm=True,  # `live.py` draws a line of its own
                log_level="warning",
            )
            _ = args.n_gpu  # sets devices up
        get_reporting_integration_callbacks(args.report_to)
        _check_optimizer(args)
    except (ValueError, ImportError, TypeError) as error:  # no such optimizer or schedule; a missing package
        text = " ".join(str(error).split())
        raise ConfigError(f"a setting that is passed on to transformers is wrong: {text}") from error
    # One process a GPU: torchrun starts the others. With more, Trainer would use nn.DataParallel.
    args._n_gpu = min(args._n_gpu, 1)
    return args


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Take back what transformers and accelerate write into the environment within the block.

    It would divide the next model of this process too, whatever its settings, and those of processes that
    this one starts.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith(_WRITTEN)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(_WRITTEN)]:
            del os.environ[name]
        os.environ.update(before)


def patience(config: TrainConfig) -> int:
    """Seconds that a collective waits: a little longer than until the silent rank is named."""
    return math.ceil(config.ddp_timeout + grace(config.ddp_timeout))


def _check_optimizer(args: TrainingArguments) -> None:
    """Make optimizer and schedule of one weight: what they refuse shows now, not once the model is loaded."""
    if args.deepspeed is None:
        Trainer.get_optimizer_cls_and_kwargs(args)
    get_scheduler(
        args.lr_scheduler_type,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate),
        num_warmup_steps=args.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )


def _check_launcher(config: TrainConfig) -> None:
    """ConfigError where `accelerate launch` asks for what the settings do not say."""
    asked = {fsdp.ASKED: ("fsdp=true", config.fsdp), _DEEPSPEED: ("deepspeed", config.deepspeed is not None)}
    for variable, (setting, given) in asked.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on") and not given:
            raise ConfigError(
                f"{variable} is {os.environ[variable]} in the environment (accelerate launch sets it), and "
                f"the settings do not ask for it; start by torchrun, with {setting}"
            )


def _check_processes(config: TrainConfig) -> None:
    """ConfigError where the processes that were started could not work together."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 and config.fsdp:
        raise ConfigError(
            "fsdp=true divides the model among processes, and one was started; start several (torchrun "
            "--nproc_per_node), or set fsdp=false"
        )
    if started == 1 or config.use_cpu:
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{started} processes were started, and without a GPU each would train by itself; "
            "set use_cpu=true"
        )
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", started)), torch.cuda.device_count()
    if here > devices:
        raise ConfigError(
            f"{here} processes were started on this machine, which has {devices} GPUs; start one a GPU "
            f"(torchrun --nproc_per_node {devices}), or set use_cpu=true"
        )


@contextlib.contextmanager
def _cpu_processes(config: TrainConfig) -> Iterator[None]:
    """Let several processes on the CPU find each other before accelerate does it.

    accelerate would not pass the time-out on, and would call the device "cpu:0", to which torch loads no
    checkpoint.
    """
    if not config.use_cpu or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=patience(config)))
    before = os.environ.get(_DEVICE)
    os.environ[_DEVICE] = "cpu"
    try:
        yield
    finally:
        del os.environ[_DEVICE]
        if before is not None:
            os.environ[_DEVICE] = before
