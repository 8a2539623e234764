"""What the latents of each block are like: towards their targets, between clips, and in the attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones.watched import attention_shares
from fourdthinker.evaluate.letters import letter_steps, source_rows
from fourdthinker.sampler import Rollout, replay_batch

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.evaluate.asking import Asked

_NORM_ROWS = 16_384  # rows of the embedding matrix that are widened at a time


@dataclass
class BlockLatents:
    """The latents of the n-th blocks of many rows, and what was attended to.

    Attributes:
        vectors: of each block, [K, H] float32 (fewer rows where the row was cut off).
        targets: of each block, what its overlay would be thought as, [K, H], or None.
        sources: of each block, the original video.
        to_frames: of each block, share of the attention of its latents that goes to the pictures, where
            there are any.
        from_answer: of each block, share of the attention of the answer's letter that goes to its latents,
            where a letter was named.
    """

    vectors: list[Tensor] = field(default_factory=list)
    targets: list[Tensor | None] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    to_frames: list[float] = field(default_factory=list)
    from_answer: list[float] = field(default_factory=list)


def block_numbers(rollout: Rollout, start_id: int) -> Tensor:
    """Of each latent of a rollout, the number of its block in its row, from 0.

    Args:
        rollout: with N latents.
        start_id: of the token that begins a block.

    Returns:
        int64 [N] on the CPU.
    """
    begun = (rollout.tokens == start_id).cumsum(1)
    return (begun[rollout.latent_rows, rollout.latent_steps] - 1).cpu()


@torch.no_grad()
def collect_blocks(
    found: dict[int, BlockLatents],
    asked: Asked,
    backbone: Backbone,
    tokenizer: Any,
    sources: Mapping[str, str],
    targets: Mapping[str, Tensor],
) -> None:
    """Add the latents of one batch to what was found so far.

    Args:
        found: block number -> its latents; changed in place.
        asked: rows at temperature 0, with own latents, one a prompt.
        backbone: the model.
        tokenizer: of the same checkpoint.
        sources: id of a record -> its original video.
        targets: id -> [N, H], of the records that have overlays.
    """
    rollout = asked.rollout
    if not len(rollout.latents):
        return
    numbers = block_numbers(rollout, backbone.latents.start_id)
    rows = rollout.latent_rows.cpu()
    vectors = rollout.latents.float().cpu()
    frames, answer = _attention(asked, backbone, tokenizer, numbers)
    size = backbone.latents.latent_size
    for row, record in enumerate(asked.records):
        for number in numbers[rows == row].unique().tolist():
            mine = (rows == row) & (numbers == number)
            block = found.setdefault(number, BlockLatents())
            block.vectors.append(vectors[mine])
            target = targets.get(record.id, torch.zeros(0))[number * size : (number + 1) * size]
            block.targets.append(target[: int(mine.sum())] if len(target) else None)
            block.sources.append(sources[record.id])
            if asked.features[row] is not None:
                block.to_frames.append(float(frames[mine].mean()))
            if row in answer:
                block.from_answer.append(float(answer[row][number]))


def _attention(
    asked: Asked, backbone: Backbone, tokenizer: Any, numbers: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Attention of each latent [N] to the pictures, and of the letter of each row [blocks] to the blocks."""
    rollout = asked.rollout
    batch = replay_batch(rollout, asked.prompts, None, backbone.vision.pad_id, features=asked.features)
    steps = letter_steps(tokenizer, rollout, [record.options for record in asked.records])
    width, device = rollout.tokens.shape[1], batch["input_ids"].device
    answers = source_rows(batch, [row * width + step.step for row, step in steps.items()])
    blocks = int(numbers.max()) + 1
    groups = torch.zeros(1 + blocks, batch["input_ids"].numel(), dtype=torch.bool, device=device)
    if "vision_index" in batch:
        groups[0, batch["vision_index"]] = True
    groups[1 + numbers.to(device), batch["latent_index"]] = True
    queries = torch.cat([batch["latent_index"], answers])
    shape = (1 + blocks, *batch["input_ids"].shape)
    shares = attention_shares(backbone, batch, queries, groups.view(shape)).cpu()
    latents = len(numbers)
    return shares[:latents, 0], dict(zip(steps, shares[latents:, 1:], strict=True))


