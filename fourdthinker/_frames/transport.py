"""Whether the counters of an MPEG transport stream break only where pieces were joined end to end.

Each packet of 188 bytes carries a counter, by which FFmpeg sees that packets were lost. Pieces of a recording
put together again count anew, and nothing is lost between them. Source: ITU-T H.222.0 2.4.3.2 and 2.4.3.3.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import numpy as np

SIZE = 188
SYNC = 0x47
MANY = 16384  # packets read at once
FRAMES = 24  # on either side of a join whose stamps are looked at
LOST = 1.9  # times the shortest step from frame to frame: a frame is missing


def only_joined(
    media: str | os.PathLike[str] | bytes, name: str, identifier: int, check: Callable[[], None]
) -> bool:
    """Whether, in a file at `name` unless it is bytes, all packets of a stream are sound and its counter
    breaks only between two pictures. check is called now and then."""
    last: int | None = None
    with io.BytesIO(media) if isinstance(media, bytes) else open(name, "rb") as file:
        while data := file.read(MANY * SIZE):
            check()
            if len(data) % SIZE:
                return False
            packets = np.frombuffer(data, np.uint8).reshape(-1, SIZE)
            if (packets[:, 0] != SYNC).any():
                return False
            own = (packets[:, 1] & 31).astype(np.int64) << 8 | packets[:, 2]
            packets = packets[(own == identifier) & ((packets[:, 3] & 16) != 0)]  # those with a payload
            if not len(packets):
                continue
            counter = packets[:, 3].astype(np.int64) & 15
            before = np.concatenate(([counter[0] - 1 if last is None else last], counter[:-1]))
            breaks, begins = (counter - before) % 16 != 1, (packets[:, 1] & 64) != 0
            if (packets[:, 1] & 128).any() or (breaks & ~begins).any():
                return False
            last = int(counter[-1])
    return True


def gapless(shown: Sequence[int], stamp: int) -> bool:
    """Whether frames follow each other without one missing, around a stamp. shown: stamps, increasing."""
    at = int(np.searchsorted(shown, stamp))
    steps = np.diff(shown[max(0, at - FRAMES) : at + FRAMES])
    return bool(len(steps)) and steps.max() < LOST * steps.min()
