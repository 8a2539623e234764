"""Frames of videos, frame folders and pictures: which ones (by presentation time), at what size."""

from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD, Frames, patchify, resize
from fourdthinker.frames.image_file import load_image
from fourdthinker.frames.images import read_images
from fourdthinker.frames.policy import FramePolicy
from fourdthinker.frames.pool import in_order
from fourdthinker.frames.probing import Probe, probe
from fourdthinker.frames.read import iterate_frames, read_frames, read_many
from fourdthinker.frames.request import FrameSource

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "FramePolicy",
    "FrameSource",
    "Frames",
    "Probe",
    "in_order",
    "iterate_frames",
    "load_image",
    "patchify",
    "probe",
    "read_frames",
    "read_images",
    "read_many",
    "resize",
]
