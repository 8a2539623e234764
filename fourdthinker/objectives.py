"""The DIFT and GRPO objectives in terms of `fourdthinker.kernels`.

Both are called as `backbone(batch, objective)`, so that data-parallel wrappers see the loss inside the
forward pass. They take the *global* numbers of items (all micro-batches of an update, all ranks) as
normalisers, so that the sum of what they return over micro-batches and ranks is the loss of the update:
weighting is by token and by latent, never by micro-batch. Metrics are pairs (sum, weight); sums of pairs are
pairs, the value to show is sum / weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.kernels import (
    METRICS,
    GrpoOptions,
    cosine_latent_loss,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_logprobs,
)
from fourdthinker.latents import rescaled

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch

Metrics = dict[str, tuple[Tensor, Tensor]]
_LARGEST_NORM_RATIO = 1e6  # that is shown, beside a latent of zeros


@dataclass(frozen=True)
class LatentTerm:
    """The loss of replayed latents in reinforcement learning.

    Attributes:
        kind: "cosine": 1 - cosine of what the policy thinks at a latent and what the reference model thinks
            there. "gaussian": -min(r A, clamp(r) A), r the density of the replayed latent under a normal
            distribution around what the policy thinks, over that at its mean (Monet, arXiv 2511.21395).
        weight: of the mean over the latents of the update.
        sigma: standard deviation of the distribution.
    """

    kind: str
    weight: float = 1.0
    sigma: float = 10.0


def dift_objective(
    backbone: Backbone,
    hidden: Tensor,
    batch: Batch,
    *,
    num_tokens: Tensor | float,
    num_latents: Tensor | float,
    ce_weight: float | None = None,
    sim_weight: float | None = None,
) -> tuple[Tensor, Metrics]:
    """0.1 * CE over supervised tokens + 1.0 * (1 - cosine) over latents; section 2.4 of the published method.

    Args:
        backbone: gives the output matrix and the default weights of both terms.
        hidden: [B, S, H], after the final norm.
        batch: `target` [B, S] and `rows` [M] (flat positions with a target), `latent_index` [N], `latents`
            [N, H].
        num_tokens: tokens with a target in the whole update, over all its micro-batches and ranks.
        num_latents: latents in the whole update, likewise.
        ce_weight: of the cross-entropy; None: the checkpoint's, which is 0.1 by default.
        sim_weight: of the cosine term; None: the checkpoint's, which is 1.0 by default.

    Returns:
        This batch's share of the loss (float32 scalar) and the metrics `ce`, `entropy`, `token_accuracy` (1
        where the target is the most probable id), `cosine`, `latent_cos` and, for the k-th latent of a block,
        `latent_cos_k`; `latent_norm_ratio`, the mean of |h| / |target|; and
        `latent_direction`, the length of the mean of the directions of h, a mean over batches.
    """
    spec = backbone.latents
    flat = hidden.flatten(0, 1)
    rows: Tensor = batch["rows"]
    ce, statistics = linear_cross_entropy(
        flat,
        backbone.head_weight,
        batch["target"].flatten(),
        bias=backbone.head_bias,
        rows=rows,
        num_items=num_tokens,
        return_statistics=True,
    )
    loss = (spec.ce_loss_weight if ce_weight is None else ce_weight) * ce
    zero = torch.zeros((), device=hidden.device)
    cos = zero.new_zeros((0,))
    index: Tensor = batch["latent_index"]
    if index.numel():
        similarity, cos = cosine_latent_loss(flat, batch["latents"], index, num_items=num_latents)
        loss = loss + (spec.sim_loss_weight if sim_weight is None else sim_weight) * similarity
    tokens = zero + rows.numel()
    latents = zero + index.numel()
    metrics: Metrics = {
        "ce": (ce.detach() * num_tokens, tokens),
        "entropy": (statistics.entropy * tokens, tokens),
        "token_accuracy": (statistics.top1 * tokens, tokens),
        "cosine": (latents - cos.sum(), latents),
        "latent_cos": (cos.sum(), latents),
    }
    per_slot = cos.view(-1, spec.latent_size)
    for k in range(spec.latent_size):
        metrics[f"latent_cos_{k}"] = (per_slot[:, k].sum(), zero + per_slot.shape[0])
    own = flat.detach()[index - 1].float()
    ratios = _norm_ratios(own, batch["latents"].float()) if index.numel() else own.new_zeros(0)
    metrics["latent_norm_ratio"] = (ratios.sum(), latents)
    lengths = mean_direction(own)
    metrics["latent_direction"] = (lengths.sum(), zero + lengths.numel())
    return loss, metrics


def mean_direction(latents: Tensor) -> Tensor:
    """How much latents are one direction.

    Args:
        latents: [N, H].

    Returns:
        [1] float32, the length of the mean of their directions, 1 where all are the same; [0] of fewer than
        2.
    """
    if latents.shape[0] < 2:
        return latents.new_zeros(0, dtype=torch.float32)
    return torch.nn.functional.normalize(latents.float(), dim=-1).mean(0).norm()[None]


def _norm_ratios(own: Tensor, others: Tensor) -> Tensor:
    ratios = own.norm(dim=-1) / others.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ratios.clamp(max=_LARGEST_NORM_RATIO)


def normed_dift_objective(
    backbone: Backbone,
    hidden: Tensor,
    batch: Batch,
    *,
    norm_weight: float,
    num_latents: Tensor | float,
    **options: Any,
) -> tuple[Tensor, Metrics, Tensor]:
    """`dift_objective` with a term for the norm of latents, which the cosine leaves free.

    The term is the mean over latents of (log |h| - log n)^2, n the norm that generation gives to what it
    feeds back (`LatentSpec.latent_norm`), or of each latent that of its own target where there is none yet.

    Args:
        backbone: as for `dift_objective`.
        hidden: [B, S, H], as there.
        batch: as there.
        norm_weight: of the term.
        num_latents: latents in the whole update, as there.
        options: the further ones of `dift_objective`.

    Returns:
        Loss and metrics as `dift_objective`, with `latent_log_norm`, the mean of log |h| - log n, and
        `latent_norm_loss`, that of its square; and [2] float64: the sum of log |target|, and the number of
        targets.
    """
    loss, metrics = dift_objective(backbone, hidden, batch, num_latents=num_latents, **options)
    index: Tensor = batch["latent_index"]
    if not index.numel():
        nothing = hidden.new_zeros(2, dtype=torch.float64)
        none = (nothing[0], nothing[1])
        return loss, metrics | {"latent_log_norm": none, "latent_norm_loss": none}, nothing
    wide = torch.promote_types(hidden.dtype, torch.float32)
    norms = hidden.flatten(0, 1)[index - 1].to(wide).norm(dim=-1).log()
    targets = batch["latents"].to(wide).norm(dim=-1).log()
    norm = backbone.latents.latent_norm
    difference = norms - (targets if norm is None else math.log(norm))
    loss = loss + norm_weight * difference.square().sum() / num_latents
    number = difference.new_tensor(index.numel(), dtype=torch.float64)
    metrics["latent_log_norm"] = (difference.detach().sum(), number)
    metrics["latent_norm_loss"] = (difference.detach().square().sum(), number)
    return loss, metrics, torch.stack([targets.double().sum(), number])


def policy_logprobs(backbone: Backbone, hidden: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token that the policy chose: the objective of a pass of the reference model.

    Args:
        backbone: gives the output matrix.
        hidden: [B, S, H], after the final norm.
        batch: of `sampler.replay_batch`: `source_index`, `chosen_ids` and `completion_index` [M], and
            `policy_mask` [R, T].
        temperature: divides the logits; the one sampled with.

    Returns:
        [R, T] float32, 0 where the policy did not choose the token.
    """
    logprobs = linear_logprobs(
        hidden.flatten(0, 1)[batch["source_index"]],
        backbone.head_weight,
        batch["chosen_ids"],
        bias=backbone.head_bias,
        temperature=temperature,
    )
    return _spread(logprobs, batch)  # type: ignore[arg-type]


