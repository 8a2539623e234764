"""float32 master weights of a model that is trained in bfloat16.

A bfloat16 weight has 8 significant bits, so that an update below 1/512 of it is rounded away: at a learning
rate of 1e-6 nearly every one. The optimizer therefore updates float32 copies, and the model gets them rounded
after each step. DeepSpeed keeps such copies itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fourdthinker.errors import CheckpointError, ConfigError

MASTERS = "masters.safetensors"  # in checkpoint-N


class MasterWeights:
    """float32 copies of the trained bfloat16 parameters of a model; there may be none.

    Args:
        model: on the device that it is trained on.

    Raises:
        ConfigError: a trained parameter is float16.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if any(p.dtype == torch.float16 for p in trained.values()):
            raise ConfigError(
                "dtype: the weights are float16, in which small gradients become 0; set dtype=bfloat16 or "
                "dtype=float32"
            )
        self.half = {name: p for name, p in trained.items() if p.dtype == torch.bfloat16}
        self.wide = {name: nn.Parameter(p.detach().float()) for name, p in self.half.items()}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a new optimizer of the model's parameters update the copies instead."""
        if not self.half:
            return
        wide = {id(p): self.wide[name] for name, p in self.half.items()}
        for group in optimizer.param_groups:
            group["params"] = [wide.get(id(p), p) for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: self._take_gradients())
        optimizer.register_step_post_hook(lambda *_: self._give_weights())

    def _take_gradients(self) -> None:
        for name, parameter in self.half.items():
            gradient = parameter.grad
            self.wide[name].grad = None if gradient is None else gradient.float()

    @torch.no_grad()
    def _give_weights(self) -> None:
        for name, parameter in self.half.items():
            parameter.copy_(self.wide[name])
            self.wide[name].grad = None

    def save(self, folder: Path) -> None:
        """Write the copies into a checkpoint folder; nothing when there are none."""
        if self.half:
            save_file({name: p.detach() for name, p in self.wide.items()}, folder / MASTERS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the copies of a checkpoint folder, and give the model its weights.

        Raises:
            CheckpointError: they are missing, unreadable or of another model.
        """
        if not self.half:
            return
        path = folder / MASTERS
        try:
            with safe_open(path, framework="pt") as file:
                if set(file.keys()) != set(self.wide):
                    raise CheckpointError(
                        f"{path} holds the weights of other parameters than are trained now; go on with the "
                        "settings of that run"
                    )
                for name, parameter in self.wide.items():
                    parameter.copy_(file.get_tensor(name))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: the float32 weights cannot be read ({error}); go on from a checkpoint that was "
                "trained in bfloat16 without DeepSpeed, or set dtype=float32"
            ) from error
        self._give_weights()
