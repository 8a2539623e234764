"""The GRPO family of losses from logits that exist: two reads and one write of the rows that count."""

from __future__ import annotations

from torch import Tensor

from .grpo_token_loss import grpo_token_loss
from .logprobs import logprobs


def grpo_loss(
    logits: Tensor,
    target: Tensor,
    *,
    advantages: Tensor,
    mask: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    loss_type: str = "grpo",
    kl: str = "k3",
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sampler_cap: float = 2.0,
    entropy_coef: float = 0.0,
    max_length: int | None = None,
    num_items: Tensor | float | None = None,
    temperature: float = 1.0,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``grpo_token_loss`` of ``logprobs(logits, target)``: every loss type, sequence-level ratios included.

    ``logits`` [R, T, V] (a slice such as ``logits[:, :-1]`` is taken as it lies), ``target``, ``mask`` and
    the log-probabilities [R, T], ``advantages`` [R] or [R, T]. Entry i of ``target`` is what row i predicts.
    Only rows where ``mask`` is true are read. The options are those of ``grpo_token_loss``; ``temperature``
    and ``inplace_backward`` those of ``logprobs``.

    Three launches for a training step: one reads the logits, one turns log-probabilities into the loss and
    its slopes, one reads the logits again and writes their gradient (0 where masked). No host
    synchronisation. The entropy is computed only when ``entropy_coef`` is not 0.

    Returns the loss, the log-probabilities [R, T] (detached, 0 where masked) and the metrics of
    ``grpo_token_loss``. Without rows that count the loss is 0, part of the graph, with zero gradients. Raises
    ``ValueError`` for shapes, dtypes, devices and options that do not fit, and for k1. Where the logits do
    not exist yet, ``linear_grpo_loss`` never makes them all.
    """
    if logits.dim() != 3:
        raise ValueError(f"logits is {tuple(logits.shape)}; it must be [R, T, V]")
    with_entropy = entropy_coef != 0
    values = logprobs(
        logits, target, mask=mask, temperature=temperature, return_entropy=with_entropy,
        inplace_backward=inplace_backward, backend=backend,
    )  # fmt: skip
    current, entropy = (values, None) if isinstance(values, Tensor) else values
    loss, metrics = grpo_token_loss(
        current, advantages, mask, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy=entropy, entropy_mask=entropy_mask, loss_type=loss_type,
        kl=kl, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta, sampler_cap=sampler_cap,
        entropy_coef=entropy_coef, max_length=max_length, num_items=num_items, backend=backend,
    )  # fmt: skip
    return loss, current.detach(), metrics
