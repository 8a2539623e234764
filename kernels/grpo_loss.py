"""The GRPO family of losses from logits that exist: two reads and one write of the rows that count."""

from __future__ import annotations

from torch import Tensor

from ._common import check_tensors
from ._grpo_losses import DEFAULTS, GrpoOptions, check_options
from ._logits import MORE
from .grpo_token_loss import grpo_token_loss
from .logprobs import logprobs


def grpo_loss(
    logits: Tensor,
    target: Tensor,
    options: GrpoOptions = DEFAULTS,
    *,
    advantages: Tensor,
    mask: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    num_items: Tensor | float | None = None,
    num_tokens: Tensor | float | None = None,
    temperature: float = 1.0,
    return_statistics: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``grpo_token_loss`` of ``logprobs(logits, target)``: every loss type and ratio level.

    Three launches for a training step: one reads the logits, one turns log-probabilities into the loss and
    its slopes, one reads the logits again and writes their gradient (0 where masked). No host
    synchronisation. Where the logits do not exist yet, ``linear_grpo_loss`` never makes them all.

    Args:
        logits: [R, T, V] float32, float16 or bfloat16; a slice (``logits[:, :-1]``) is taken as it lies.
        target: [R, T] int64; entry i is what row i predicts.
        options: as in ``grpo_token_loss``. The entropy is computed only when ``entropy_coef`` is not 0.
        advantages: [R] or [R, T].
        mask: [R, T] bool. Only rows where it is true are read.
        old_logprobs: as in ``grpo_token_loss``.
        ref_logprobs: as in ``grpo_token_loss``.
        sampler_logprobs: as in ``grpo_token_loss``.
        entropy_mask: as in ``grpo_token_loss``.
        num_items: as in ``grpo_token_loss``.
        num_tokens: as in ``grpo_token_loss``.
        temperature: the one that the tokens were sampled at.
        return_statistics: whether the means of all ``TokenStatistics`` are among the metrics, without
            another read.
        inplace_backward: as in ``logprobs``.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The loss, the log-probabilities [R, T] (detached, 0 where masked) and the metrics of
        ``grpo_token_loss``. Without rows that count the loss is 0, part of the graph, with zero gradients.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or an option lacks its input.
    """
    check_options(options)
    check_tensors(logits=logits, mask=mask)
    if logits.dim() != 3:
        raise ValueError(f"logits is {tuple(logits.shape)}; it must be [R, T, V]")
    if return_statistics:
        current, statistics = logprobs(
            logits, target, mask=mask, temperature=temperature, return_statistics=True,
            inplace_backward=inplace_backward, backend=backend,
        )  # fmt: skip
        entropy: Tensor | None = statistics.entropy
    else:
        values = logprobs(
            logits, target, mask=mask, temperature=temperature, return_entropy=options.entropy_coef != 0,
            inplace_backward=inplace_backward, backend=backend,
        )  # fmt: skip
        current, entropy = (values, None) if isinstance(values, Tensor) else values
    loss, metrics = grpo_token_loss(
        current, advantages, mask, options, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy=entropy, entropy_mask=entropy_mask, num_items=num_items,
        num_tokens=num_tokens, backend=backend,
    )  # fmt: skip
    if return_statistics:  # masked tokens have zeros
        tokens = mask.sum().clamp(min=1)
        metrics |= {name: getattr(statistics, name).sum() / tokens for name in MORE}
    return loss, current.detach(), metrics
