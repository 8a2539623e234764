"""The peers of the kernels bench: eager formulas as their sources state them, and what is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BETA, EPSILON = 0.04, 0.2


def attempted(make: Callable[[], Callable[..., Any] | None]) -> Callable[..., Any] | None:
    """What ``make`` gives. Where a package that is installed cannot be imported, a call that raises the same
    error, so that it costs the row of that peer alone."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - packages fail at import in ways of their own
        raised = error

    def absent(*arguments: object) -> Any:
        raise raised

    return absent


def eager_logprobs(logits: Tensor, target: Tensor) -> Tensor:
    """TRL's ``selective_log_softmax``: gather minus logsumexp, one sequence at a time."""
    chosen = logits.gather(-1, target[..., None])[..., 0]
    return chosen - torch.stack([row.logsumexp(dim=-1) for row in logits])


def eager_logprobs_and_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """TRL's ``selective_log_softmax`` and its ``entropy_from_logits``, both of float32 logits."""
    wide = logits.float()
    return eager_logprobs(wide, target), eager_entropy(wide)


def eager_entropy(logits: Tensor) -> Tensor:
    """TRL's ``entropy_from_logits``."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def eager_grpo(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor, ref: Tensor, beta: float = BETA
) -> Tensor:
    """The formula of TRL's ``GRPOTrainer`` for ``loss_type="grpo"`` with its k3 estimate."""
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    gains = advantages[:, None]
    kl = torch.exp(ref - logprobs) - (ref - logprobs) - 1
    terms = -torch.min(ratio * gains, clipped * gains) + beta * kl
    return ((terms * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def eager_cosine(hidden: Tensor, target: Tensor, is_latent: Tensor) -> Tensor:
    """As published trainers do it: boolean indexing of shifted hidden states, then ``cosine_similarity``."""
    picked = hidden[:, :-1][is_latent[:, 1:]]
    return (1 - F.cosine_similarity(picked.float(), target.float(), dim=-1)).mean()


def eager_pool(features: Tensor, counts: list[int], latent_size: int) -> Tensor:
    """One image at a time: trim, cut into runs, average."""
    pooled = []
    for image in features.split(counts):
        run = image.shape[0] // latent_size
        pooled.append(image[: run * latent_size].view(latent_size, run, -1).float().mean(dim=1))
    return torch.cat(pooled).to(features.dtype)


def eager_advantages(rewards: Tensor, group_size: int) -> Tensor:
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)


def hf_sampler(*, top_k: int = 0, top_p: float = 1.0) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Transformers' own warpers, then softmax and ``multinomial``, and the log-probability of the choice."""
    from transformers.generation import logits_process

    warpers: list[Any] = []
    if top_k:
        warpers.append(logits_process.TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(logits_process.TopPLogitsWarper(top_p))

    def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float()
        for warper in warpers:
            scores = warper(logits, scores)
        ids = torch.multinomial(scores.softmax(-1), 1)
        return ids, logits.float().log_softmax(-1).gather(1, ids)

    return sample


def eager_decode(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of each row over prompt and own positions, the prompt's copied for every row of its group."""
    return F.scaled_dot_product_attention(query[:, :, None], keys, values, enable_gqa=True)[:, :, 0]


def trl_logprobs() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """TRL's fused head, log-probabilities alone: Triton on CUDA, else torch; None where not installed."""
    if importlib.util.find_spec("trl") is None:
        return None
    from trl.kernels import ChunkedLogProbFunction

    def run(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # no bias, temperature 1, TRL's own chunk of 32,768 ids, no softcap, no scale, no other output
        out = ChunkedLogProbFunction.apply(
            rows, weight, None, target.reshape(-1), 1.0, 32_768, None, 1.0, ()
        )  # fmt: skip
        return out[0].view(target.shape)

    return run


def trl_head_with_entropy() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """TRL's fused head as its GRPO trainer calls it, log-probabilities and entropies; None without TRL."""
    if importlib.util.find_spec("trl") is None:
        return None
    from trl.kernels import ChunkedLogProbFunction

    def run(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        out = ChunkedLogProbFunction.apply(
            rows, weight, None, target.reshape(-1), 1.0, 32_768, None, 1.0, ("entropy",)
        )  # fmt: skip
        return out[0].view(target.shape), out[1].view(target.shape)

    return run


def trl_logprobs_and_entropy() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """TRL's Triton kernel over given logits, or None without TRL or without a GPU."""
    if importlib.util.find_spec("trl") is None or not torch.cuda.is_available():
        return None
    from trl.kernels import selective_log_softmax_and_entropy

    return lambda logits, target: selective_log_softmax_and_entropy(logits, target)


def verl_head_with_entropy() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """verl's Triton head, or None without verl or without a GPU.

    It takes hidden states, weight, labels, temperature, reduction and a process group, and returns
    log-probabilities and entropies (verl/utils/kernel/linear_cross_entropy.py).
    """
    if importlib.util.find_spec("verl") is None or not torch.cuda.is_available():
        return None
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy as head

    def run(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        chosen, entropy = head(rows, weight, target.reshape(-1), 1.0, "none")[:2]
        return chosen.view(target.shape), entropy.view(target.shape)

    return run


def verl_logprobs() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The same, log-probabilities alone."""
    head = verl_head_with_entropy()
    return head and (lambda x, weight, target: head(x, weight, target)[0])


def liger_grpo() -> Callable[..., Tensor] | None:
    """Liger's chunked fused linear GRPO loss (plain torch inside), or None where it is not installed.

    Compiled by torch, as Liger itself has it; on a CPU, where that does not work, not.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=BETA, epsilon_low=EPSILON, epsilon_high=EPSILON, loss_type="grpo", use_ref_model=True,
        compiled=torch.cuda.is_available(),
    )  # fmt: skip

    def run(
        x: Tensor, weight: Tensor, target: Tensor, advantages: Tensor, mask: Tensor, old: Tensor, ref: Tensor
    ) -> Tensor:
        return loss(
            x, weight, target, mask.to(torch.float32), advantages, ref_per_token_logps=ref,
            old_per_token_logps=old,
        )[0]  # fmt: skip

    return run


def liger_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Liger's Triton fused linear cross entropy, or None without Liger or without a GPU."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, target: loss(weight, x, target)


def liger_grpo_of_logits() -> Callable[..., Tensor] | None:
    """Liger's Triton GRPO loss on logits, or None without Liger or without a GPU."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    def run(
        logits: Tensor, target: Tensor, advantages: Tensor, mask: Tensor, old: Tensor, ref: Tensor
    ) -> Tensor:
        # Takes one row more than there are completion tokens; the last is not used.
        return triton_grpo_loss(
            logits, old, ref, target, advantages, mask, temperature=1.0, beta=BETA, eps_low=EPSILON,
            eps_high=EPSILON, loss_type="grpo", inplace=False, reduce=True,
        )[0]  # fmt: skip

    return run


def torch_linear_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """``torch.nn.functional.linear_cross_entropy``, or None before torch 2.13."""
    return getattr(F, "linear_cross_entropy", None)
