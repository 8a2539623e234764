"""Frames of videos, frame folders and pictures: which ones (by presentation time), at what size, on what
clock.

The public face; the insides are in `fourdthinker._frames`.
"""

from fourdthinker._frames.images import read_images
from fourdthinker._frames.pixels import Frames, patchify, resize
from fourdthinker._frames.policy import FramePolicy
from fourdthinker._frames.pool import in_order
from fourdthinker._frames.request import FrameSource
from fourdthinker._frames.video import iterate_frames, read_frames, read_many

__all__ = [
    "FramePolicy",
    "FrameSource",
    "Frames",
    "in_order",
    "iterate_frames",
    "patchify",
    "read_frames",
    "read_images",
    "read_many",
    "resize",
]
