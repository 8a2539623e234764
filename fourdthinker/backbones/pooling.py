"""The K targets of an image, from its merged vision features."""

from __future__ import annotations

import torch
from torch import Tensor

from fourdthinker.kernels import pool_latents
from fourdthinker.latents import LatentSpec, cell_grid


def imagery_latents(merged: Tensor, grid_thw: Tensor, merge_size: int, latents: LatentSpec) -> Tensor:
    """Pool the features of images as a checkpoint says.

    Args:
        merged: [M, H] floating, image after image in raster order.
        grid_thw: int64 [n, 3] on the host, their grids in patches.
        merge_size: patches of a side that became one feature.
        latents: K and the kind of pooling.

    Returns:
        [n * K, H] in the dtype of `merged`, detached: in a grid cell after cell in raster order.

    Raises:
        ValueError: an image is too small for K latents.
    """
    size = latents.latent_size
    if latents.compress_strategy == "average":
        return pool_latents(merged, grid_thw.prod(-1) // merge_size**2, size)
    order, counts = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    start = 0
    for image, (frames, height, width) in enumerate(grid_thw.tolist()):
        height, width = height // merge_size, width // merge_size
        cells = cell_grid(height, width, size)
        if cells is None:
            raise ValueError(
                f"image {image} has {height} x {width} merged features, of which no grid has {size} cells; "
                "use larger images, another latent_size or latent_pooling=average"
            )
        down, across = (torch.arange(n) * part // n for n, part in zip((height, width), cells, strict=True))
        cell = (down[:, None] * cells[1] + across).flatten().repeat(frames)
        order.append(start + cell.argsort(stable=True))
        counts.append(cell.bincount(minlength=size))
        start += cell.numel()
    return pool_latents(merged[torch.cat(order).to(merged.device)], torch.cat(counts), 1)
