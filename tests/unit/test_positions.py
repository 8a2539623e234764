"""M-RoPE positions against a token-by-token brute force and against transformers where that is right."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fourdthinker.positions import mrope_positions
from tests.tiny import tiny_checkpoint

IMAGE, VIDEO, TEXT = 7, 8, 1
Part = tuple[str, tuple[int, int, int], float]  # kind, grid before merging, seconds per grid


def positions(ids: Tensor, **options: object) -> tuple[Tensor, int]:
    return mrope_positions(ids, image_token_id=IMAGE, video_token_id=VIDEO, **options)  # type: ignore[arg-type]


def sequence(parts: Sequence[Part | int]) -> tuple[Tensor, Tensor, list[float]]:
    """Ids, grids and seconds of runs of text (an int: how long) and of pictures."""
    ids: list[int] = []
    grids, seconds = [], []
    for part in parts:
        if isinstance(part, int):
            ids += [TEXT] * part
            continue
        kind, (t, h, w), clock = part
        ids += [VIDEO if kind == "video" else IMAGE] * (t * (h // 2) * (w // 2))
        grids.append([t, h, w])
        if kind == "video":
            seconds.append(clock)
    return torch.tensor(ids), torch.tensor(grids).reshape(-1, 3), seconds


def brute_force(parts: Sequence[Part | int], tokens_per_second: float) -> tuple[list[list[int]], int]:
    """One token after the other, from the definition."""
    out: list[list[int]] = []
    start = 0
    for part in parts:
        if isinstance(part, int):
            out += [[start + i] * 3 for i in range(part)]
            start += part
            continue
        kind, (t, h, w), clock = part
        run = []
        for frame in range(t):
            time = math.floor(frame * clock * tokens_per_second) if kind == "video" else 0
            for row in range(h // 2):
                for column in range(w // 2):
                    run.append([start + time, start + row, start + column])
        out += run
        start = max(max(three) for three in run) + 1
    return out, start


CASES: dict[str, list[Part | int]] = {
    "text only": [5],
    "half a second": [3, ("video", (4, 4, 6), 0.5), 4],
    "odd seconds": [1, ("video", (7, 2, 2), 1.375), 2],
    "longer than wide": [2, ("video", (25, 4, 4), 2.0), 3],
    "wider than long": [2, ("video", (2, 4, 12), 1.0), 3],
    "taller than long": [2, ("video", (2, 12, 4), 1.0), 3],
    "starts with a clip": [("video", (2, 4, 4), 0.75), 3],
    "ends with a clip": [3, ("video", (2, 4, 4), 0.75)],
    "a picture of several rows": [2, ("image", (3, 4, 4), 0.0), 1],
    "clips and pictures": [
        2,
        ("video", (3, 4, 4), 0.25),
        1,
        ("image", (1, 6, 4), 0.0),
        1,
        ("video", (2, 2, 8), 3.5),
        ("image", (1, 2, 2), 0.0),
        4,
    ],
}


@pytest.mark.parametrize("tokens_per_second", [2.0, 4.0, 25])
@pytest.mark.parametrize("name", CASES)
def test_brute_force(name: str, tokens_per_second: float) -> None:
    ids, grids, seconds = sequence(CASES[name])
    got, following = positions(
        ids, grid_thw=grids, seconds_per_grid=seconds, tokens_per_second=tokens_per_second
    )
    expected, after = brute_force(CASES[name], tokens_per_second)
    assert got.dtype == torch.long
    assert got.T.tolist() == expected
    assert following == after


def test_random_sequences_against_brute_force() -> None:
    generator = random.Random(3)
    for _ in range(200):
        parts: list[Part | int] = []
        for _ in range(generator.randint(1, 6)):
            if generator.random() < 0.5:
                parts.append(generator.randint(1, 5))
            else:
                kind = generator.choice(["video", "image"])
                t = generator.randint(1, 6) if kind == "video" else 1
                grid = (t, 2 * generator.randint(1, 4), 2 * generator.randint(1, 4))
                parts.append((kind, grid, generator.randint(0, 64) / 16))
        ids, grids, seconds = sequence(parts)
        got, following = positions(ids, grid_thw=grids, seconds_per_grid=seconds)
        assert (got.T.tolist(), following) == brute_force(parts, 2.0)


def test_seconds_default_to_one() -> None:
    ids, grids, _ = sequence([2, ("video", (3, 4, 4), 1.0), 1, ("video", (2, 4, 4), 1.0)])
    assert torch.equal(
        positions(ids, grid_thw=grids)[0], positions(ids, grid_thw=grids, seconds_per_grid=[1.0, 1.0])[0]
    )


def test_other_merge_sizes() -> None:
    ids = torch.tensor([TEXT] + [VIDEO] * (2 * 3 * 2) + [TEXT])
    got, following = positions(ids, grid_thw=torch.tensor([[2, 9, 6]]), merge_size=3)
    assert got[:, 1:-1].T.tolist() == [
        [1 + 2 * t, 1 + h, 1 + w] for t in range(2) for h in range(3) for w in range(2)
    ]
    assert got[:, -1].tolist() == [4, 4, 4]
    assert following == 5


@pytest.mark.parametrize(
    "parts",
    [
        [2, ("video", (2, 4, 8), 1.0), 3, ("image", (1, 4, 6), 0.0), 2],
        [1, ("video", (2, 10, 4), 2.0), 1, ("video", (2, 4, 8), 1.0), 2],
    ],
)
def test_transformers_agrees_on_short_clips_with_whole_seconds(parts: list[Part | int]) -> None:
    # Only there: it truncates the seconds, and its text goes on below the times of a longer clip.
    ids, grids, seconds = sequence(parts)
    kinds = torch.where(ids == VIDEO, 2, torch.where(ids == IMAGE, 1, 0))
    videos = [isinstance(part, tuple) and part[0] == "video" for part in parts if isinstance(part, tuple)]
    model = tiny_checkpoint().backbone.hf.model
    expected, _ = model.get_rope_index(
        ids[None],
        mm_token_type_ids=kinds[None],
        image_grid_thw=grids[~torch.tensor(videos)],
        video_grid_thw=grids[torch.tensor(videos)],
        second_per_grid_ts=torch.tensor(seconds),
    )
    got, _ = positions(ids, grid_thw=grids, seconds_per_grid=seconds)
    assert torch.equal(got, expected[:, 0])


def test_errors() -> None:
    ids, grids, seconds = sequence([2, ("video", (2, 4, 4), 1.0), 1, ("image", (1, 4, 4), 0.0)])
    with pytest.raises(ValueError, match="12 vision pads in the text for grids of"):
        positions(ids, grid_thw=grids[:1], seconds_per_grid=seconds)
    with pytest.raises(ValueError, match="12 vision pads"):
        positions(ids)
    with pytest.raises(ValueError, match="2 seconds per grid for 1 clips"):
        positions(ids, grid_thw=grids, seconds_per_grid=[1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        positions(ids, grid_thw=grids, seconds_per_grid=[float("inf")])
    with pytest.raises(ValueError, match="finite"):
        positions(ids, grid_thw=grids, seconds_per_grid=[-1.0])
    with pytest.raises(ValueError, match="different orders"):
        positions(ids, grid_thw=grids.flip(0), seconds_per_grid=seconds)
    with pytest.raises(ValueError, match="one sequence"):
        positions(ids[None], grid_thw=grids)
    with pytest.raises(ValueError, match="empty after merging"):
        positions(ids, grid_thw=torch.tensor([[0, 4, 4]]))
    mixed = torch.tensor([VIDEO, VIDEO, IMAGE, IMAGE])
    with pytest.raises(ValueError, match="one kind"):
        positions(mixed, grid_thw=torch.tensor([[1, 4, 4]]))
