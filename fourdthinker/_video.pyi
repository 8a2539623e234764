"""Types of the native module; see csrc/module.cpp and csrc/cuda/bindings.cpp."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Resample = Literal["lanczos", "bicubic"]
Triple = tuple[float, float, float]

def resize(
    pixels: Any, height: int, width: int, resample: Resample = "lanczos", threads: int = 0
) -> NDArray[np.uint8]: ...
def resize_patches(
    pixels: Any,
    height: int,
    width: int,
    resample: Resample = "lanczos",
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    threads: int = 0,
    mean: Triple = ...,
    std: Triple = ...,
    dtype: str = "float32",
) -> NDArray[Any]: ...
def convert(
    frames: Sequence[tuple[Any, ...]],
    *,
    height: int,
    width: int,
    chroma: str,
    depth: int = 8,
    shift: int = 0,
    interleaved: bool = False,
    matrix: str = "bt601",
    full_range: bool = False,
    siting: str = "left",
    crop: tuple[int, int, int, int] | None = None,
    resample: Resample = "lanczos",
    rotation: int = 0,
    mirrored: bool = False,
    out: str = "uint8",
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    mean: Triple = ...,
    std: Triple = ...,
    dtype: str = "float32",
    threads: int = 0,
) -> NDArray[Any]: ...
def use_instructions(name: str) -> str: ...
def build_info() -> dict[str, Any]: ...
def cuda_convert(
    frames: Sequence[Sequence[tuple[int, int]]],
    to: int,
    place: Sequence[int],
    total: int,
    size: tuple[int, int],
    device: int,
    stream: int,
    **options: Any,
) -> None: ...

# In CUDA builds with NVDEC:

def nvdec_refusal(
    codec: str, chroma: str, depth: int, width: int, height: int, device: int
) -> str | None: ...

class NvdecDamaged(RuntimeError): ...

class Nvdec:
    def __init__(
        self,
        codec: str,
        extradata: bytes,
        wanted: Sequence[int],
        to: int,
        device: int,
        stream: int,
        **options: Any,
    ) -> None: ...
    def feed(
        self, data: bytes, offsets: Sequence[int], pts: Sequence[int], landed: int | None = None
    ) -> int: ...
    def finish(self) -> list[int]: ...
