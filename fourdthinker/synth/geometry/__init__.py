"""Where a clip's geometry comes from: a reader for each source of poses, estimators, depth."""

from fourdthinker.synth.geometry.colmap import read_colmap
from fourdthinker.synth.geometry.nerfstudio import read_nerfstudio
from fourdthinker.synth.geometry.npz import read_npz, write_npz
from fourdthinker.synth.geometry.scene import scene_camera, scene_object
from fourdthinker.synth.geometry.spatialvid import read_instructions, read_spatialvid
from fourdthinker.synth.geometry.tum import read_tum

__all__ = [
    "read_colmap",
    "read_instructions",
    "read_nerfstudio",
    "read_npz",
    "read_spatialvid",
    "read_tum",
    "scene_camera",
    "scene_object",
    "write_npz",
]
