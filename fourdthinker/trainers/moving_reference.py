"""A reference model that follows the policy (TR-DPO, arXiv 2404.09656), and its form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourdthinker.errors import CheckpointError

_FILE = "reference.safetensors"


class MovingReference:
    """The weights that move, in float32: in bfloat16 most steps of a mixture would be rounded away.

    Args:
        reference: on its device; it gets the weights rounded to its own type.
        policy: of the same structure; what it does not train stays.
    """

    def __init__(self, reference: nn.Module, policy: nn.Module) -> None:
        trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
        self._rounded = {name: w.detach() for name, w in reference.named_parameters() if name in trained}
        # Of float32 weights this is the same memory.
        self._wide = {name: weight.float() for name, weight in self._rounded.items()}

    @torch.no_grad()
    def mix(self, policy: nn.Module, alpha: float, masters: Mapping[str, Tensor] | None = None) -> None:
        """Move the weights towards those of the policy: (1 - alpha) * own + alpha * policy's.

        Args:
            policy: with whole weights.
            alpha: from 0 to 1.
            masters: float32 copies of weights of the policy, by name, to be taken instead of these.
        """
        for name, weight in self._wide.items():
            source = (masters or {}).get(name, policy.get_parameter(name))
            weight.lerp_(source.to(weight.dtype), alpha)
        self._round()

    def _round(self) -> None:
        for name, weight in self._rounded.items():
            weight.copy_(self._wide[name])

    def save(self, folder: Path) -> None:
        """Write the float32 weights into a checkpoint."""
        save_file({name: w.cpu().contiguous() for name, w in self._wide.items()}, folder / _FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote.

        Args:
            folder: of a checkpoint.

        Raises:
            CheckpointError: they cannot be read, or are of another model.
        """
        try:
            weights = load_file(folder / _FILE)
            for name, weight in self._wide.items():
                weight.copy_(weights[name])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder / _FILE}: the reference cannot be read ({error}); resume from an earlier checkpoint"
            ) from error
        self._round()
