"""Settings that do something only beside others: given without them they are an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.kernels import GrpoOptions


@dataclass(frozen=True)
class _Need:
    """What settings need to have an effect.

    Attributes:
        keys: the settings, dotted; a trainer may lack some.
        met: whether a config has what they need.
        missing: what it has instead.
        remedy: what to set.
    """

    keys: tuple[str, ...]
    met: Callable[[Any], bool]
    missing: str
    remedy: str


_NEEDS = (
    _Need(
        ("cache_video",),
        lambda config: config.cache_dir is not None,
        "cache_dir is null",
        "cache_dir, the folder that the features are kept in",
    ),
    _Need(("override_policy",), lambda config: config.frames is not None, "frames is null", "frames"),
    _Need(
        ("warmup_steps",),
        lambda config: config.lr_scheduler_type != "constant" or config.warmup_steps == 0,
        "lr_scheduler_type is constant",
        "lr_scheduler_type=constant_with_warmup",
    ),
    _Need(
        ("dataloader_prefetch_factor", "dataloader_persistent_workers"),
        lambda config: config.dataloader_num_workers > 0,
        "dataloader_num_workers is 0",
        "dataloader_num_workers above 0",
    ),
    _Need(
        ("log_rollouts_steps",),
        lambda config: config.log_rollouts > 0,
        "log_rollouts is 0",
        "log_rollouts above 0",
    ),
    _Need(
        ("ref_model_sync_steps", "ref_model_mixup_alpha"),
        lambda config: config.sync_ref_model,
        "sync_ref_model is false",
        "sync_ref_model=true",
    ),
    _Need(
        ("latent_weight",),
        lambda config: config.latent_term != "none",
        "latent_term is none",
        "latent_term=cosine or gaussian",
    ),
    _Need(
        ("latent_sigma",),
        lambda config: config.latent_term == "gaussian",
        "latent_term is not gaussian",
        "latent_term=gaussian",
    ),
    _Need(
        ("entropy_step", "entropy_coef_max"),
        lambda config: config.entropy_target is not None,
        "entropy_target is null",
        "entropy_target",
    ),
    _Need(
        ("reward_kl",),
        lambda config: config.reward_kl_weight > 0,
        "reward_kl_weight is 0",
        "reward_kl_weight above 0",
    ),
    _Need(
        ("loss.kl", "loss.kl_weighting"),
        lambda config: config.loss.beta > 0,
        "loss.beta is 0",
        "loss.beta above 0",
    ),
    _Need(
        ("loss.sampler_level", "loss.sampler_excess"),
        lambda config: config.loss.corrected,
        "neither loss.sampler_cap nor loss.sampler_floor is given",
        "one of them",
    ),
    *(
        _Need(
            tuple(f"loss.{f.name}" for f in dataclasses.fields(GrpoOptions) if f.name.startswith(f"{kind}_")),
            lambda config, kind=kind: config.loss.loss_type == kind,  # type: ignore[misc]
            f"loss.loss_type is not {kind}",
            f"loss.loss_type={kind}",
        )
        for kind in ("sapo", "vespo")
    ),
    _Need(
        ("loss.epsilon", "loss.epsilon_high"),
        lambda config: config.loss.term in ("clip", "cispo"),
        "loss.loss_type is sapo or vespo, which clip no ratio",
        "another loss.loss_type",
    ),
    _Need(
        ("loss.epsilon",),
        lambda config: config.loss.term != "cispo" or config.loss.epsilon_high is None,
        "cispo has no lower bound, and loss.epsilon_high is the upper one",
        "another loss.loss_type",
    ),
    _Need(
        ("loss.entropy_norm",),
        lambda config: config.loss.entropy_coef != 0 or config.entropy_target is not None,
        "loss.entropy_coef is 0 and entropy_target null",
        "one of them",
    ),
    _Need(
        (
            "latent_size",
            "latent_pooling",
            "latent_bottleneck",
            "latent_norm",
            "self_feed",
            "sim_loss_weight",
            "train_start",
        ),
        lambda config: config.latents,
        "latents is false",
        "latents=true",
    ),
    _Need(
        ("max_blocks",),
        lambda config: config.latents or config.max_blocks == 0,
        "latents is false",
        "latents=true",
    ),
    _Need(("train_start",), lambda config: config.max_blocks > 0, "max_blocks is 0", "max_blocks above 0"),
)
# Held-out records may also be given in memory, of which settings do not know.
_EVALUATION = _Need(
    ("eval_steps", "per_device_eval_batch_size", "num_generations_eval"),
    lambda config: bool(config.eval_data),
    "eval_data is empty",
    "eval_data",
)


def check_needs(config: Any) -> None:
    """Check that every setting that was given does something.

    One that has its default is let pass: `config.yaml` of a run gives them all.

    Args:
        config: the `DiftConfig` or `GrpoConfig`.

    Raises:
        ConfigError: one does nothing, for another one is not set.
    """
    for need in _NEEDS:
        _check(need, config)


def check_evaluation(config: Any) -> None:
    """Check, for a run without held-out records in memory, the settings of an evaluation likewise.

    Args:
        config: the `DiftConfig` or `GrpoConfig`.

    Raises:
        ConfigError: as `check_needs`.
    """
    _check(_EVALUATION, config)


def _check(need: _Need, config: Any) -> None:
    for key in need.keys:
        if (value := _given(config, key)) is not None and not need.met(config):
            raise ConfigError(
                f"{key} is {value} and does nothing: {need.missing}; set {need.remedy}, or leave it out"
            )


def _given(config: Any, key: str) -> Any:
    """The value of a setting that was given; None where it is the default."""
    section, _, name = key.rpartition(".")
    if (section or name) not in config.model_fields_set:
        return None
    value = getattr(config.loss if section else config, name)
    usual = getattr(GrpoOptions, name) if section else type(config).model_fields[name].default
    return value if value != usual else None
