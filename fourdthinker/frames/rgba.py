"""8-bit colour with alpha of a picture that Pillow has read, and what it is over white."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16-bit gray
STRIP = 256  # rows that are converted at a time, so that no second picture of full size is made
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # of Pillow's raw modes: from one level of so many bits to the next


def scale_key(image: Image.Image) -> None:
    """Scale the transparent level of a gray PNG of 2 or 4 bits to 8, as Pillow scales the picture alone.

    To be called before the picture is loaded."""
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format == "PNG" and isinstance(key, int) and tiles:
        image.info["transparency"] = key * _GRAY_STEPS.get(str(tiles[0][3]), 1)


def gray_of_sixteen(image: Image.Image, bits: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """(levels of so many bits scaled to 8 and rounded, where they are transparent; None: nowhere)."""
    levels = np.asarray(image)
    top = (1 << bits) - 1
    gray = ((levels.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    key = image.info.get("transparency")
    return gray, levels == key if isinstance(key, int) else None


def has_alpha(image: Image.Image) -> bool:
    """Whether some of its pixels may be transparent."""
    return image.info.get("transparency") is not None or image.mode in _ALPHA


def with_alpha(image: Image.Image) -> Image.Image:
    """As RGBA; of a transparent colour of 16 bits, the high byte, as Pillow takes of the picture."""
    key = image.info.get("transparency")
    if key is not None and image.mode == "RGB" and max(key) > 255:
        image.info["transparency"] = tuple(level >> 8 for level in key)
    return image if image.mode == "RGBA" else image.convert("RGBA")


def opaque(pixels: NDArray[np.uint8]) -> bool:
    """Whether no pixel of RGBA [H, W, 4] is transparent. By whole pixels, which is fast."""
    return bool(pixels.view("<u4").min() >= 0xFF000000)


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of RGBA [H, W, 4], by the arithmetic of Pillow's `paste`."""
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), STRIP):  # the sums take six bytes a pixel
        strip = pixels[top : top + STRIP]
        alpha = strip[..., 3:].astype(np.uint16)
        summed = strip[..., :3] * alpha + 255 * (255 - alpha) + 128
        out[top : top + STRIP] = ((summed >> 8) + summed) >> 8
    return out
