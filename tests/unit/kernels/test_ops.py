"""What holds for all ops: importable alone, registered once a name, one node each under torch.compile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourdthinker.kernels import (
    GrpoOptions,
    cosine_latent_loss,
    cross_entropy,
    group_advantages,
    grpo_loss,
    grpo_token_loss,
    latent_feedback_step_,
    latent_state,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_logprobs,
    logprobs,
    pool_latents,
    sample_tokens,
    shared_prefix_decode,
)

ROOT = Path(__file__).parents[3]
FILES = sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if path.stem != "__init__")


def test_one_import_name():
    """As a top-level package, which transformers looks for and imports, the folder is empty."""
    code = """
import kernels, sys
assert kernels.__doc__ and not [name for name in vars(kernels) if not name.startswith("__")], vars(kernels)
assert "torch" not in sys.modules
try:
    import kernels.pool_latents
except ImportError as error:
    assert "fourdthinker.kernels" in str(error), error
else:
    raise AssertionError("kernels.pool_latents was imported")
from transformers.utils import is_kernels_available
assert not is_kernels_available()
from fourdthinker.kernels import pool_latents
import torch
ours = [name for name in torch._C._dispatch_get_all_op_names() if "pool_latents" in name]
assert len(ours) == 1, ours
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


def test_names_are_functions_whatever_was_imported_before():
    code = """
import fourdthinker.kernels.linear_grpo_loss, fourdthinker.kernels as kernels, importlib
importlib.import_module("fourdthinker.kernels.pool_latents")
modules = [name for name in kernels.__all__ if isinstance(getattr(kernels, name), type(kernels))]
assert modules == ["launch_settings"], modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


def test_the_folder_knows_nothing_above_it():
    for name in FILES:
        text = (ROOT / "kernels" / f"{name}.py").read_text()
        assert not re.search(r"^\s*(import fourdthinker|from (fourdthinker|\.\.))", text, re.MULTILINE), name


GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(2, 3, 5, generator=GENERATOR)
HEAD = (torch.randn(11, 5, generator=GENERATOR), torch.randint(0, 11, (2, 3), generator=GENERATOR))
IDS = torch.tensor([[0, 4, 2], [3, 1, 0]])
ROWS = torch.arange(6)  # without them, finding the rows is a graph break: their number is data


def feedback(hidden):
    state = latent_state(2, 5, 4, dtype=torch.float32, device="cpu")
    return latent_feedback_step_(
        torch.tensor([0, 9]), hidden[:, 0], torch.ones(11, 5), **state, eos_ids=torch.tensor([1]), pad_id=8,
        start_id=9, end_id=10, fill_id=1, latent_size=2,
    )[2] + state["blocks"][:, None]  # fmt: skip


def sample(logits):
    zero = torch.zeros(2, dtype=torch.int64)
    return sample_tokens(logits, seeds=zero, steps=zero, temperature=torch.ones(2))[1]


def grpo(hidden):
    mask = torch.ones(2, 3, dtype=torch.bool)
    return linear_grpo_loss(hidden, *HEAD, advantages=torch.ones(2), mask=mask, rows=ROWS)[0]


CALLS = {
    "pool_latents": lambda h: pool_latents(h.detach().flatten(0, 1), torch.tensor([4, 2]), 2),
    "cosine_latent_loss": lambda h: cosine_latent_loss(h, torch.ones(2, 5), torch.tensor([1, 5]))[0],
    "linear_cross_entropy": lambda h: linear_cross_entropy(h, *HEAD, rows=ROWS),
    "linear_logprobs": lambda h: linear_logprobs(h, *HEAD, return_entropy=True)[1],
    "linear_grpo_loss": grpo,
    "logprobs": lambda h: logprobs(h, IDS, return_entropy=True)[1],
    "cross_entropy": lambda h: cross_entropy(h, IDS),
    "cross_entropy, in place": lambda h: cross_entropy(h * 2, IDS, inplace_backward=True),
    "grpo_loss": lambda h: grpo_loss(h, IDS, advantages=torch.ones(2), mask=IDS > 0)[0],
    "group_advantages": lambda h: group_advantages(h.detach().flatten()[:6], 3),
    "grpo_token_loss": lambda h: grpo_token_loss(h[..., 0], torch.ones(2), torch.ones(2, 3) > 0)[0],
    "latent_feedback_step_": feedback,
    "sample_tokens": lambda h: sample(h[:, 0].detach()),
    "shared_prefix_decode": lambda h: shared_prefix_decode(
        h[:, :1].detach(), torch.ones(1, 1, 4, 5), torch.ones(1, 1, 4, 5), torch.ones(2, 1, 2, 5),
        torch.ones(2, 1, 2, 5), prompt_lengths=torch.tensor([4]), lengths=torch.tensor([1, 2]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_torch_compile_has_no_graph_break(name):
    torch._dynamo.reset()
    plain, traced = (HIDDEN.clone().requires_grad_() for _ in range(2))
    want = CALLS[name](plain)
    got = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")(traced)
    torch.testing.assert_close(got, want)
    if want.requires_grad:
        want.sum().backward()
        got.sum().backward()
        torch.testing.assert_close(traced.grad, plain.grad)


TRAINED = [name for name in CALLS if CALLS[name](HIDDEN.clone().requires_grad_()).requires_grad]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_a_second_derivative_is_refused(name, compiled):
    """Beside another term too: a penalty on the gradient would be a constant in their sum, without a word."""
    torch._dynamo.reset()
    hidden = HIDDEN.clone().requires_grad_()
    call = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager") if compiled else CALLS[name]
    (gradient,) = torch.autograd.grad(call(hidden).sum(), hidden, create_graph=True)
    plain = torch.autograd.grad(CALLS[name](hidden).sum(), hidden)[0]
    torch.testing.assert_close(gradient.detach(), plain)
    with pytest.raises(RuntimeError, match=r"twice|double"):
        (gradient.square().sum() + hidden.square().sum()).backward()


def test_torch_compile_takes_changing_shapes_and_numbers():
    torch._dynamo.reset()

    def step(hidden, target, rate, options):
        rows = torch.arange(target.numel())
        mask = target >= 0
        gains = torch.ones(len(target))
        loss = linear_cross_entropy(hidden, HEAD[0], target, rows=rows, temperature=rate)
        loss = loss + linear_grpo_loss(
            hidden, HEAD[0], target, options, advantages=gains, mask=mask, rows=rows
        )[0]  # fmt: skip
        return loss + grpo_loss(hidden, target % 5, advantages=gains, mask=mask, temperature=rate)[0]

    traced = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, length, rate in ((2, 3, 1.0), (3, 4, 0.5), (4, 6, 0.7)):
        hidden, target = torch.randn(rows, length, 5), torch.randint(0, 11, (rows, length))
        options = GrpoOptions(epsilon=rate, beta=0.0 * rate)
        given = (hidden, target, rate, options)
        torch.testing.assert_close(traced(*given), step(*given))
