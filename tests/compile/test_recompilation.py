"""No op asks for another binary when the numbers of rows, tokens or positions change.

The launches go through Triton's own specialisation, for a GPU that is not there; nothing is compiled or run.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fourdthinker.kernels import GrpoOptions

NAMES = [path.stem for path in (Path(__file__).parents[2] / "kernels").glob("[!_]*.py")]
OPS = {name: importlib.import_module(f"fourdthinker.kernels.{name}") for name in NAMES}
WIDTH, VOCABULARY = 64, 320
Keys = set[tuple[str, str]]


@pytest.fixture
def asked(monkeypatch) -> Keys:
    """Names and specialisations of the binaries that launches ask for."""
    keys: Keys = set()
    target = GPUTarget("cuda", 90, 32)
    fake = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    monkeypatch.setattr(driver, "_active", fake)
    for name in (*NAMES, "_head", "_head_arguments"):
        module = importlib.import_module(f"fourdthinker.kernels.{name}")
        if hasattr(module, "use_triton"):
            monkeypatch.setattr(module, "use_triton", lambda backend, tensor: True)

    def hook(*, key: str, fn: SimpleNamespace, **rest: object) -> bool:
        keys.add((fn.jit_function.__qualname__, str(key)))
        return True  # do not compile

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
    return keys


def pool_latents(n: int) -> None:
    features = torch.randn(4 * n + 7, WIDTH)
    OPS["pool_latents"].pool_latents(features, torch.tensor([4 * n + 7]), 4)


def cosine_latent_loss(n: int) -> None:
    hidden, target = torch.randn(n + 1, WIDTH, requires_grad=True), torch.randn(n, WIDTH)
    OPS["cosine_latent_loss"].cosine_latent_loss(hidden, target, torch.arange(1, n + 1))[0].backward()


def latent_feedback(n: int) -> None:
    module = OPS["latent_grammar"]
    state = module.latent_state(n, WIDTH, n, dtype=torch.float32, device="cpu")
    module.latent_feedback_step_(
        torch.zeros(n, dtype=torch.int64), torch.randn(n, WIDTH), torch.randn(n + 9, WIDTH), **state,
        eos_ids=torch.tensor([n]), pad_id=n, start_id=n + 1, end_id=n + 2, fill_id=0, latent_size=n,
    )  # fmt: skip


def sample_tokens(n: int) -> None:
    zero = torch.zeros(n, dtype=torch.int64)
    with contextlib.suppress(ValueError):  # what was not computed looks like bad logits
        OPS["sample_tokens"].sample_tokens(
            torch.randn(n, VOCABULARY), seeds=zero, steps=zero, temperature=torch.ones(n),
            top_k=torch.ones(n, dtype=torch.int32), top_p=torch.ones(n), forbidden=zero[:, None],
        )  # fmt: skip


def group_advantages(n: int) -> None:
    for scale in OPS["group_advantages"].SCALES:
        OPS["group_advantages"].group_advantages(torch.randn(8 * n), 8, scale=scale)


def grpo_token_loss(n: int) -> None:
    for shape, advantages in (((n, 5), (n,)), ((3, n), (3, n)), ((2, 700 + n), (2,))):
        values = torch.randn(shape)
        OPS["grpo_token_loss"].grpo_token_loss(
            values, torch.ones(advantages), values > 0, old_logprobs=values, ref_logprobs=values,
            options=GrpoOptions(beta=1 / n, epsilon=1 / n),
        )  # fmt: skip


def given_logits(n: int) -> None:
    target = torch.zeros(n, n, dtype=torch.int64)
    whole = torch.randn(n, n + 1, VOCABULARY)
    for logits, ids in ((whole[:, :-1], target), (whole[:, 0], target[0])):
        leaf = logits.detach().requires_grad_()
        OPS["cross_entropy"].cross_entropy(leaf, ids, temperature=n + 0.5, num_items=n).backward()
    OPS["grpo_loss"].grpo_loss(whole[:, 1:], target, advantages=torch.ones(n), mask=target == 0)


def linear_head(n: int) -> None:
    input, weight = torch.randn(2, n, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH)
    target, mask = torch.zeros(2, n, dtype=torch.int64), torch.ones(2, n, dtype=torch.bool)
    options = {"temperature": n + 0.5, "chunk_rows": n}
    OPS["linear_cross_entropy"].linear_cross_entropy(input, weight, target, **options).backward()
    OPS["linear_logprobs"].linear_logprobs(input, weight, target, **options).sum().backward()
    OPS["linear_grpo_loss"].linear_grpo_loss(
        input, weight, target, advantages=torch.ones(2), mask=mask, **options
    )[0].backward()


def shared_prefix_decode(n: int) -> None:
    query, prompt, own = (
        torch.randn(8 * n, 4, 64),
        torch.randn(n, 2, 16 * n, 64),
        torch.randn(8 * n, 2, n, 64),
    )
    lengths = {"prompt_lengths": torch.full((n,), n), "lengths": torch.full((8 * n,), n)}
    OPS["shared_prefix_decode"].shared_prefix_decode(query, prompt, prompt, own, own, **lengths)


CALLS: list[Callable[[int], None]] = [
    pool_latents, cosine_latent_loss, latent_feedback, sample_tokens, group_advantages, grpo_token_loss,
    given_logits, linear_head, shared_prefix_decode,
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_row_counts_and_lengths_do_not_recompile(call, asked):
    call(5)
    first = set(asked)
    assert first
    for n in (1, 2, 3, 16, 17, 48):
        call(n)
        more = {name for name, _ in asked - first}
        assert not more, f"n={n} asks for other binaries of {more}"


def test_another_width_does_recompile(asked):
    pool_latents(5)
    before = len(asked)
    OPS["pool_latents"].pool_latents(torch.randn(9, WIDTH * 2), torch.tensor([9]), 4)
    assert len(asked) == before + 1
