"""Keyword arguments of the GRPO ops from one flat dictionary, and every kind of loss by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fourdthinker.kernels import LOSS_TYPES, RATIO_LEVELS, GrpoOptions

KINDS = [f"{loss_type} {level}" for loss_type in LOSS_TYPES for level in RATIO_LEVELS]
NAMES = {option.name for option in fields(GrpoOptions)}


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
