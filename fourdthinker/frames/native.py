"""The compiled extension, where it was built."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

logger = logging.getLogger(__name__)


@cache
def native() -> ModuleType | None:
    """`fourdthinker._video`, or None (said once, in the log) where it was not built."""
    try:
        from fourdthinker import _video
    except ImportError as error:
        logger.warning(
            "fourdthinker._video is not built (%s): resizing with Pillow, several times slower", error
        )
        return None
    return _video
