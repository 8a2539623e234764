"""Where a clip's geometry comes from: a reader for each source of poses, estimators, depth."""

from fourdthinker.synth.geometry.calibration import Calibration, read_calibration
from fourdthinker.synth.geometry.colmap import read_colmap
from fourdthinker.synth.geometry.depth import Depth, aligned, in_metres, read_depth, stereo_depth
from fourdthinker.synth.geometry.lift import Plane, ground_plane, lift_object
from fourdthinker.synth.geometry.nerfstudio import read_nerfstudio
from fourdthinker.synth.geometry.npz import read_npz, write_npz
from fourdthinker.synth.geometry.rectify import calibrated_depth
from fourdthinker.synth.geometry.scene import scene_camera, scene_object
from fourdthinker.synth.geometry.sfm import reconstruct_camera
from fourdthinker.synth.geometry.spatialvid import read_instructions, read_spatialvid
from fourdthinker.synth.geometry.tum import read_tum
from fourdthinker.synth.geometry.visual import Estimate, estimate_camera

__all__ = [
    "Calibration",
    "Depth",
    "Estimate",
    "Plane",
    "aligned",
    "calibrated_depth",
    "estimate_camera",
    "ground_plane",
    "in_metres",
    "lift_object",
    "read_calibration",
    "read_colmap",
    "read_depth",
    "read_instructions",
    "read_nerfstudio",
    "read_npz",
    "read_spatialvid",
    "read_tum",
    "reconstruct_camera",
    "scene_camera",
    "scene_object",
    "stereo_depth",
    "write_npz",
]
