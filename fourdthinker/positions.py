"""M-RoPE positions of both families, with the seconds of every clip exact.

Three numbers a token: time, height, width. Text counts all three up by one. A picture or clip of ``t*h*w``
merged tokens that starts at position p gets ``p + floor(i_t * seconds_per_grid * tokens_per_second)``, ``p
+ i_h`` and ``p + i_w``, and the text after it goes on one above the largest of all these. This is how the
released models were trained (Qwen2.5-VL technical report, and transformers 4.50).

transformers 5.17 differs from that in two ways and cannot be used: it truncates the seconds per grid to an
integer, and it lets the text after a clip go on at ``p + max(h, w)``, below the clip's own times when the
clip is long.

In Qwen3-VL positions hold no seconds: every temporal patch of a clip is a picture of its own, with the
seconds in the text before it (`per_frame`). Its positions equal those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def per_frame(grid_thw: Tensor) -> Tensor:
    """Make every temporal patch a grid of its own, as Qwen3-VL's prompts lay them out.

    Args:
        grid_thw: int64 [n, 3].

    Returns:
        int64 [sum t, 3], with t = 1.
    """
    single = grid_thw.repeat_interleave(grid_thw[:, 0], dim=0)
    single[:, 0] = 1
    return single


def mrope_positions(
    input_ids: Tensor,
    *,
    grid_thw: Tensor | None = None,
    seconds_per_grid: Sequence[float] | Tensor | None = None,
    image_token_id: int,
    video_token_id: int,
    merge_size: int = 2,
    tokens_per_second: float = 2.0,
) -> tuple[Tensor, int]:
    """Position ids of one unpadded sequence, and the position of the text token that would follow it.

    The time index is computed in float32, as by those who trained the models. Latent pads are text.

    Args:
        input_ids: int64 [P].
        grid_thw: int64 [n, 3], the grids of all images and clips in the order of the text, in patches before
            merging. Each takes the next `t * h * w / merge_size**2` vision pads, which must be adjacent and
            of one kind.
        seconds_per_grid: one number for every clip (none for images), in order; None: 1.0 each.
        image_token_id: id of the vision pad of images.
        video_token_id: id of the vision pad of clips.
        merge_size: side, in patches, of what is merged into one feature.
        tokens_per_second: position steps a second.

    Returns:
        int64 [3, P] (time, height, width) on the device of `input_ids`, and the next position.

    Raises:
        ValueError: pads, grids and seconds do not fit.
    """
    if input_ids.ndim != 1:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}; positions are made for one sequence [P]"
        )
    ids = input_ids.cpu()
    grids: list[list[int]] = [] if grid_thw is None else grid_thw.tolist()
    merged = [(t, h // merge_size, w // merge_size) for t, h, w in grids]
    starts, is_clip = _runs(ids == image_token_id, ids == video_token_id, [t * h * w for t, h, w in merged])
    if seconds_per_grid is None:
        seconds = [1.0] * sum(is_clip)
    else:
        seconds = [float(value) for value in seconds_per_grid]
        if len(seconds) != sum(is_clip):
            raise ValueError(f"{len(seconds)} seconds per grid for {sum(is_clip)} clips")
        if not all(math.isfinite(value) and value >= 0 for value in seconds):
            raise ValueError(f"seconds per grid are {seconds}; finite numbers >= 0 are needed")
    clip_seconds = iter(seconds)

    # Offsets within every grid; a run's first token carries the advance of the whole run, the others none.
    advance = torch.ones(len(ids), dtype=torch.long)
    offsets = torch.zeros(3, len(ids), dtype=torch.long)
    for (t, h, w), start, clip in zip(merged, starts, is_clip, strict=True):
        scale = torch.tensor(next(clip_seconds) if clip else 0.0, dtype=torch.float32)
        time = (torch.arange(t) * scale * tokens_per_second).long()
        axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
        run = slice(start, start + t * h * w)
        offsets[:, run] = torch.stack(axes).flatten(1)
        advance[run] = 0
        advance[start] = max(int(time[-1]), h - 1, w - 1) + 1
    end = advance.cumsum(0)
    # Where nothing advances the base is that of the run's first token.
    base = torch.where(advance > 0, end - advance, 0).cummax(0).values
    positions = base + offsets
    return positions.to(input_ids.device), int(end[-1]) if len(ids) else 0


def _runs(image: Tensor, video: Tensor, sizes: list[int]) -> tuple[list[int], list[bool]]:
    """First index of every grid's pads, and whether they are video pads."""
    pads = (image | video).nonzero()[:, 0]
    if min(sizes, default=1) < 1:
        raise ValueError(
            "a grid is empty after merging: every grid needs t >= 1 and sides of at least merge_size"
        )
    if sum(sizes) != len(pads):
        raise ValueError(f"{len(pads)} vision pads in the text for grids of {sizes} merged tokens")
    starts, is_clip = [], []
    for number, run in enumerate(pads.split(sizes)):
        clips = video[run]
        if int(run[-1] - run[0]) != len(run) - 1 or bool(clips.any() != clips.all()):
            raise ValueError(
                f"the {len(run)} vision pads of grid {number} (from token {int(run[0])}) are not one run "
                "of one kind: pads and grids are in different orders"
            )
        starts.append(int(run[0]))
        is_clip.append(bool(clips[0]))
    return starts, is_clip
