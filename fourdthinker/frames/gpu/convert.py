"""Planes decoded in software, converted on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fourdthinker.frames.checks import DTYPES
from fourdthinker.frames.native import native

ROW = 64  # rows begin at multiples of so many bytes, for aligned reads
_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def missing() -> str | None:
    """Why the extension cannot convert frames on a GPU; None when it can, given one."""
    module = native()
    if module is None:
        return "fourdthinker._video is not built"
    info = module.build_info()
    return None if info["cuda"] else f"fourdthinker._video is built without CUDA: {info['why_no_cuda']}"


def convert(frames: Sequence[tuple[NDArray[Any], ...]], *, device: torch.device, **options: Any) -> Tensor:
    """What `_video.convert` makes of the same frames, bit for bit, by its CUDA kernels.

    Args:
        frames: for each frame a tuple of planes on the host, all frames of one size. They may be changed once
            this returns.
        device: a CUDA device; on "cpu" the kernels' threads run one after the other, for tests.
        **options: the keywords of `_video.convert`, `threads` apart.

    Returns:
        uint8 [T, height, width, 3], or patches in their dtype; ready in the order of torch's current stream.

    Raises:
        ValueError: as `_video.convert`.
        RuntimeError: what CUDA says.
    """
    if not frames or not frames[0]:
        raise ValueError("there are no frames: at least one is needed")
    kind = frames[0][0].dtype
    shapes = [plane.shape for plane in frames[0]]
    for index, planes in enumerate(frames):
        if [plane.shape for plane in planes] != shapes or any(plane.dtype != kind for plane in planes):
            raise ValueError(
                f"frame {index} has planes of other sizes or types than frame 0: split the clip there"
            )
    height, width = shapes[0]
    width = width // 3 if options["chroma"] == "rgb" else width
    pitches = [-(-columns * kind.itemsize // ROW) * ROW for _, columns in shapes]
    sizes = [rows * pitch for (rows, _), pitch in zip(shapes, pitches, strict=True)]
    # One block of memory, so that one copy brings all planes to the device.
    block = torch.empty(len(frames) * sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    memory = block.numpy()
    offsets: list[list[int]] = []
    offset = 0
    for planes in frames:
        offsets.append([])
        for plane, pitch, size in zip(planes, pitches, sizes, strict=True):
            rows = memory[offset : offset + size].view(kind).reshape(plane.shape[0], pitch // kind.itemsize)
            rows[:, : plane.shape[1]] = plane
            offsets[-1].append(offset)
            offset += size
    block = block.to(device, non_blocking=True)
    out = empty(len(frames), device, **options)
    base = block.data_ptr()
    addresses = [
        [(base + offset, pitch) for offset, pitch in zip(parts, pitches, strict=True)] for parts in offsets
    ]
    module = native()
    if module is None:
        raise RuntimeError("fourdthinker._video is not built")
    index, stream = index_and_stream(device)
    positions = list(range(len(frames)))
    module.cuda_convert(
        addresses, out.data_ptr(), positions, len(positions), (height, width), index, stream, **options
    )
    return out


def index_and_stream(device: torch.device) -> tuple[int, int]:
    """(number of a CUDA device, address of torch's current stream on it); (-1, 0) for the host."""
    if device.type != "cuda":
        return -1, 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream


def empty(
    frames: int,
    device: torch.device,
    *,
    height: int,
    width: int,
    out: str = "uint8",
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    dtype: str = "float32",
    **_: Any,
) -> Tensor:
    """Memory for the result of a conversion; other keywords of `_video.convert` have no effect.

    Args:
        frames: T, their number.
        device: where it lies.
        height: of the pictures in pixels; for patches a multiple of patch * merge.
        width: likewise.
        out: "uint8" or "patches".
        patch: side of a patch in pixels.
        merge: side, in patches, of a block that the vision tower merges.
        temporal: frames that a patch spans.
        dtype: of patches: "float32", "float16" or "bfloat16".
        **_: the other keywords.

    Returns:
        uint8 [T, height, width, 3], or [patches, 3 * temporal * patch^2] in `dtype`.

    Raises:
        ValueError: another output, dtype or size.
    """
    if out == "uint8":
        return torch.empty(frames, height, width, 3, dtype=torch.uint8, device=device)
    if out != "patches" or dtype not in _DTYPES or height % (patch * merge) or width % (patch * merge):
        raise ValueError(
            f"out={out!r}, dtype={dtype!r}, {height}x{width} pixels: out is 'uint8' or 'patches', dtype one "
            f"of {', '.join(_DTYPES)}, and the size of patches a multiple of {patch * merge}"
        )
    count = -(-frames // temporal) * (height // patch) * (width // patch)
    return torch.empty(count, 3 * temporal * patch**2, dtype=_DTYPES[dtype], device=device)
