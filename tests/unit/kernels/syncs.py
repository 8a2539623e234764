"""Count the places of a call at which a GPU would make the host wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from fourdthinker.kernels import (
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
from tests.unit.kernels.options import with_options

WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim",
    "_unique2", "unique_consecutive", "bincount", "repeat_interleave", "histc", "_assert_async",
}  # fmt: skip


class _Watch(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace.endswith("_kernels"):  # the parts of our own ops, not the op
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if self.paused:
            return func(*args, **kwargs)
        if name in WAITING and func._schema.overload_name != "self_int":  # repeat_interleave by a number
            self.seen.append(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            self.seen += [f"{name} by a mask"] * len(masks)
        return func(*args, **kwargs)


@contextmanager
def counting_syncs() -> Iterator[list[str]]:
    """Gives the list that the names of waiting calls are added to."""
    seen: list[str] = []
    watch = _Watch(seen)
    with ExitStack() as stack:
        for name in ("tolist", "cpu", "numpy", "__array__"):  # on the CPU these never reach the dispatcher
            original = getattr(Tensor, name)

            def counted(
                self: Tensor, *args: Any, _name: str = name, _original: Any = original, **kw: Any
            ) -> Any:
                if not watch.paused:
                    seen.append(_name)
                return _original(self, *args, **kw)

            stack.enter_context(mock.patch.object(Tensor, name, counted))
        launch = GridExecutor.__call__

        def unseen(self: Any, *args: Any, **kwargs: Any) -> Any:  # the interpreter copies arguments about
            watch.paused = True
            try:
                return launch(self, *args, **kwargs)
            finally:
                watch.paused = False

        stack.enter_context(mock.patch.object(GridExecutor, "__call__", unseen))
        for module in ("_common", "cosine_latent_loss"):  # as on a GPU, where values are not checked
            name = f"fourdthinker.kernels.{module}"
            stack.enter_context(mock.patch.object(sys.modules[name], "readable", return_value=False))
        stack.enter_context(watch)
        yield seen


GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(2, 6, 8, generator=GENERATOR)
WEIGHT = torch.randn(40, 8, generator=GENERATOR)
TARGET = torch.randint(0, 40, (2, 6), generator=GENERATOR)
MASK = torch.rand(2, 6, generator=GENERATOR) < 0.6
ROWS = MASK.flatten().nonzero()[:, 0]
LABELS = torch.where(MASK, TARGET, -100)
NOISE = torch.randn(2, 6, generator=GENERATOR)


def policy(**options: Any) -> dict[str, Any]:
    return with_options(
        advantages=torch.tensor([1.0, -1.0]), mask=MASK, ref_logprobs=NOISE, beta=0.1, old_logprobs=NOISE,
        entropy_coef=0.1, max_length=6, **options,
    )  # fmt: skip


def sample(backend: str) -> Tensor:
    zero = torch.zeros(2, dtype=torch.int64)
    return sample_tokens(HIDDEN[:, 0], seeds=zero, steps=zero, temperature=torch.ones(2), backend=backend)[1]


def feedback(backend: str) -> Tensor:
    state = latent_state(2, 8, 4, dtype=torch.float32, device="cpu")
    return latent_feedback_step_(
        TARGET[0, :2], HIDDEN[:, 0], WEIGHT, **state, eos_ids=TARGET[0, :1], pad_id=37, start_id=38,
        end_id=39, fill_id=1, latent_size=2, backend=backend,
    )[2]  # fmt: skip


def decode(backend: str) -> Tensor:
    query, prompt, own = torch.ones(2, 2, 16), torch.ones(1, 1, 4, 16), torch.ones(2, 1, 3, 16)
    lengths = {"prompt_lengths": torch.tensor([4]), "lengths": torch.tensor([1, 2])}
    return shared_prefix_decode(query, prompt, prompt, own, own, **lengths, backend=backend)


Call = Callable[[Tensor, Tensor, str], Tensor]
# What the op is given is a leaf of shape [2, 6, 8] and one of shape [40, 8]; and what it waits for.
CASES: dict[str, tuple[Call, list[str]]] = {
    "linear_cross_entropy": (lambda h, w, b: linear_cross_entropy(h, w, LABELS, backend=b), ["nonzero"]),
    "linear_cross_entropy, rows": (
        lambda h, w, b: linear_cross_entropy(h, w, LABELS, rows=ROWS, num_items=7, backend=b), []
    ),
    "linear_logprobs": (lambda h, w, b: linear_logprobs(h, w, TARGET, mask=MASK, backend=b), ["nonzero"]),
    "linear_logprobs, rows": (lambda h, w, b: linear_logprobs(h, w, TARGET, rows=ROWS, backend=b), []),
    "linear_logprobs, all": (
        lambda h, w, b: sum(linear_logprobs(h, w, TARGET, return_entropy=True, backend=b)), []
    ),
    "linear_grpo_loss": (
        lambda h, w, b: linear_grpo_loss(h, w, TARGET, **policy(), backend=b)[0], ["nonzero"]
    ),
    "linear_grpo_loss, rows": (
        lambda h, w, b: linear_grpo_loss(h, w, TARGET, **policy(rows=ROWS), backend=b)[0], []
    ),
    "linear_grpo_loss sequence, rows": (
        lambda h, w, b: linear_grpo_loss(
            h, w, TARGET, **policy(rows=ROWS, ratio_level="sequence"), backend=b
        )[0],
        [],
    ),
    "grpo_token_loss": (
        lambda h, w, b: grpo_token_loss(h[..., 0], **policy(entropy=h[..., 1]), backend=b)[0], []
    ),
    "cosine_latent_loss": (
        lambda h, w, b: cosine_latent_loss(h, WEIGHT[:3], torch.tensor([1, 5, 8]), backend=b)[0] * 0.5, []
    ),
    "group_advantages": (lambda h, w, b: group_advantages(NOISE.flatten(), 3, backend=b), []),
    "latent_feedback_step_": (lambda h, w, b: feedback(b), []),
    "shared_prefix_decode": (lambda h, w, b: decode(b), []),
    # The counts are on the CPU, as the op asks for.
    "pool_latents": (
        lambda h, w, b: pool_latents(HIDDEN.flatten(0, 1), torch.tensor([8, 4]), 2, backend=b), ["tolist"]
    ),
}  # fmt: skip
# On the CPU the references look for rows, or for the features in use; a GPU runs these kernels.
KERNELS_ONLY: dict[str, tuple[Call, list[str]]] = {
    "logprobs": (lambda h, w, b: logprobs(h @ w.T, TARGET, mask=MASK, backend=b), []),
    "cross_entropy": (lambda h, w, b: cross_entropy(h @ w.T, LABELS, backend=b), []),
    "grpo_loss": (lambda h, w, b: grpo_loss(h @ w.T, TARGET, **policy(), backend=b)[0], []),
    # Logits on the CPU are searched for rows that leave nothing to sample from.
    "sample_tokens": (lambda h, w, b: sample(b), ["is_nonzero"]),
}


def waits(call: Call, backend: str) -> list[str]:
    """What forward and backward of ``call`` wait for."""
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    with counting_syncs() as seen:
        out = call(hidden, weight, backend)
        if out.requires_grad:
            out.sum().backward()
    return seen
