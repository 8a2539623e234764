"""What a case of the kernels bench is, sizes and random tensors, and the steps that calls are made into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """One table for both kinds of hardware; only these numbers differ."""

    sequences: int
    length: int
    width: int
    vocabulary: int
    latents: int  # rows of the cosine loss
    images: int  # of 256 features each
    sample_rows: int
    groups: int  # of 8 rows
    prompt: int
    dtype: torch.dtype


SIZES = {
    "tiny": Sizes(2, 8, 16, 512, 32, 4, 2, 1, 64, torch.float32),
    "quick": Sizes(2, 64, 64, 8192, 512, 16, 4, 1, 512, torch.float32),
    "cpu": Sizes(4, 128, 256, 32_000, 4096, 256, 16, 2, 2048, torch.float32),
    # A head as large as a model's on a CPU: 512 rows x 1,024 x 151,668.
    "head": Sizes(4, 128, 1024, 151_668, 4096, 256, 16, 2, 2048, torch.float32),
    "head-bf16": Sizes(4, 128, 1024, 151_668, 4096, 256, 16, 2, 2048, torch.bfloat16),
    "cuda": Sizes(16, 512, 2048, 151_936, 32_768, 512, 64, 16, 16_384, torch.bfloat16),
    "wide": Sizes(16, 512, 4096, 151_936, 32_768, 512, 64, 16, 16_384, torch.bfloat16),  # as Liger measures
}


@dataclass
class Case:
    """``calls``: name to what is timed, ours first. ``moved`` bytes and ``flops`` are the floor of ours."""

    op: str
    size: str
    mode: str
    calls: dict[str, Call]
    moved: float = 0.0
    flops: float = 0.0
    dw: bool = False  # whether a weight gradient is among what the peak counts
    given: int = 0  # bytes of hidden states and weights, which the peak above what was held leaves out
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    alike: bool = True  # every call that returns a tensor returns the same loss, which is checked
    without_peak: tuple[str, ...] = ()  # calls that work in memory which is there before them


class Data:
    """Random tensors of a device, the same whatever else is made before them."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, device
        self.generator = torch.Generator(device).manual_seed(0)

    def randn(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        made = torch.randn(*shape, generator=self.generator, device=self.device) * scale
        return made.to(dtype or self.sizes.dtype)

    def ids(self, *shape: int, below: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator, device=self.device)


def trained(loss: Callable[..., Tensor], *leaves: Tensor) -> Call:
    """A step: the loss and its gradients in those of ``leaves`` that require one, freed again at its end."""

    def step() -> Tensor:
        value = loss()
        value.backward()
        for leaf in leaves:
            leaf.grad = None
        return value.detach()

    return step


def without_grad(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def present(calls: dict[str, Call | None]) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls there are, and why the others are not: ``peers`` and the arguments decide."""
    why = {
        "torch.compile": "left out", "Liger": "not installed, or needs a GPU",
        "Liger, not compiled": "not installed",
        "TRL fused head": "not installed: pip install trl",
        "TRL fused": "not installed (pip install trl), or needs a GPU",
        # 0.9.1 asks for transformers below 5.11, so no extra can hold it.
        "verl fused head": "not installed (pip install --no-deps verl), or needs a GPU",
    }  # fmt: skip
    missing = {name: why.get(name, "not in this torch") for name, call in calls.items() if call is None}
    return {name: call for name, call in calls.items() if call is not None}, missing


def step(call: Callable[..., Tensor] | None, leaves: tuple[Tensor, ...], *arguments: Tensor) -> Call | None:
    return None if call is None else trained(lambda: call(*arguments), *leaves)