def thoughts(backbone: Backbone, hidden: Tensor, batch: Batch) -> Tensor:
    """What the model would feed back at each latent of a batch.

    Args:
        backbone: gives the norm that latents are given.
        hidden: [B, S, H], after the final norm.
        batch: `latent_index` [N], the flat positions of the latents.

    Returns:
        [N, H] float32.
    """
    own = hidden.flatten(0, 1)[batch["latent_index"] - 1]
    return rescaled(own, backbone.latents.latent_norm).float()


def reference_outputs(
    backbone: Backbone, hidden: Tensor, batch: Batch, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What the loss asks the reference model for, in one pass.

    Args:
        backbone: gives the output matrix.
        hidden: [B, S, H], after the final norm.
        batch: of `sampler.replay_batch`.
        temperature: divides the logits; the one sampled with.

    Returns:
        `policy_logprobs`, and `thoughts`.
    """
    return policy_logprobs(backbone, hidden, batch, temperature=temperature), thoughts(
        backbone, hidden, batch
    )


def policy_entropies(backbone: Backbone, hidden: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution of every token that the policy chose: the objective of a pass.

    Args:
        backbone: gives the output matrix.
        hidden: [B, S, H], after the final norm.
        batch: as for `policy_logprobs`.
        temperature: divides the logits.

    Returns:
        [R, T] float32 in nats, 0 where the policy did not choose the token.
    """
    _, entropies = linear_logprobs(
        hidden.flatten(0, 1)[batch["source_index"]],
        backbone.head_weight,
        batch["chosen_ids"],
        bias=backbone.head_bias,
        temperature=temperature,
        return_entropy=True,
    )
    return _spread(entropies, batch)


def latent_objective(
    term: LatentTerm, own: Tensor, batch: Batch, options: GrpoOptions, *, num_latents: Tensor | float
) -> tuple[Tensor, Metrics]:
    """The loss of the latents of a batch.

    Args:
        term: which one.
        own: [N, H] float32, what the policy thinks at each, of `thoughts`.
        batch: `latent_rows` [N] (-1: does not count), `latents` [N, H], `advantages` [R] and, for the cosine,
            `anchors` [N, H].
        options: bounds of the ratio.
        num_latents: those that count in the whole update.

    Returns:
        This batch's share of the loss, weight included, `latent_anchor` (mean cosine) or `latent_ratio`, and
        `latent_loss`, the mean of the loss, weight included.
    """
    rows: Tensor = batch["latent_rows"]
    counted = rows >= 0
    if term.kind == "cosine":
        shown = torch.nn.functional.cosine_similarity(own, batch["anchors"].to(own.dtype), dim=-1)
        loss = 1 - shown
    else:
        distance = (own - batch["latents"].to(own.dtype)).square().sum(-1)
        shown = (-distance / (2 * term.sigma**2)).exp()
        gains = batch["advantages"][rows.clamp(min=0)].to(shown.dtype)
        loss = -torch.minimum(shown * gains, shown.clamp(options.low, options.high) * gains)
    number = counted.sum().double()
    total = term.weight * torch.where(counted, loss, 0.0).sum()
    name = "latent_anchor" if term.kind == "cosine" else "latent_ratio"
    metrics = {
        name: (torch.where(counted, shown.detach(), 0.0).sum(), number),
        "latent_loss": (total.detach(), number),
    }
    return total / num_latents, metrics


@torch.no_grad()
def _replayed(own: Tensor, batch: Batch) -> Metrics:
    """What the trainer thinks at the latents of a rollout, [N, H], beside what the sampler fed there."""
    counted, fed = batch["latent_rows"] >= 0, batch["latents"].float()
    values = {
        "latent_cos": torch.nn.functional.cosine_similarity(own, fed, dim=-1),
        "latent_norm_ratio": _norm_ratios(own, fed),
    }
    number = counted.sum().double()
    return {name: (torch.where(counted, value, 0.0).sum(), number) for name, value in values.items()}


def grpo_objective(
    backbone: Backbone,
    hidden: Tensor,
    batch: Batch,
    *,
    options: GrpoOptions,
    num_items: Tensor | float,
    num_tokens: Tensor | float | None = None,
    temperature: float = 1.0,
    latent_term: LatentTerm | None = None,
    num_latents: Tensor | float = 1.0,
) -> tuple[Tensor, Metrics, Tensor]:
    """The GRPO objective of a replayed batch (`kernels/_grpo_losses.py` has the formulas).

    Args:
        backbone: gives the output matrix.
        hidden: [B, S, H], after the final norm, of prompts and completions with the rollout's latents
            replayed.
        batch: with M tokens that the policy chose in R completions of at most T: `source_index` [M],
            the flat positions whose hidden states predict them, `chosen_ids` [M], `completion_index` [M],
            where they are in [R, T]; `policy_mask` [R, T] bool; `advantages` [R]; `rollout_logprobs` [R, T]
            float32, the sampler's; `old_logprobs` [R, T] from the second update on the same rollouts on;
            `ref_logprobs` [R, T] with `beta`; `entropy_mask` [R, T] bool where the policy term is not of all
            tokens; with a `latent_term` what `latent_objective` needs.
        options: loss type, ratio level, clipping, KL, entropy.
        num_items: rollouts (`options.counts_sequences`) or policy tokens of the whole update.
        num_tokens: policy tokens of the whole update, for the entropy bonus; None: of this batch.
        temperature: the one that the rollouts were sampled at.
        latent_term: the loss of the latents; None: they have none.
        num_latents: latents of the whole update, for it.

    Returns:
        This batch's share of the loss, metrics as (sum, weight) over policy tokens, and the log-probabilities
        [R, T], detached. `sampler_gap` is the mean of |replayed - sampler| log-probability, which is rounding
        alone; `sampler_gap_max` is shown as the mean over batches of the largest. `latent_cos` and
        `latent_norm_ratio` compare what the policy thinks at the latents with those that were replayed.
    """
    index, mask = batch["completion_index"], batch["policy_mask"]

    def listed(name: str) -> Tensor | None:
        return batch[name].flatten()[index] if name in batch else None

    chosen = hidden.flatten(0, 1)[batch["source_index"]]  # two tokens may be predicted by the same position
    loss, current, values = linear_grpo_loss(
        chosen,
        backbone.head_weight,
        batch["chosen_ids"],
        options,
        bias=backbone.head_bias,
        advantages=batch["advantages"],
        mask=torch.ones_like(index, dtype=torch.bool),
        rows=torch.arange(index.numel(), device=index.device),
        sequence_ids=index // max(mask.shape[1], 1),
        old_logprobs=listed("old_logprobs"),
        ref_logprobs=listed("ref_logprobs"),
        sampler_logprobs=listed("rollout_logprobs"),
        entropy_mask=listed("entropy_mask"),
        num_items=num_items,
        num_tokens=num_tokens,
        temperature=temperature,
        return_statistics=True,
    )
    one = torch.ones((), device=hidden.device)
    weight = {False: one * batch["chosen_ids"].numel(), True: one}
    largest = {metric.name: metric.largest for metric in METRICS}
    metrics: Metrics = {
        name: (value * weight[largest.get(name, False)], weight[largest.get(name, False)])
        for name, value in values.items()
    }
    if "latent_rows" in batch:
        metrics |= _replayed(thoughts(backbone, hidden.detach(), batch), batch)
    if latent_term is not None:
        own = thoughts(backbone, hidden, batch)
        latent_loss, shown = latent_objective(latent_term, own, batch, options, num_latents=num_latents)
        loss, metrics = loss + latent_loss.to(loss.dtype), metrics | shown
    return loss, metrics, _spread(current, batch)


def _spread(values: Tensor, batch: Batch) -> Tensor:
    """[M] to [R, T], 0 where the policy chose nothing."""
    mask: Tensor = batch["policy_mask"]
    return values.new_zeros(mask.numel()).index_put((batch["completion_index"],), values).view(mask.shape)
