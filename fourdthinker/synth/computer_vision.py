"""OpenCV, imported where it is used."""

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
