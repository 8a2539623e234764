"""Keyword arguments of the GRPO ops from one flat dictionary, and every kind of loss by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fourdthinker.kernels import LOSS_TYPES, RATIO_LEVELS, GrpoOptions

KINDS = [
    f"{loss_type} {level}"
    for loss_type in LOSS_TYPES
    for level in RATIO_LEVELS
    if (loss_type, level) != ("vespo", "sequence")  # which is refused
]
TERMS = {loss_type: GrpoOptions(loss_type=loss_type, max_length=1).term for loss_type in LOSS_TYPES}
NAMES = {option.name for option in fields(GrpoOptions)}


def fits(kind: str, options: dict[str, Any]) -> bool:
    """Whether the kind of loss takes these options."""
    loss_type, level = kind.split()
    if options.get("delta") is not None and TERMS[loss_type] != "clip":
        return False
    if loss_type == "vespo" and options.get("sampler_level", "token") != "token":
        return False
    per_token = level == "token" and loss_type != "vespo"
    return per_token or options.get("kl_weighting", "none") == "none"


def with_options(
    kind: str = "grpo token", make: type[GrpoOptions] = GrpoOptions, **given: Any
) -> dict[str, Any]:
    """``given`` with those that are options of the loss gathered in ``options``.

    Args:
        kind: one of ``KINDS``.
        make: the class of the options; a copy of the kernels has one of its own.
    """
    loss_type, level = kind.split()
    chosen = {name: given.pop(name) for name in NAMES & given.keys()}
    return {**given, "options": make(**{"loss_type": loss_type, "ratio_level": level, **chosen})}
