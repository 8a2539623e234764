"""Targets of the latents: per image, the mean of K contiguous runs of its merged vision features."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, check_floating, check_integer, check_tensors, tile, use_triton
from ._gpu_architectures import launching


def _reference(features: Tensor, counts: list[int], latent_size: int) -> Tensor:
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    pooled = [features.new_empty(0, features.shape[1])]
    start = 0
    for count in counts:
        run = count // latent_size
        kept = features[start : start + run * latent_size]
        pooled.append(kept.reshape(latent_size, run, -1).to(wide).mean(dim=1).to(features.dtype))
        start += count
    return torch.cat(pooled)


@triton.jit(do_not_specialize=["latent_size"])
def pool_latents_kernel(
    features_ptr,
    features_stride,
    starts_ptr,
    counts_ptr,
    output_ptr,
    latent_size,
    H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Program: BLOCK_H columns of one latent of one image. The mean over its run of features, in float32."""
    item = tl.program_id(0)
    image = item // latent_size
    run = tl.load(counts_ptr + image) // latent_size
    first = tl.load(starts_ptr + image) + (item % latent_size) * run
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < H
    total = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    for start in range(0, run, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        address = features_ptr + (first + rows)[:, None] * features_stride + columns[None, :]
        total += tl.load(address, mask=(rows < run)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / run.to(tl.float32)
    tl.store(output_ptr + item.to(tl.int64) * H + columns, mean.to(output_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op(f"{NAMESPACE}::pool_latents", mutates_args=())
def _pool_op(features: Tensor, counts: Tensor, latent_size: int, backend: str) -> Tensor:
    rows: list[int] = counts.tolist()
    if sum(rows) != features.shape[0]:
        raise ValueError(f"counts add up to {sum(rows)} but features has {features.shape[0]} rows")
    for image, count in enumerate(rows):
        if count < latent_size:
            raise ValueError(
                f"image {image} has {count} merged features, fewer than latent_size {latent_size}; "
                "use larger images or a smaller latent_size"
            )
    if not use_triton(backend, features):
        return _reference(features, rows, latent_size)
    width = features.shape[1]
    output = torch.empty(len(rows) * latent_size, width, dtype=features.dtype, device=features.device)
    if output.numel():
        sizes = torch.tensor(rows, dtype=torch.int64)
        starts, sizes = (sizes.cumsum(0) - sizes).to(features.device), sizes.to(features.device)
        with launching("pool_latents", features) as launch:
            block = tile(width, launch.block)
            pool_latents_kernel[(output.shape[0], triton.cdiv(width, block))](
                features, features.stride(0), starts, sizes, output, latent_size,
                H=width, BLOCK_R=launch.rows, BLOCK_H=block, **launch.options,
            )  # fmt: skip
    return output


@_pool_op.register_fake
def _(features: Tensor, counts: Tensor, latent_size: int, backend: str) -> Tensor:
    return features.new_empty(counts.shape[0] * latent_size, features.shape[1])


def pool_latents(features: Tensor, counts: Tensor, latent_size: int, *, backend: str = "auto") -> Tensor:
    """Pool the features of I images into K = ``latent_size`` vectors each.

    Of an image with n rows the trailing ``n mod K`` are dropped and each of the K contiguous runs of ``n //
    K`` rows is averaged, in float32 (float64 for float64 features). One launch that reads the features once.
    Targets are constants: there is no gradient. Source: the target pooling of 4DThinker (arXiv 2605.05997),
    strategy "average".

    Args:
        features: [M, H], the images' merged features one after the other in raster order.
        counts: [I] int64, rows of each image, best on the CPU: from elsewhere it is copied to the host.
        latent_size: K.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        [I * K, H] in the dtype of ``features``; no images give [0, H].

    Raises:
        ValueError: the features require gradients, the counts do not add up to M, or an image has fewer than
            K rows.
    """
    check_tensors(features=features)
    check_tensors(counts=counts)  # on the CPU, wherever the features are
    check_floating(features=features)
    if features.dim() != 2:
        raise ValueError(f"features is {tuple(features.shape)}; it must be [M, H]")
    if counts.dim() != 1 or counts.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"counts is {tuple(counts.shape)} {counts.dtype}; it must be [I] integers")
    check_integer("latent_size", latent_size, least=1)
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError("features require gradients, but targets are constants; pass features.detach()")
    dense = features if features.shape[1] <= 1 or features.stride(1) == 1 else features.contiguous()
    return _pool_op(dense, counts, latent_size, backend)
