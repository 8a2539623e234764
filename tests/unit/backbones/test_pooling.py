"""The targets of images by runs and by cells, against loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fourdthinker.backbones.pooling import imagery_latents
from fourdthinker.latents import LatentSpec, cell_grid
from tests.tiny import tiny_checkpoint

SPEC = LatentSpec(4, 1, 2, 3)
GRID = replace(SPEC, compress_strategy="grid")


@pytest.mark.parametrize(
    ("height", "width", "size", "cells"),
    [
        (12, 21, 4, (2, 2)),
        (12, 21, 6, (2, 3)),
        (21, 12, 6, (3, 2)),
        (12, 21, 1, (1, 1)),
        (2, 16, 4, (1, 4)),
        (16, 2, 8, (8, 1)),
        (4, 12, 12, (2, 6)),
        (3, 9, 9, (1, 9)),
        (1, 9, 9, (1, 9)),
        (3, 3, 5, None),
        (1, 3, 4, None),
    ],
)
def test_cells_are_as_square_as_they_can_be(
    height: int, width: int, size: int, cells: tuple[int, int] | None
) -> None:
    assert cell_grid(height, width, size) == cells


@pytest.mark.parametrize("size", [1, 3, 4, 6])
def test_means_of_cells(size: int) -> None:
    grids = torch.tensor([[1, 10, 14], [1, 6, 6], [2, 12, 8]])
    features = torch.randn(int(grids.prod(-1).sum()) // 4, 5, dtype=torch.float64)
    got = imagery_latents(features, grids, 2, replace(GRID, latent_size=size))
    expected, start = [], 0
    for frames, height, width in (grids // torch.tensor([1, 2, 2])).tolist():
        picture = features[start : start + frames * height * width].view(frames, height, width, 5)
        start += frames * height * width
        way = cell_grid(height, width, size)
        assert way is not None
        for down in range(way[0]):
            for across in range(way[1]):
                rows = [y for y in range(height) if y * way[0] // height == down]
                columns = [x for x in range(width) if x * way[1] // width == across]
                expected.append(picture[:, rows][:, :, columns].mean(dim=(0, 1, 2)))
    torch.testing.assert_close(got, torch.stack(expected))
    assert imagery_latents(features[:0], grids[:0], 2, GRID).shape == (0, 5)


def test_runs_are_rows_and_cells_are_not() -> None:
    """A picture whose left half is 0 and right half is 1: only cells tell the sides from each other."""
    picture = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4)[:, None]
    grid = torch.tensor([[1, 8, 8]])
    assert imagery_latents(picture, grid, 2, SPEC)[:, 0].tolist() == [0.5] * 4
    assert imagery_latents(picture, grid, 2, GRID)[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="image 0 has 4 x 4 merged features, of which no grid has 7 cells"):
        imagery_latents(picture, grid, 2, replace(GRID, latent_size=7))


def test_a_backbone_pools_as_its_checkpoint_says() -> None:
    backbone = tiny_checkpoint(layers=1).backbone
    grid = torch.tensor([[1, 8, 12]])
    patches = torch.randn(96, backbone.vision.patch_dim)
    runs = backbone.imagery_targets(patches, grid)
    backbone.latents = replace(backbone.latents, compress_strategy="grid")
    cells = backbone.imagery_targets(patches, grid)
    features = backbone.encode_vision(patches, grid)[:, : backbone.hidden_size].view(2, 2, 2, 3, -1)
    torch.testing.assert_close(cells, features.mean(dim=(1, 3)).flatten(0, 1).detach())
    assert not torch.allclose(cells, runs)
