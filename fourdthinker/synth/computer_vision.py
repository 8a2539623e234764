"""OpenCV and pycolmap, imported where they are used."""

from __future__ import annotations

from typing import Any

from fourdthinker.errors import ConfigError


def opencv() -> Any:
    """The module `cv2`, with one thread and its random numbers at their beginning.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "OpenCV is not installed, and masks by motion and poses from frames need it; "
            "pip install 'fourdthinker[synth]', or give poses"
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
            "this estimator needs pycolmap; install it (pip install 'fourdthinker[geometry]'), or use "
            "OpenCV's"
        ) from error
    return pycolmap
