"""OpenCV and pycolmap, imported where they are used."""

from __future__ import annotations

from typing import Any

from fourdthinker.errors import ConfigError, install


def opencv() -> Any:
    """The module `cv2`, with one thread and its random numbers at their beginning.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "masks by motion and poses from frames need OpenCV, which is not installed; "
            f"{install('synth')}, or give poses"
        ) from error
    cv2.setNumThreads(1)  # clips share the cores, one each
    cv2.setRNGSeed(0)
    return cv2


def colmap() -> Any:
    """The module `pycolmap`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ConfigError(
            "geometry=colmap needs pycolmap, which is not installed; "
            f"{install('geometry')}, or use geometry=opencv"
        ) from error
    return pycolmap
