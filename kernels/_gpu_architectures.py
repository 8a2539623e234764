"""How every kernel is launched, by op and by GPU architecture: the one table that a new GPU changes.

tests/compile compiles each kernel for each architecture below with its row; csrc/cuda/find.cmake reads the
numbers of the architectures from this file. Rows that were measured, by ``python -m bench kernels --tune``,
stand in tuned.json beside it and come first.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    resident: int = 0  # programs that one multiprocessor holds at a time
    num_stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        """What Triton takes beside the kernel's arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Architecture:
    # Bytes of shared memory that the blocks of one multiprocessor have, of which each wastes 1 KB.
    shared: int
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
    # Attention in 16 bits up to a head size of 128, wider, and in float32, whose dots take no tensor cores:
    # more queries than 16 at a time would spill.
    "prefix_decode_own": Launch(num_warps=4, block=64, span=512),
    "prefix_decode_own_wide": Launch(num_warps=4, block=32, span=512),
    "prefix_decode_own_float32": Launch(num_warps=4, block=16, span=512, num_stages=2),
    # span: at least. What a program leaves for the merge is traffic, so there are no more programs than are
    # resident.
    "prefix_decode_prompt": Launch(num_warps=4, block=32, rows=64, span=512, resident=2),
    "prefix_decode_prompt_wide": Launch(num_warps=8, block=32, rows=64, span=512, resident=1, num_stages=2),
    "prefix_decode_prompt_float32": Launch(
        num_warps=4, block=16, rows=16, span=512, resident=3, num_stages=2
    ),
    # at most that many queries a group
    "prefix_decode_prompt_few": Launch(num_warps=4, block=64, rows=16, span=512, resident=2),
    "prefix_decode_prompt_few_wide": Launch(num_warps=4, block=32, rows=16, span=512, resident=2),
    "rotary_append": Launch(num_warps=1),
    "sample_draw": Launch(num_warps=16),
    # The sums over a row go by blocks, so another block samples another id where a rounding error decides.
    "sample_scan": Launch(num_warps=8, block=8192),
    "sample_bracket": Launch(num_warps=8),
    "sample_list": Launch(num_warps=8),  # parts of the scan's block
    "silu_mul": Launch(num_warps=4, block=1024),
}

_HOPPER = {
    "prefix_decode_prompt": replace(DEFAULT["prefix_decode_prompt"], resident=3),
    "prefix_decode_prompt_wide": replace(DEFAULT["prefix_decode_prompt_wide"], num_stages=3),
    "prefix_decode_prompt_few": replace(DEFAULT["prefix_decode_prompt_few"], resident=3),
    "prefix_decode_prompt_few_wide": replace(DEFAULT["prefix_decode_prompt_few_wide"], resident=3),
}

# By compute capability, 90 for sm_90. A GPU that is not listed takes DEFAULT.
ARCHITECTURES = {
    # With 16 warps sample_draw has 128 registers a thread, and what triton 3.6 makes of it spills; so does
    # grpo_token_loss of SAPO with two positions a thread.
    80: Architecture(
        shared=164 * 1024,
        rows={"sample_draw": Launch(num_warps=8), "grpo_token_loss": Launch(num_warps=4, block=128)},
    ),
    90: Architecture(shared=228 * 1024, rows=_HOPPER),
    # With two positions a thread, the ratio of a sequence spills there.
    100: Architecture(shared=228 * 1024, rows=_HOPPER | {"grpo_token_loss": Launch(num_warps=4, block=128)}),
}
# GPUs that take DEFAULT with less memory. The extension is not built for them, the kernels must fit.
SMALLER = {arch: Architecture(shared=100 * 1024) for arch in (86, 89, 120)}

TUNED_FILE = Path(__file__).with_name("tuned.json")


def read_tuned(path: Path) -> dict[int, dict[str, Launch]]:
    """Measured rows by compute capability, from a file of ``{"90": {"silu_mul": {"num_warps": 4, ...}}}``."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return {int(arch): {op: Launch(**row) for op, row in rows.items()} for arch, rows in held.items()}


TUNED = read_tuned(TUNED_FILE)


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def architecture(device: torch.device) -> int | None:
    """90 for an sm_90; None for the CPU, where the interpreter runs. Asked once per device, never waits."""
    if device.type != "cuda":
        return None
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Of a GPU, asked once per device; 16 for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return 16
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


def row(op: str, arch: int | None) -> Launch:
    """The row of ``op`` for an architecture: the measured one, its own, or that of ``DEFAULT``."""
    if arch is None:
        return DEFAULT[op]
    listed = ARCHITECTURES.get(arch)
    usual = DEFAULT[op] if listed is None else listed.rows.get(op, DEFAULT[op])
    return TUNED.get(arch, {}).get(op, usual)


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
