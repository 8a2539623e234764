"""Sections that are options of other packages, and settings that do not fit together."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationInfo

from fourdthinker.frames import FramePolicy
from fourdthinker.kernels import GrpoOptions
from fourdthinker.reward_calls import reward_name
from fourdthinker.settings import make_section

PUBLISHED_BETA = 0.01
DEFAULT_WEIGHTS = {"fourdthinker.rewards:accuracy_reward": 1.0, "fourdthinker.rewards:format_reward": 0.2}
# Of transformers' optimizers those that update slices of weights as they update whole ones: others look at
# shapes, keep state of their own form, or update in the backward pass.
_DIVISIBLE = ("adamw_torch", "adamw_torch_fused", "sgd")
# Those that need more than to be made and stepped: how their names begin, and what they need.
_NOT_RUN = {
    "schedule_free": "keeps other weights than those that are to be evaluated and saved",
    "lomo": "updates weights within the backward pass",
    "adalomo": "updates weights within the backward pass",
    "galore": "needs optim_target_modules, which is no setting here",
    "apollo": "needs optim_target_modules, which is no setting here",
}


def make_frames(value: Any) -> Any:
    """The frame policy of a section."""
    return make_section(FramePolicy, value, "frames")


def make_loss(value: Any, info: ValidationInfo) -> Any:
    """The loss options; what is not given is as published, and max_length is the budget of the rollouts."""
    budget = info.data.get("max_completion_length")
    options = make_section(GrpoOptions, value, "loss", beta=PUBLISHED_BETA, max_length=budget)
    if not isinstance(options, GrpoOptions) or budget is None:
        return options
    if options.max_length not in (None, budget):
        raise ValueError(
            f"loss.max_length is {options.max_length}; it is max_completion_length = {budget}, "
            "so leave it out"
        )
    return dataclasses.replace(options, max_length=budget)


def make_weights(value: Any, info: ValidationInfo) -> Any:
    """The weights of the rewards; where none are given those of the default rewards, else 1.0 each."""
    rewards = info.data.get("rewards", [])
    if value is not None:
        return value
    known = DEFAULT_WEIGHTS if sorted(rewards) == sorted(DEFAULT_WEIGHTS) else {}
    return [known.get(name, 1.0) for name in rewards]


def check_engine(config: Any) -> None:
    """Check what divides, compiles and updates the model.

    Args:
        config: the `TrainConfig`, whose own module imports this one.

    Raises:
        ValueError: two of the settings exclude each other, or the optimizer would not be run rightly.
    """
    for start, reason in _NOT_RUN.items():
        if config.optim.startswith(start):
            raise ValueError(
                f"optim is {config.optim}, which {reason}; choose another, such as adamw_torch_fused, "
                "adafactor or adamw_8bit"
            )
    if config.fsdp and config.deepspeed is not None:
        raise ValueError(
            f"fsdp is true and deepspeed {config.deepspeed}: both divide the model; leave one of them out"
        )
    if config.torch_compile and config.deepspeed is not None:
        raise ValueError(
            f"torch_compile is true and deepspeed {config.deepspeed}, whose hooks around every layer cannot "
            "be compiled; set torch_compile=false, or divide the model by fsdp=true"
        )
    if (config.fsdp or config.deepspeed is not None) and config.optim not in _DIVISIBLE:
        divided = "fsdp is true" if config.fsdp else f"deepspeed is {config.deepspeed}"
        raise ValueError(
            f"optim is {config.optim} and {divided}: slices of weights are updated by "
            f"{', '.join(_DIVISIBLE)} alone; choose one of them, or leave the model undivided (lora)"
        )


def check_rl(config: Any) -> None:
    """Check settings whose values are right each by itself.

    Args:
        config: the `GrpoConfig`, whose own module imports this one.

    Raises:
        ValueError: some do not fit together.
    """
    _check_rewards(config)
    _check_division(config)
    _check_loss(config)
    _check_staleness(config)


def _check_rewards(config: Any) -> None:
    if len(config.rewards) != len(config.reward_weights):
        raise ValueError(
            f"rewards names {len(config.rewards)} functions and reward_weights has "
            f"{len(config.reward_weights)} numbers; give one weight a function"
        )
    names = [reward_name(path) for path in config.rewards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"rewards names two functions {twice[0]}; call one of them otherwise by #NAME behind it, "
            f"as in 'package.module:{twice[0]}#second', whose arguments are reward_arguments.second"
        )
    if unknown := [name for name in config.reward_arguments if name not in names]:
        raise ValueError(
            f"reward_arguments.{unknown[0]}: no reward has this name; rewards are {', '.join(names)}"
        )
    if config.aggregate_rewards == "normalised" and config.scale_rewards != "group":
        raise ValueError(
            f"aggregate_rewards=normalised compares within groups, and scale_rewards is "
            f"{config.scale_rewards}; leave it at group"
        )
    if config.aggregate_rewards == "normalised" and config.reward_kl_weight:
        raise ValueError(
            f"reward_kl_weight is {config.reward_kl_weight} and aggregate_rewards normalised, which compares "
            "the rewards without the KL; set loss.beta instead, or aggregate_rewards=sum"
        )
    if "kl" in names:
        raise ValueError(
            "rewards names a function kl, as the KL of reward_kl_weight is called in the metrics; call it "
            "otherwise by #NAME behind it"
        )


def _check_division(config: Any) -> None:
    steps, each = config.steps_per_generation, config.gradient_accumulation_steps
    if steps is not None and steps % each:
        raise ValueError(
            f"steps_per_generation is {steps} and gradient_accumulation_steps {each}: each update takes that "
            f"many of the batches; set a multiple of it, such as {-(-steps // each) * each}"
        )


def _check_loss(config: Any) -> None:
    if config.lora is not None and config.lora.dropout:
        raise ValueError(
            f"lora.dropout is {config.lora.dropout}; the policy that is trained must be the one that was "
            "sampled from, so set lora.dropout=0"
        )
    if config.latent_term == "gaussian" and config.updates_on_rollouts == 1:
        raise ValueError(
            "latent_term=gaussian has no gradient in the first update on rollouts, and num_iterations "
            "is 1; set num_iterations above 1, or another latent_term"
        )
    without = "latents=false" if not config.latents else "max_blocks=0" if not config.max_blocks else None
    if config.latent_term != "none" and without:
        raise ValueError(
            f"latent_term is {config.latent_term} and {without}, so that no rollout has latents; leave one "
            "of them out"
        )
    if config.sync_ref_model and (config.lora is not None or not config.needs_reference):
        without = "lora is set: an adapter has no like in the reference to be mixed into; train without lora"
        if config.lora is None:
            without = "no reference model is used; set loss.beta above 0"
        raise ValueError(f"sync_ref_model is true, and {without}, or leave sync_ref_model out")
    coef, highest = config.loss.entropy_coef, config.entropy_coef_max
    if config.entropy_target is not None and not 0 <= coef <= highest:
        raise ValueError(
            f"loss.entropy_coef is {coef}; with entropy_target it begins there and stays from 0 to "
            f"entropy_coef_max = {highest}"
        )


def _check_staleness(config: Any) -> None:
    if not config.rollout_staleness:
        return
    given = f"rollout_staleness is {config.rollout_staleness}"
    if not config.rollout_workers:
        raise ValueError(
            f"{given} and rollout_workers 0: a process that samples by itself does not sample ahead; set "
            "rollout_workers, or leave rollout_staleness out"
        )
    if not config.loss.corrected:
        raise ValueError(
            f"{given}: rollouts of older weights need importance sampling; set loss.sampler_cap=2 (or "
            "loss.sampler_floor), or rollout_staleness=0"
        )
    if config.updates_on_rollouts > 1:
        several = f"num_iterations {config.num_iterations}"
        if config.shares > 1:
            several = f"steps_per_generation {config.steps_per_generation}"
        raise ValueError(
            f"{given} and {several}: rollouts that several updates are made on are not sampled ahead; set "
            "one of them back"
        )
