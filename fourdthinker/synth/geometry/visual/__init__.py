"""The camera's path from the frames alone, with OpenCV and NumPy."""

from fourdthinker.synth.geometry.visual.estimate import Estimate, estimate_camera, key_frames

__all__ = ["Estimate", "estimate_camera", "key_frames"]
