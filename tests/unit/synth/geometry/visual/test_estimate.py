"""The camera's path estimated from rendered frames: the four paths, noise, movers, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from bench.geometry import differences, fox
from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import scene_camera
from fourdthinker.synth.motion import camera_moves, moves_during
from fourdthinker.synth.tracks import CameraTrack, rotation_vectors
from fourdthinker.worlds.scenes import World, make_world, render
from tests.shared import needs, shared

pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")

from fourdthinker.synth.geometry.visual import estimate_camera

FPS = 10.0


def world(position: np.ndarray, yaw: np.ndarray, *, moving: bool = False, size: int = 192) -> World:
    """Solids and ground around a camera with that path: [T, 3] metres, [T] radians to the left."""
    base = make_world(3, "move forward", "left", frames=2, fps=FPS, size=size)
    frames = len(yaw)
    centres = [np.tile(s.centre[:1], (frames, 1)) for s in base.solids]
    if moving:
        centres[0] = centres[0] + np.linspace(0, 2, frames)[:, None] * np.array([-1.0, 0, 0], np.float32)
    solids = tuple(replace(s, centre=c.astype(np.float32)) for s, c in zip(base.solids, centres, strict=True))
    return replace(
        base,
        seconds=(np.arange(frames) / FPS).astype(np.float32),
        position=np.array(position, np.float32),
        yaw=np.array(yaw, np.float32),
        solids=solids,
    )


def turned_then_forward(degrees: float, size: int) -> tuple[World, float]:
    """A turn to the right at 45 degrees a second, then 1.5 s forward; and when it ends."""
    turning = round(degrees / 45 * FPS)
    angle = np.deg2rad(-degrees)
    yaw = np.concatenate([np.linspace(0, angle, turning + 1), np.full(15, angle)])
    way = np.concatenate([np.zeros(turning + 1), np.arange(1, 16) * 0.08])
    forward = np.array([-np.sin(angle), np.cos(angle), 0.0])
    return world(np.array([0, 0, 1.7]) + way[:, None] * forward, yaw, size=size), turning / FPS


def made_for(name: str, size: int = 192) -> tuple[World, float]:
    """The world of a path, and when the part begins that is asked about."""
    if name == "forward":
        way = np.array([0, 0, 1.7]) + np.arange(16)[:, None] * np.array([0, 0.08, 0])
        return world(way, np.zeros(16), size=size), 0.0
    if name == "pan 1 m from the origin":
        return world(np.tile([0, 1.0, 1.7], (16, 1)), np.linspace(0, -0.5, 16), size=size), 0.0
    return turned_then_forward(float(name.split()[-2]), size)


@cache
def estimated(name: str) -> tuple[CameraTrack, CameraTrack, float]:
    """Estimate, truth, and when the part begins that is asked about."""
    made, start = made_for(name)
    truth = scene_camera(made)
    found = estimate_camera(list(render(made).pixels), truth.times, intrinsics=made.intrinsics)
    return found.track, truth, start


PATHS = {
    "forward": "dolly in",
    "forward after turning by 90 degrees": "dolly in",
    "forward after turning by 180 degrees": "dolly in",
    "pan 1 m from the origin": "pan right",
}


@pytest.mark.parametrize("name", PATHS)
def test_the_four_paths_are_in_in_in_and_pan_only(name):
    track, truth, start = estimated(name)
    end = float(truth.times[-1])
    moves = camera_moves(track)
    assert moves_during(moves, start + 0.1, end) == {PATHS[name]}
    if start:
        assert moves_during(moves, 0, start) == {"pan right"}
    assert np.median(track.confidence) > 0.7


@pytest.mark.parametrize("name", PATHS)
def test_rotations_are_right_to_a_degree(name):
    track, truth, _ = estimated(name)
    turn = track.rotations[0].T @ track.rotations
    true = truth.rotations[0].T @ truth.rotations
    off = np.rad2deg(np.linalg.norm(rotation_vectors(turn.transpose(0, 2, 1) @ true), axis=1))
    assert off.max() < 1.5


def test_a_pan_has_no_translation():
    track, _, _ = estimated("pan 1 m from the origin")
    assert np.abs(track.centres).max() < 0.02
    assert not track.metric


def test_the_unit_is_the_depth_of_the_scene():
    """The camera goes 1.2 m, and what it sees of the ground and the solids is 2 to 6 m ahead."""
    track, _, _ = estimated("forward")
    assert 1.2 / 6.5 < np.linalg.norm(track.centres[-1]) < 1.2 / 2


def test_movers_are_left_out():
    made = world(np.tile([0, 0, 1.7], (16, 1)), np.zeros(16), moving=True)
    clip = render(made)
    found = estimate_camera(
        list(clip.pixels), made.seconds, intrinsics=made.intrinsics, movers=list(clip.mask(0))
    )
    assert [move.name for move in camera_moves(found.track)] == ["static"]


def test_nothing_in_common_is_not_trusted():
    """A cut in the middle: the frames after it share nothing with those before."""
    one = render(world(np.tile([0, 0, 1.7], (8, 1)), np.zeros(8))).pixels
    noise = np.random.default_rng(0).integers(0, 255, (8, 24, 24, 3), np.uint8)
    other = noise.repeat(8, axis=1).repeat(8, axis=2)
    found = estimate_camera([*one, *other], np.arange(16) / FPS)
    assert found.track.confidence[:8].min() > 0.7
    assert np.median(found.track.confidence[8:]) < 0.3
    names = {move.name for move in camera_moves(found.track) if move.end > 0.9}
    assert names <= {"static"}


def test_what_cannot_be_is_refused():
    frame = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(GeometryError, match="no point of the scene can be followed"):
        estimate_camera([frame, frame, frame], [0, 0.1, 0.2])
    with pytest.raises(GeometryError, match="1 frames and 1 times"):
        estimate_camera([frame], [0])
    with pytest.raises(GeometryError, match="1 masks for 2 frames"):
        estimate_camera([frame, frame], [0, 1], movers=[np.zeros((64, 64), bool)])


@needs("poses")
def test_real_frames_agree_with_the_poses_of_colmap():
    """Turns between neighbours within 2 degrees, ways within 15, and most seconds have the same moves."""
    folder = shared("poses")
    assert folder is not None
    track, known = fox(folder / "fox", "opencv")
    found = differences(track, known)
    assert np.median(found.turn) < 2
    assert np.median(found.way) < 15
    assert np.mean([ours == theirs for _, ours, theirs in found.seconds]) >= 0.85