def block_statistics(found: Mapping[int, BlockLatents], embedding: Tensor) -> list[dict[str, Any]]:
    """The numbers of every block.

    Args:
        found: block number -> its latents.
        embedding: [V, H], the input embeddings.

    Returns:
        Of each block: block (from 1), rows, latents; oracle_cosine, mean over the latents that have a target;
        mean_target_cosine, the same of the mean target of each index in the place of the latents;
        between_clip_cosine, mean over pairs of latents of the same index about different videos; norm, the
        mean, and norm_ratio, that over the mean norm of an input embedding; effective_rank, exp of the
        entropy of the normalised singular values of all its latents; latents_to_frames and answer_to_latents,
        the mean shares of attention. None where there is nothing to average.
    """
    usual = mean_norm(embedding.detach())
    out = []
    for number in sorted(found):
        block = found[number]
        every = torch.cat(block.vectors).double()
        norm = float(every.norm(dim=-1).mean())
        out.append(
            {
                "block": number + 1,
                "rows": len(block.vectors),
                "latents": len(every),
                "oracle_cosine": _oracle_cosine(block),
                "mean_target_cosine": mean_target_cosine([t for t in block.targets if t is not None]),
                "between_clip_cosine": between_clip_cosine(block.vectors, block.sources),
                "norm": norm,
                "norm_ratio": norm / usual,
                "effective_rank": effective_rank(every),
                "latents_to_frames": _mean(block.to_frames),
                "answer_to_latents": _mean(block.from_answer),
            }
        )
    return out


def mean_norm(matrix: Tensor) -> float:
    """Mean norm of the rows of a matrix.

    Args:
        matrix: [V, H].

    Returns:
        The mean, summed in float64.
    """
    return float(torch.cat([part.float().norm(dim=-1) for part in matrix.split(_NORM_ROWS)]).double().mean())


def effective_rank(rows: Tensor) -> float:
    """Exp of the entropy of the singular values, as shares of their sum (Roy and Vetterli, 2007).

    Args:
        rows: [N, H].

    Returns:
        From 1, all rows along one line, to min(N, H); 0 for zeros.
    """
    values = torch.linalg.svdvals(rows.double())
    total = values.sum()
    if total == 0:
        return 0.0
    shares = (values / total)[values > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def between_clip_cosine(vectors: Sequence[Tensor], sources: Sequence[str]) -> float | None:
    """Mean cosine between vectors of the same index in blocks about different videos.

    Args:
        vectors: of each block, [K, H].
        sources: of each block, its video.

    Returns:
        The mean over all such pairs; None where there is none. 1: the latents do not depend on the clip.
    """
    total, pairs = 0.0, 0
    for k in range(max((len(block) for block in vectors), default=0)):
        here = [
            (F.normalize(b[k].double(), dim=0), s)
            for b, s in zip(vectors, sources, strict=True)
            if len(b) > k
        ]
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for unit, source in here:
            sums[source] = sums.get(source, torch.zeros_like(unit)) + unit
            counts[source] = counts.get(source, 0) + 1
        whole = torch.stack(list(sums.values())).sum(0)
        total += float(whole @ whole) - sum(float(part @ part) for part in sums.values())
        pairs += len(here) ** 2 - sum(count**2 for count in counts.values())
    return total / pairs if pairs else None


def _oracle_cosine(block: BlockLatents) -> float | None:
    cosines = [
        F.cosine_similarity(mine.double(), target.double(), dim=-1)
        for mine, target in zip(block.vectors, block.targets, strict=True)
        if target is not None and target.shape == mine.shape
    ]
    return _mean(torch.cat(cosines).tolist()) if cosines else None


def mean_target_cosine(targets: Sequence[Tensor]) -> float | None:
    """Mean cosine of targets to the mean of the unit vectors of all that have the same index.

    Args:
        targets: of each block, [K, H], or fewer rows.

    Returns:
        What latents that are the same for every clip can reach; None without targets.
    """
    cosines: list[float] = []
    for k in range(max(map(len, targets), default=0)):
        units = F.normalize(torch.stack([t[k] for t in targets if len(t) > k]).double(), dim=-1)
        cosines += F.cosine_similarity(units, units.mean(0, keepdim=True), dim=-1).tolist()
    return _mean(cosines)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
