"""Learning rates of the parts of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fourdthinker.backbones.parts import PARTS, part_names
from fourdthinker.errors import ConfigError
from fourdthinker.trainers.settings_sections import LearningRates

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

_REMEDIES = {
    "model": "leave it out",
    "embeddings": "set lora.train_embeddings=true, or leave it out",
    "projector": "set freeze_vision=false, or leave it out",
    "tower": "set freeze_vision=false, or leave it out",
}


def freeze_parts(backbone: Backbone, rates: LearningRates | None) -> None:
    """Take parts whose rate is 0 out of the training.

    Args:
        backbone: of which all that may be trained requires gradients.
        rates: of its parts.

    Raises:
        ConfigError: a rate of a part that is not trained, or no part is left.
    """
    if rates is None:
        return
    names = part_names(backbone)
    trained = {names[id(p)] for p in backbone.parameters() if p.requires_grad}
    given = {part: getattr(rates, part) for part in PARTS}
    for part, rate in given.items():
        if rate and part not in trained:
            raise ConfigError(
                f"learning_rates.{part} is {rate:g}, and no weight of this part is trained; {_REMEDIES[part]}"
            )
    frozen = {part for part, rate in given.items() if rate == 0}
    if trained <= frozen:
        raise ConfigError(
            "learning_rates: all parts that are trained have rate 0, so that nothing would be learnt; give "
            "one of them another"
        )
    for parameter in backbone.parameters():
        if names[id(parameter)] in frozen:
            parameter.requires_grad_(False)


def split_groups(optimizer: torch.optim.Optimizer, backbone: Backbone, rates: LearningRates | None) -> None:
    """Give each part its rate: its parameters become groups of their own, in the order of `PARTS`.

    Args:
        optimizer: of the parameters of the model, before its first step and its schedule.
        backbone: the model.
        rates: of its parts; a part without one keeps the rate of the optimizer.
    """
    if rates is None:
        return
    names, groups = part_names(backbone), []
    for group in optimizer.param_groups:
        for part in PARTS:
            mine = [p for p in group["params"] if names[id(p)] == part]
            rate = getattr(rates, part)
            if mine:
                groups.append(group | {"params": mine, "lr": group["lr"] if rate is None else rate})
    optimizer.param_groups[:] = groups
