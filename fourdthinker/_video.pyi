"""Types of the native module; see csrc/module.cpp."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Resample = Literal["lanczos", "bicubic"]

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
) -> NDArray[np.float32]: ...
