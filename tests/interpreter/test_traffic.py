"""Bytes moved and kernels launched by every op, against floors that are arithmetic on shapes.

A floor counts what must be read and written once; an op may move a tenth more. That the floors can fail is
shown on kernels that read everything twice.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from tests.interpreter.counting import copy_with_doubled_reads, counting
from tests.unit.kernels.options import with_options

FOLDER = Path(__file__).parents[2] / "kernels"
F32, I64 = 4, 8
Load = Callable[[str], ModuleType]  # finds a file of the folder by name


@dataclass(frozen=True)
class Case:
    run: Callable[[], object]
    floor: float  # bytes
    launches: list[str]


def randn(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def pool_latents(load: Load) -> Case:
    counts, width = torch.tensor([40, 97, 64]), 256
    features = randn(201, width)
    kept = sum(n // 4 * 4 for n in counts.tolist())
    return Case(
        lambda: load("pool_latents").pool_latents(features, counts, 4, backend="triton"),
        floor=(kept + 3 * 4) * width * F32,  # every feature that is pooled once
        launches=["pool_latents_kernel"],
    )


def cosine(load: Load, upstream: float) -> Case:
    rows, latents, width = 60, 24, 512
    hidden, target, index = randn(rows, width, grad=True), randn(latents, width), torch.arange(2, 50, 2)

    def run() -> None:
        loss = load("cosine_latent_loss").cosine_latent_loss(hidden, target, index, backend="triton")[0]
        torch.autograd.grad(loss, hidden, torch.tensor(upstream))

    # 2 N H read, N H written, and the gradient of all rows cleared; an upstream gradient other than 1 goes
    # over the rows of the latents once more.
    again = 0 if upstream == 1 else 2 * latents
    return Case(
        run,
        floor=(3 * latents + rows + again) * width * F32,
        launches=["cosine_latent_kernel", "cosine_latent_scale_kernel"],
    )


def latent_feedback_step(load: Load) -> Case:
    rows, width = 8, 1024
    module = load("latent_grammar")
    embedding, hidden = randn(30, width), randn(rows, width)
    state = module.latent_state(rows, width, 4, dtype=torch.float32, device="cpu")
    state["phase"] = torch.tensor([0, 0, 0, 1, 2, 1, 0, 1], dtype=torch.int32)
    sampled, eos = torch.full((rows,), 3), torch.tensor([1])
    recorded = int((state["phase"] > 0).sum())
    return Case(
        lambda: module.latent_feedback_step_(
            sampled, hidden, embedding, **state, eos_ids=eos, pad_id=20, start_id=21, end_id=22, fill_id=0,
            latent_size=2, backend="triton",
        ),
        floor=(2 * rows + recorded) * width * F32,  # B H read, B H written, and what goes into the history
        launches=["latent_feedback_kernel"],
    )  # fmt: skip


def sample_tokens(load: Load, extra: str) -> Case:
    rows, vocabulary = 2, 151_936
    logits, zero = randn(rows, vocabulary) * 3, torch.zeros(rows, dtype=torch.int64)
    more = {
        "forbidden": {"forbidden": torch.tensor([[3, 5, -1]]).repeat(rows, 1)},
        "truncated": {
            "top_k": torch.full((rows,), 50, dtype=torch.int32),
            "top_p": torch.full((rows,), 0.9),
            "min_p": torch.full((rows,), 0.05),
        },
    }.get(extra, {})
    # Once for the sums, and the part that is drawn from; to truncate once more.
    truncated, block = extra == "truncated", load("_gpu_architectures").DEFAULT["sample_scan"].block
    reads = 1 + truncated + block / vocabulary
    return Case(
        lambda: load("sample_tokens").sample_tokens(
            logits, seeds=zero, steps=zero, temperature=torch.ones(rows), **more, backend="triton"
        ),
        floor=reads * rows * vocabulary * F32,
        launches=[
            "sample_scan_kernel",
            *["sample_bracket_kernel", "sample_list_kernel"] * truncated,
            "sample_draw_kernel",
        ],
    )


def group_advantages(load: Load) -> Case:
    rewards = randn(64 * 8)
    return Case(
        lambda: load("group_advantages").group_advantages(rewards, 8, backend="triton"),
        floor=2 * rewards.numel() * F32,
        launches=["group_advantages_kernel"],
    )


def grpo_token_loss(load: Load, kind: str, everything: bool) -> Case:
    rows, length = 3, 3000
    mask = torch.ones(rows, length, dtype=torch.bool)
    names = ("old_logprobs", "ref_logprobs", "sampler_logprobs") if everything else ()
    leaf, others = randn(rows, length, grad=True), {name: randn(rows, length) for name in names}
    options = {"entropy": randn(rows, length)} if everything else {}
    terms = {"beta": 0.1, "entropy_coef": 0.1, "sampler_cap": 2.0} if everything else {}

    def run() -> None:
        chosen = with_options(kind, load("_grpo_losses").GrpoOptions, **options, **terms)
        loss = load("grpo_token_loss").grpo_token_loss(
            leaf, randn(rows), mask, **others, **chosen, backend="triton"
        )[0]
        loss.backward()

    tokens = rows * length
    read = (1 + len(names) + bool(options)) * F32 + 1  # log-probabilities, entropy, the mask
    written = (1 + bool(options)) * F32  # the slope of each leaf
    again = 0
    if kind.startswith("grpo"):
        again = 1  # a share needs the length of the sequence
    if "sequence" in kind:
        again += 2 * F32 if everything else 0  # the mean log ratio, before any term
        again += (3 * F32 if everything else F32) + 1  # the sum of slopes, before any gradient
    scaled = (1 + bool(options)) * 2 * F32  # torch multiplies the slopes by the upstream gradient
    return Case(run, floor=tokens * (read + again + written + scaled), launches=["grpo_token_loss_kernel"])


def logits_case(load: Load, op: str, dtype: torch.dtype, inplace: bool = False) -> Case:
    rows, length, vocabulary = 2, 6, 8192
    logits = randn(rows, length, vocabulary).to(dtype).requires_grad_()
    target = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[:, ::3] = False
    kept, all_rows = int(mask.sum()), mask.numel()
    row = vocabulary * logits.element_size()
    advantages, ref = torch.ones(rows), randn(rows, length)

    def run() -> None:
        module = load(op)
        options = {"inplace_backward": inplace, "backend": "triton"}
        if op == "logprobs":
            values, entropy = module.logprobs(logits, target, mask=mask, return_entropy=True, **options)
            loss = values.sum() + entropy.sum()
        elif op == "cross_entropy":
            loss = module.cross_entropy(logits, torch.where(mask, target, -100), **options)
        else:
            chosen = with_options(kind, load("_grpo_losses").GrpoOptions, beta=0.1, entropy_coef=0.1)
            loss = module.grpo_loss(
                logits, target, advantages=advantages, mask=mask, ref_logprobs=ref, **chosen, **options
            )[0]
        torch.autograd.grad(loss, logits)

    op, _, kind = op.partition(" ")
    token_loss = ["grpo_token_loss_kernel"] if op == "grpo_loss" else []
    # Two reads and one write of the rows that count; the others cost the zeros of their gradient.
    return Case(
        run,
        floor=(3 * kept + (all_rows - kept)) * row,
        launches=["logits_stats_kernel", *token_loss, "logits_grad_kernel"],
    )


def linear(load: Load, op: str) -> Case:
    """What the kernels do to logits that a matmul has written; the matmuls are flops, not bytes."""
    rows, width, vocabulary, chunk = 12, 2, 8192, 4
    leaves = [randn(1, rows, width, grad=True), randn(vocabulary, width, grad=True)]
    target, mask = torch.zeros(1, rows, dtype=torch.int64), torch.ones(1, rows, dtype=torch.bool)
    mask[0, ::3] = False
    kept = int(mask.sum())
    chunks = math.ceil(kept / chunk)
    op, _, kind = op.partition(" ")

    def run() -> None:
        module, options = load(op), {"chunk_rows": chunk, "backend": "triton"}
        if op == "linear_cross_entropy":
            loss = module.linear_cross_entropy(*leaves, torch.where(mask, target, -100), **options)
        elif op == "linear_logprobs":
            loss = module.linear_logprobs(*leaves, target, mask=mask, **options).sum()
        else:
            chosen = with_options(kind, load("_grpo_losses").GrpoOptions)
            loss = module.linear_grpo_loss(
                *leaves, target, advantages=torch.ones(1), mask=mask, **chosen, **options
            )[0]
        torch.autograd.grad(loss, leaves)

    # One read for the log-probability, one read and write that turns the chunk into its gradient; a
    # sequence-level ratio reads all logits once more before.
    passes = 4 if "sequence" in kind else 3
    launches = ["logits_stats_kernel"] * chunks if "sequence" in kind else []
    if op == "linear_logprobs":
        launches = ["logits_stats_kernel"] * chunks + ["logits_grad_kernel"] * chunks
    else:
        launches += ["logits_stats_kernel", "logits_grad_kernel"] * chunks
    return Case(run, floor=passes * kept * vocabulary * F32, launches=launches)


def shared_prefix_decode(load: Load) -> Case:
    # One of the 16 groups and one of the 2 key-value heads of a batch whose prompts of 16,384 positions are
    # split in 8 to fill a GPU; and half of its length.
    size, heads, prompt, own, width = 8, 8, 8192, 40, 16
    query = randn(size, heads, width).half()
    cache = [torch.ones(1, 1, prompt, width, dtype=torch.float16) for _ in range(2)]
    cache += [torch.ones(size, 1, own, width, dtype=torch.float16) for _ in range(2)]
    prompt_lengths, lengths = torch.tensor([prompt - 100]), torch.full((size,), 33)
    positions = int(prompt_lengths.sum()) + int(lengths.sum())  # the prompt's once for all of the group

    def run() -> None:
        module = load("shared_prefix_decode")
        with mock.patch.object(module, "multiprocessors", return_value=2):
            module.shared_prefix_decode(
                query, *cache, prompt_lengths=prompt_lengths, lengths=lengths, backend="triton"
            )

    floor = (2 * positions + 3 * size * heads) * width * 2  # both launches read the queries; output
    return Case(run, floor, ["prefix_decode_prompt_kernel", "prefix_decode_own_kernel"])


def add_rms_norm(load: Load) -> Case:
    rows, width = 6, 512
    x, residual, weight = randn(rows, width), randn(rows, width), randn(width)
    return Case(
        lambda: load("add_rms_norm").add_rms_norm(x, residual, weight, 1e-6, backend="triton"),
        floor=(4 * rows + rows)
        * width
        * F32,  # both in, both out; the weight, which a GPU finds in its cache
        launches=["add_rms_norm_kernel"],
    )


def silu_mul(load: Load) -> Case:
    gate, up = randn(6, 512), randn(6, 512)
    return Case(
        lambda: load("silu_mul").silu_mul(gate, up, backend="triton"),
        floor=3 * gate.numel() * F32,
        launches=["silu_mul_kernel"],
    )


def rotary_append(load: Load) -> Case:
    rows, heads, kv_heads, width = 4, 16, 2, 64
    query, key, value = randn(rows, heads, width), randn(rows, kv_heads, width), randn(rows, kv_heads, width)
    cos, sin, caches = randn(rows, width), randn(rows, width), randn(2, rows, kv_heads, 9, width)
    return Case(
        lambda: load("rotary_append").rotary_append_(
            query, key, value, cos, sin, *caches, torch.full((rows,), 3), backend="triton"
        ),
        # Every head is loaded twice, once with its halves exchanged, and cos and sin for each: a few hundred
        # bytes, out of the first cache. Then what is stored, and the values in and out.
        floor=rows * (5 * (heads + kv_heads) + 2 * kv_heads) * width * F32,
        launches=["rotary_append_kernel"],
    )


CASES: dict[str, Callable[[Load], Case]] = {
    "pool_latents": pool_latents,
    "cosine_latent_loss": lambda load: cosine(load, 1.0),
    "cosine_latent_loss, scaled": lambda load: cosine(load, 0.5),
    "latent_feedback_step_": latent_feedback_step,
    "sample_tokens": lambda load: sample_tokens(load, ""),
    "sample_tokens, forbidden": lambda load: sample_tokens(load, "forbidden"),
    "sample_tokens, truncated": lambda load: sample_tokens(load, "truncated"),
    "group_advantages": group_advantages,
    "grpo_token_loss grpo": lambda load: grpo_token_loss(load, "grpo token", True),
    "grpo_token_loss dapo": lambda load: grpo_token_loss(load, "dapo token", False),
    "grpo_token_loss grpo sequence": lambda load: grpo_token_loss(load, "grpo sequence", True),
    "logprobs": lambda load: logits_case(load, "logprobs", torch.float32),
    "logprobs, in place": lambda load: logits_case(load, "logprobs", torch.float32, inplace=True),
    "cross_entropy": lambda load: logits_case(load, "cross_entropy", torch.float32),
    "cross_entropy, bf16": lambda load: logits_case(load, "cross_entropy", torch.bfloat16),
    "grpo_loss dapo": lambda load: logits_case(load, "grpo_loss dapo token", torch.float32),
    "grpo_loss grpo sequence": lambda load: logits_case(load, "grpo_loss grpo sequence", torch.bfloat16),
    "linear_cross_entropy": lambda load: linear(load, "linear_cross_entropy"),
    "linear_logprobs": lambda load: linear(load, "linear_logprobs"),
    "linear_grpo_loss dapo": lambda load: linear(load, "linear_grpo_loss dapo token"),
    "linear_grpo_loss grpo sequence": lambda load: linear(load, "linear_grpo_loss grpo sequence"),
    "shared_prefix_decode": shared_prefix_decode,
    "add_rms_norm": add_rms_norm,
    "silu_mul": silu_mul,
    "rotary_append_": rotary_append,
}


def moved(name: str, case: Case) -> tuple[int, list[str]]:
    with counting() as traffic:
        case.run()
    return traffic.total if not name.startswith(
        "linear"
    ) else traffic.loaded + traffic.stored, traffic.launches


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_launches(name):
    case = CASES[name](lambda file: importlib.import_module(f"fourdthinker.kernels.{file}"))
    total, launches = moved(name, case)
    assert launches == case.launches
    assert 0.999 * case.floor <= total <= 1.1 * case.floor, f"{total / case.floor:.3f} times the floor"


@pytest.fixture(scope="module")
def doubled(tmp_path_factory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("doubled")
    copy_with_doubled_reads(FOLDER, folder / "doubled_reads")
    sys.path.insert(0, str(folder))
    try:
        yield lambda file: importlib.import_module(f"doubled_reads.{file}")
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("name", CASES)
def test_a_doubled_read_is_seen(name, doubled):
    case = CASES[name](doubled)
    total, _ = moved(name, case)
    assert total > 1.1 * case.floor, f"only {total / case.floor:.3f} times the floor"
