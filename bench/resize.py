"""Resize of video frames on the CPU: ours against Pillow and torch, interleaved, medians and spread.

python bench/resize.py [rounds]
"""

import logging
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from fourdthinker import _video

FRAMES, SOURCE, TARGET = 16, (720, 1280), (336, 588)


def peers(pixels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Name -> the same work: Lanczos from SOURCE to TARGET, uint8 to uint8 unless the name says patches."""
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last in memory, as the frames come

    def pillow() -> np.ndarray:
        size = (TARGET[1], TARGET[0])
        lanczos = Image.Resampling.LANCZOS
        return np.stack([np.asarray(Image.fromarray(x).resize(size, lanczos)) for x in pixels])

    def with_torch(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        return interpolate(planes, TARGET, mode="lanczos", antialias=True)

    return {
        "Pillow, 1 thread": pillow,
        "torch, 1 thread": lambda: with_torch(1),
        "torch, 2 threads": lambda: with_torch(2),
        "ours, 1 thread": lambda: _video.resize(pixels, *TARGET, "lanczos", 1),
        "ours, 2 threads": lambda: _video.resize(pixels, *TARGET, "lanczos", 2),
        "ours to patches, 1 thread": lambda: _video.resize_patches(pixels, *TARGET, "lanczos", threads=1),
        "ours to patches, 2 threads": lambda: _video.resize_patches(pixels, *TARGET, "lanczos", threads=2),
    }


def main(rounds: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, *SOURCE, 3), dtype=np.uint8)
    runs = peers(pixels)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i > 0:  # the first round warms up
                times[name].append((time.perf_counter() - start) * 1000 / FRAMES)
    for name, values in times.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        logging.info("%-28s %6.2f ms a frame  (%.2f to %.2f)", name, middle, low, high)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
