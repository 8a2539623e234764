"""Tracks check what they are made of, interpolate, and project."""

from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.errors import GeometryError
from fourdthinker.synth.tracks import CameraTrack, Move, ObjectTrack, rotation_vectors, rotations_of
from tests.unit.synth.paths import FORWARD, NONE, steady, walked, yaw

TRACK = walked(FORWARD, steady(0, 20, 0), 2)


def test_rotations_and_vectors_are_inverse_to_each_other():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 3))
    vectors *= (rng.uniform(0, np.pi - 1e-6, 200) / np.linalg.norm(vectors, axis=1))[:, None]
    vectors = np.concatenate([vectors, np.zeros((1, 3)), np.eye(3) * 1e-9])
    np.testing.assert_allclose(rotation_vectors(rotations_of(vectors)), vectors, atol=1e-7)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, -0.8, 0), (-0.6, 0, 0.8)])
def test_half_a_turn_keeps_its_axis(axis):
    rotation = rotations_of(np.pi * np.array(axis, float))
    vector = rotation_vectors(rotation)
    assert np.linalg.norm(vector) == pytest.approx(np.pi)
    np.testing.assert_allclose(rotations_of(vector), rotation, atol=1e-6)


def test_a_camera_turned_right_sees_what_was_right_of_it_ahead():
    pose = np.eye(4)
    pose[:3, :3] = yaw(90)
    track = CameraTrack(np.zeros(1), pose[None])
    np.testing.assert_allclose(track.camera_points(np.array([[2.0, 0, 0]])), [[0, 0, 2]], atol=1e-12)


def test_points_are_projected_by_the_lens():
    track = walked(FORWARD, NONE, 1)
    points = np.tile([1.0, 0.5, 4.0], (len(track.times), 1))
    np.testing.assert_allclose(track.project(points)[0], [320 + 500 / 4, 240 + 510 * 0.5 / 4, 4])
    with pytest.raises(GeometryError, match="without intrinsics"):
        replace(track, intrinsics=None, size=None).project(points)


def test_a_track_is_interpolated_between_its_poses_and_held_outside():
    times = np.array([-1.0, 0.05, 0.95, 2.0, 9.0])
    found = TRACK.resampled(times)
    angles = np.rad2deg(rotation_vectors(found.rotations)[:, 1])
    np.testing.assert_allclose(angles[1:], [1, 19, 40, 40], atol=1e-6)
    np.testing.assert_allclose(found.poses[0], TRACK.poses[0])
    np.testing.assert_allclose(found.poses[-1], TRACK.poses[-1])
    np.testing.assert_array_equal(found.confidence, [0, 1, 1, 1, 0])


def test_between_poses_far_apart_nothing_is_known():
    some = np.array([0.0, 1.0, 4.0])
    found = replace(TRACK, times=some, poses=TRACK.poses[:3], intrinsics=TRACK.intrinsics[:3], confidence=[])
    times = np.array([0.4, 0.6, 1.5, 1.6, 3.0, 3.4, 3.5])
    np.testing.assert_array_equal(found.resampled(times).confidence, [1, 1, 1, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": np.zeros(3)}, "do not increase"),
        ({"times": np.arange(5)}, "one for each frame"),
        ({"poses": TRACK.poses * 2}, "pose 0 is no rigid motion"),
        ({"poses": TRACK.poses @ np.diag([1.0, 1, -1, 1])}, "no rigid motion"),
        (
            {"poses": np.where(np.arange(21)[:, None, None] == 4, np.nan, TRACK.poses)},
            r"poses\[4\] is not finite",
        ),
        ({"confidence": np.full(21, 2.0)}, "confidence is 0 to 1"),
        ({"size": None}, "give both"),
        ({"size": (64000, 480)}, "cannot be for pictures"),
    ],
)
def test_a_camera_track_that_cannot_be_is_refused(change, message):
    with pytest.raises(GeometryError, match=message):
        replace(TRACK, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "empty name"),
        ({"positions": np.zeros((3, 3))}, "one for each frame"),
        ({"heading": np.ones((2, 3))}, "length is not 1"),
        ({"boxes": np.array([[0, 0, 30, 40]] * 2)}, "fractions"),
        ({"masks": (None,)}, "1 masks for 2 times"),
    ],
)
def test_an_object_track_that_cannot_be_is_refused(change, message):
    track = ObjectTrack("cat", np.arange(2.0), np.zeros((2, 3)))
    assert track.confidence.tolist() == [1, 1]
    with pytest.raises(GeometryError, match=message):
        replace(track, **change)


def test_moves_have_fixed_words_and_last():
    assert Move("camera", "pan left", 0, 1).end == 1
    with pytest.raises(GeometryError, match="unknown camera move"):
        Move("camera", "left", 0, 1)
    with pytest.raises(GeometryError, match="unknown object move"):
        Move("object", "pan left", 0, 1)
    with pytest.raises(GeometryError, match="end it later"):
        Move("camera", "static", 1, 1)
