"""Targets of the latents: per image, the mean of K contiguous runs of its merged vision features."""

from __future__ import annotations

import torch
from torch import Tensor


def _reference(features: Tensor, counts: list[int], latent_size: int) -> Tensor:
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    pooled = []
    start = 0
    for count in counts:
        run = count // latent_size
        kept = features[start : start + run * latent_size]
        pooled.append(kept.reshape(latent_size, run, -1).to(wide).mean(dim=1))
        start += count
    if not pooled:
        return features[:0] * 1
    return torch.cat(pooled).to(features.dtype)


def pool_latents(features: Tensor, counts: Tensor, latent_size: int) -> Tensor:
    """Pool the features of I images into K = ``latent_size`` vectors each.

    ``features`` [M, H] are the images' merged features one after the other in raster order, ``counts`` [I]
    int64 says how many rows each image has (keep it on the CPU: elsewhere it is copied to the host). Of an
    image with n rows the trailing ``n mod K`` are dropped and each of the K contiguous runs of ``n // K``
    rows is averaged, in float32 (float64 for float64 features).

    Returns [I * K, H] in the dtype of ``features``; no images give [0, H]. Raises ``ValueError`` when the
    counts do not add up to M or an image has fewer than K rows. Source: the target pooling of 4DThinker
    (arXiv 2605.05997), strategy "average".
    """
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(f"features is {tuple(features.shape)} {features.dtype}; it must be floating [M, H]")
    if counts.dim() != 1 or counts.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"counts is {tuple(counts.shape)} {counts.dtype}; it must be [I] integers")
    if latent_size < 1:
        raise ValueError(f"latent_size is {latent_size}; it must be at least 1")
    rows: list[int] = counts.tolist()
    if sum(rows) != features.shape[0]:
        raise ValueError(f"counts add up to {sum(rows)} but features has {features.shape[0]} rows")
    for image, count in enumerate(rows):
        if count < latent_size:
            raise ValueError(
                f"image {image} has {count} merged features, fewer than latent_size {latent_size}; "
                "use larger images or a smaller latent_size"
            )
    return _reference(features, rows, latent_size)
