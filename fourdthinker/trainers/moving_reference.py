"""A reference model that follows the policy (TR-DPO, arXiv 2404.09656), and its form in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fourdthinker.errors import CheckpointError

_FILE = "reference.safetensors"


@torch.no_grad()
def mix(reference: nn.Module, policy: nn.Module, alpha: float) -> None:
    """Move the weights of the reference towards those of the policy.

    Args:
        reference: its weights become (1 - alpha) * own + alpha * policy's.
        policy: of the same structure, with whole weights; what it does not train stays.
        alpha: from 0 to 1.
    """
    for name, weight in _moving(reference, policy).items():
        weight.lerp_(policy.get_parameter(name).to(weight.dtype), alpha)


def save_reference(folder: Path, reference: nn.Module, policy: nn.Module) -> None:
    """Write the weights that move into a checkpoint."""
    moving = _moving(reference, policy)
    save_file({name: w.detach().cpu().contiguous() for name, w in moving.items()}, folder / _FILE)


@torch.no_grad()
def load_reference(folder: Path, reference: nn.Module, policy: nn.Module) -> None:
    """Set the weights that move to what `save_reference` wrote.

    Args:
        folder: of a checkpoint.
        reference: as it was when training began.
        policy: of the same structure.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    try:
        weights = load_file(folder / _FILE)
        for name, weight in _moving(reference, policy).items():
            weight.copy_(weights[name])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / _FILE}: the reference cannot be read ({error}); resume from an earlier checkpoint"
        ) from error


def _moving(reference: nn.Module, policy: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the reference whose like the policy trains."""
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in reference.named_parameters() if name in trained}
