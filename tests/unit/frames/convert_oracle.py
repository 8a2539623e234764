"""Colour conversion in float64 from the standards, independent of csrc: what tests compare with."""

from __future__ import annotations

import numpy as np

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def axis_positions(
    length: int, chroma_length: int, cosited: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each luma sample: the chroma samples around it, and how far it lies towards the second."""
    if length == chroma_length:
        at = np.arange(length, dtype=np.float64)
    else:
        at = np.arange(length) / 2 if cosited else (np.arange(length) + 0.5) / 2 - 0.5
    low = np.floor(at).astype(int)
    return np.clip(low, 0, chroma_length - 1), np.clip(low + 1, 0, chroma_length - 1), at - low


def upsample(plane: np.ndarray, height: int, width: int, siting: str) -> np.ndarray:
    """Bilinear chroma at the luma positions; outside the plane its border samples go on."""
    plane = plane.astype(np.float64)
    top, bottom, part = axis_positions(height, plane.shape[0], siting == "topleft")
    plane = plane[top] * (1 - part)[:, None] + plane[bottom] * part[:, None]
    left, right, part = axis_positions(width, plane.shape[1], siting in ("left", "topleft"))
    return plane[:, left] * (1 - part) + plane[:, right] * part


def to_rgb(
    planes: tuple[np.ndarray, ...],
    *,
    depth: int = 8,
    matrix: str = "bt601",
    full_range: bool = False,
    siting: str = "left",
) -> np.ndarray:
    """Planes (Y, U, V) or (Y,) of code values -> float64 levels [h, w, 3], unrounded and unclamped."""
    height, width = planes[0].shape
    unit, top = 2.0 ** (depth - 8), 2.0**depth - 1
    luma = planes[0].astype(np.float64)
    luma = luma / top if full_range else (luma - 16 * unit) / (219 * unit)
    blue = red = np.zeros_like(luma)
    if len(planes) == 3:
        scale = top if full_range else 224 * unit
        blue, red = ((upsample(p, height, width, siting) - 2.0 ** (depth - 1)) / scale for p in planes[1:])
    kr, kb = WEIGHTS[matrix]
    r = luma + 2 * (1 - kr) * red
    b = luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.stack([r, g, b], axis=-1) * 255


def levels(rgb: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(rgb + 0.5), 0, 255).astype(np.uint8)
