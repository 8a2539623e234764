"""Every kernel is launched with the row that the table has for its GPU, on the device of its tensors."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from fourdthinker.kernels import (
    _gpu_architectures as gpus,
)
from fourdthinker.kernels import (
    add_rms_norm,
    rotary_append_,
    sample_tokens,
    shared_prefix_decode,
    silu_mul,
)
from tests.unit.kernels.syncs import CASES, HIDDEN, KERNELS_ONLY, WEIGHT

KERNELS = {
    name
    for path in Path(gpus.__file__).parent.glob("*.py")
    for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
}


def decode(rows, own, width=16, dtype=torch.float16):
    query, prompt = torch.ones(rows, 1, width, dtype=dtype), torch.ones(1, 1, 4, width, dtype=dtype)
    past = torch.ones(rows, 1, own, width, dtype=dtype)
    lengths = {"prompt_lengths": torch.tensor([4]), "lengths": torch.full((rows,), own)}
    return shared_prefix_decode(query, prompt, prompt, past, past, **lengths, backend="triton")


def rotary():
    query, key, caches = torch.ones(2, 2, 16), torch.ones(2, 1, 16), torch.zeros(2, 2, 1, 4, 16)
    turn = torch.ones(2, 16)
    rotary_append_(query, key, key, turn, turn, caches[0], caches[1], torch.tensor([0, 1]), backend="triton")


def truncated():
    zero = torch.zeros(2, dtype=torch.int64)
    rules = {"seeds": zero, "steps": zero, "temperature": torch.ones(2), "top_p": torch.full((2,), 0.9)}
    sample_tokens(torch.randn(2, 9), **rules, backend="triton")


def norm(width):
    add_rms_norm(torch.ones(2, width), None, torch.ones(width), 1e-6, backend="triton")


def train(name):
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    out = (CASES | KERNELS_ONLY)[name][0](hidden, weight, "triton")
    if out.requires_grad:
        out.sum().backward()


# What runs, and the rows of the table that it takes.
RUNS = {
    "add_rms_norm": (lambda: norm(2048), {"add_rms_norm"}),
    "add_rms_norm narrow": (lambda: norm(2047), {"add_rms_norm_narrow"}),
    "cosine_latent_loss": (lambda: train("cosine_latent_loss"), {"cosine_latent", "cosine_latent_scale"}),
    "decode": (lambda: decode(2, 8), {"prefix_decode_prompt_few", "prefix_decode_own"}),
    "decode many": (lambda: decode(17, 8), {"prefix_decode_prompt", "prefix_decode_own"}),
    "decode wide": (
        lambda: decode(2, 8, 256), {"prefix_decode_prompt_few_wide", "prefix_decode_own_wide"}
    ),
    "decode many wide": (
        lambda: decode(17, 8, 256), {"prefix_decode_prompt_wide", "prefix_decode_own_wide"}
    ),
    "decode float32": (
        lambda: decode(2, 8, dtype=torch.float32),
        {"prefix_decode_prompt_float32", "prefix_decode_own_float32"},
    ),
    "decode long": (
        lambda: decode(1, 513), {"prefix_decode_prompt_few", "prefix_decode_own", "prefix_decode_merge"}
    ),
    "group_advantages": (lambda: train("group_advantages"), {"group_advantages"}),
    "grpo_token_loss": (lambda: train("grpo_token_loss"), {"grpo_token_loss"}),
    "latent_feedback_step_": (lambda: train("latent_feedback_step_"), {"latent_feedback"}),
    "logprobs": (lambda: train("logprobs"), {"logits_stats", "logits_grad"}),
    "pool_latents": (lambda: train("pool_latents"), {"pool_latents"}),
    "rotary_append_": (rotary, {"rotary_append"}),
    "sample_tokens": (lambda: train("sample_tokens"), {"sample_scan", "sample_draw"}),
    "sample_tokens truncated": (truncated, {"sample_scan", "sample_bracket", "sample_list", "sample_draw"}),
    "silu_mul": (lambda: silu_mul(torch.ones(2, 8), torch.ones(2, 8), backend="triton"), {"silu_mul"}),
}  # fmt: skip


@pytest.fixture
def launches(monkeypatch):
    """What is launched, on a GPU of a made-up architecture: (kernel, its row, devices that are entered)."""
    rows = {op: replace(launch, num_warps=1000 + k) for k, (op, launch) in enumerate(gpus.DEFAULT.items())}
    ops = {launch.num_warps: op for op, launch in rows.items()}
    monkeypatch.setitem(gpus.ARCHITECTURES, 999, gpus.Architecture(shared=0, rows=rows))
    monkeypatch.setattr(gpus, "architecture", lambda device: 999)
    seen, entered = [], []

    @contextmanager
    def device_of(tensor):
        entered.append(tensor.device)
        yield
        entered.pop()

    launch = GridExecutor.__call__

    def recorded(self, *args, **kwargs):
        seen.append((self.fn.__name__, ops[kwargs["num_warps"]], list(entered)))
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_a_launch_takes_the_row_of_its_gpu_and_enters_the_device(launches, name):
    call, rows = RUNS[name]
    call()
    assert {row for _, row, _ in launches} == rows
    assert all(entered == [torch.device("cpu")] for _, _, entered in launches), launches


def test_every_row_and_every_kernel_runs_above(launches):
    for call, _ in RUNS.values():
        call()
    assert {row for _, row, _ in launches} == set(gpus.DEFAULT)
    assert {kernel for kernel, _, _ in launches} == KERNELS


def test_the_block_of_an_architecture_is_used(monkeypatch):
    rows = {"silu_mul": gpus.Launch(num_warps=1, block=16)}
    monkeypatch.setitem(gpus.ARCHITECTURES, 999, gpus.Architecture(shared=0, rows=rows))
    monkeypatch.setattr(gpus, "architecture", lambda device: 999)
    blocks = []
    launch = GridExecutor.__call__

    def recorded(self, *args, **kwargs):
        blocks.append((self.grid, kwargs["BLOCK"]))
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    gate, up = torch.randn(3, 40), torch.randn(3, 40)
    got = silu_mul(gate, up, backend="triton")
    assert blocks == [((3, 3), 16)]
    torch.testing.assert_close(got, torch.nn.functional.silu(gate) * up)
