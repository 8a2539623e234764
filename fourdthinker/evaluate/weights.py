"""What tells the weights of one model from those of another: answers are reused only with the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

_ROW = 1024  # words that are added up together


def weights_of(model: nn.Module) -> dict[str, str]:
    """What an evaluation's settings say of the weights.

    Args:
        model: with its weights whole, on any device.

    Returns:
        weights: `weights_digest`. dtype: of the parameters, as torch names it; several are sorted.
    """
    dtypes = {str(value.dtype).removeprefix("torch.") for value in model.parameters()}
    return {"weights": weights_digest(model), "dtype": " ".join(sorted(dtypes))}


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """A digest of all weights as they are in memory, whatever the files that they came from.

    Every bit counts: a tensor is taken as words of 8 bytes in rows of 1024, and the sums of the rows and of
    the columns, modulo 2^64, are hashed. They are made where the tensor is, and are the same on every device.

    Args:
        model: with its weights whole.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        for part in _sums(value.detach()):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sums(value: Tensor) -> Iterator[Tensor]:
    flat = value.reshape(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()  # words begin at multiples of their size
    flat = flat.view(torch.uint8)
    whole = len(flat) // (8 * _ROW) * (8 * _ROW)
    words = flat[:whole].view(torch.int64).view(-1, _ROW)
    yield from (words.sum(0), words.sum(1), flat[whole:])
