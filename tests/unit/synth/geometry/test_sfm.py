"""COLMAP's estimator on rendered frames (the four paths), and on real ones beside COLMAP's own poses."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bench.geometry import differences, fox
from fourdthinker.synth.motion import camera_moves, moves_during
from fourdthinker.synth.tracks import CameraTrack
from fourdthinker.worlds.scenes import render
from tests.shared import needs, shared
from tests.unit.synth.geometry.visual.test_estimate import PATHS, made_for

pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra geometry)")

from fourdthinker.synth.geometry import reconstruct_camera


@cache
def reconstructed(name: str) -> tuple[CameraTrack, float]:
    made, start = made_for(name, 320)
    found = reconstruct_camera(list(render(made).pixels), made.seconds, intrinsics=made.intrinsics)
    return found.track, start


@pytest.mark.parametrize("name", PATHS)
def test_the_four_paths_are_in_in_in_and_pan_only(name):
    track, start = reconstructed(name)
    moves = camera_moves(track)
    assert moves_during(moves, start + 0.1, float(track.times[-1])) == {PATHS[name]}
    if start:
        assert moves_during(moves, 0, start) == {"pan right"}


def test_frames_without_a_model_are_not_trusted():
    noise = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8)
    frames = list(noise.repeat(8, axis=1).repeat(8, axis=2))
    track = reconstruct_camera(frames, np.arange(6) / 5).track
    assert track.source == "opencv"
    assert np.median(track.confidence) < 0.3


@needs("poses")
def test_real_frames_agree_with_the_poses_of_colmap():
    folder = shared("poses")
    assert folder is not None
    track, known = fox(folder / "fox", "colmap")
    assert track.source == "colmap"
    found = differences(track, known)
    assert np.median(found.turn) < 0.5
    assert np.median(found.way) < 2
