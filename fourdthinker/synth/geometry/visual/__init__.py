"""The camera's path from the frames alone, with OpenCV and NumPy."""

from fourdthinker.synth.geometry.visual.estimate import Estimate, estimate_camera

__all__ = ["Estimate", "estimate_camera"]
