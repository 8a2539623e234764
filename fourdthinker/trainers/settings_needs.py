"""Settings of 4DRL that do something only beside others: given without them they are an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fourdthinker.kernels import GrpoOptions


@dataclass(frozen=True)
class _Need:
    """What settings need to have an effect.

    Attributes:
        keys: the settings, dotted.
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
    _Need(("train_start",), lambda config: config.latents, "latents is false", "latents=true"),
    _Need(
        ("max_blocks",),
        lambda config: config.latents or config.max_blocks == 0,
        "latents is false",
        "latents=true",
    ),
)


def check_needs(config: Any) -> None:
    """Check that every setting that was given does something.

    One that has its default is let pass: `config.yaml` of a run gives them all.

    Args:
        config: the `GrpoConfig`.

    Raises:
        ValueError: one does nothing, for another one is not set.
    """
    for need in _NEEDS:
        for key in need.keys:
            if not need.met(config) and (value := _given(config, key)) is not None:
                raise ValueError(
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
