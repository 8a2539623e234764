"""How every kernel is launched, by op and by GPU architecture: the one table that a new GPU changes.

tests/compile compiles each kernel for each architecture below with its row; csrc/cuda/find.cmake reads the
numbers of the architectures from this file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

WIDEST = 16384  # columns that one program may hold in registers, on every architecture


@dataclass(frozen=True)
class Launch:
    """Settings of one kernel; 0 where the kernel has no such setting."""

    num_warps: int
    block: int = 0  # columns or positions of one step of a program, at most; a power of two
    rows: int = 0  # rows, or queries, that a step takes together
    span: int = 0  # positions that a program reads, in all
    programs: int = 0  # that fill the GPU
    num_stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        """What Triton takes beside the kernel's arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Architecture:
    shared: int  # bytes of shared memory that the blocks of one multiprocessor have
    rows: Mapping[str, Launch] = field(default_factory=dict)  # those that differ from DEFAULT


DEFAULT = {
    "add_rms_norm": Launch(num_warps=8),  # the whole row is one step
    "add_rms_norm_narrow": Launch(num_warps=4, block=2048),  # rows narrower than block
    "cosine_latent": Launch(num_warps=8),
    "cosine_latent_scale": Launch(num_warps=8),
    "group_advantages": Launch(num_warps=4, block=1024),
    "grpo_token_loss": Launch(num_warps=4, block=256),
    "latent_feedback": Launch(num_warps=8, block=4096),
    "logits_grad": Launch(num_warps=8, block=4096),
    "logits_stats": Launch(num_warps=8, block=4096),
    "pool_latents": Launch(num_warps=8, block=512, rows=8),
    "prefix_decode_merge": Launch(num_warps=4),
    "prefix_decode_own": Launch(num_warps=4, block=64, span=512),
    # span: at least. What a program leaves for the merge is traffic, so there are no more programs than fill
    # the GPU.
    "prefix_decode_prompt": Launch(num_warps=8, block=64, rows=64, span=512, programs=256),
    "prefix_decode_prompt_few": Launch(num_warps=4, block=64, rows=16),  # at most that many queries a group
    "rotary_append": Launch(num_warps=1),
    # The sums over a row go by blocks, so another block samples another id where a rounding error decides.
    "sample_tokens": Launch(num_warps=32, block=8192),
    "silu_mul": Launch(num_warps=4, block=1024),
}

# By compute capability, 90 for sm_90. A GPU that is not listed takes DEFAULT.
ARCHITECTURES = {
    80: Architecture(shared=163 * 1024),
    90: Architecture(shared=227 * 1024),
    100: Architecture(shared=227 * 1024),
}


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def architecture(device: torch.device) -> int | None:
    """90 for an sm_90; None for the CPU, where the interpreter runs. Asked once per device, never waits."""
    if device.type != "cuda":
        return None
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def row(op: str, arch: int | None) -> Launch:
    """The row of ``op`` for an architecture; that of ``DEFAULT`` where it has none."""
    listed = ARCHITECTURES.get(arch) if arch is not None else None
    return DEFAULT[op] if listed is None else listed.rows.get(op, DEFAULT[op])


def settings(op: str, device: torch.device) -> Launch:
    """The row of ``op`` for the GPU that ``device`` is."""
    return row(op, architecture(device))


@contextmanager
def launching(op: str, tensor: Tensor) -> Iterator[Launch]:
    """The settings of ``op``, with the device of ``tensor`` the current one while its kernel is launched.

    Triton launches on the current device, which need not be the tensors'. Nothing waits, so this may be
    captured into a CUDA graph; on the CPU only the settings matter.
    """
    with torch.cuda.device_of(tensor):
        yield settings(op, tensor.device)
