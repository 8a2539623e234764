"""What objects do, whatever the camera does: direction as first seen, true distance, profile of speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.errors import GeometryError
from fourdthinker.synth.motion import (
    distance_change,
    distances,
    object_direction,
    object_moves,
    seen_part,
    speed_profile,
)
from fourdthinker.synth.tracks import OBJECT_DIRECTIONS, SPEED_PROFILES, CameraTrack, ObjectTrack
from tests.unit.synth.paths import FORWARD, NONE, steady, walked, yaw

VECTORS = {
    "right": (1, 0, 0), "left": (-1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0),
    "right-up": (1, -1, 0), "left-up": (-1, -1, 0), "left-down": (-1, 1, 0), "right-down": (1, 1, 0),
    "toward the camera": (0, 0, -1), "away from the camera": (0, 0, 1),
}  # fmt: skip
CAMERAS = {
    "at rest": walked(NONE, NONE, 3),
    "forward": walked(steady(0, 0, 1.0), NONE, 3),
    "faster to the right": walked(steady(2.0, 0, 0), NONE, 3),
    "turned by 90 degrees, panning": walked(FORWARD, steady(0, 30, 0), 3, start=yaw(90)),
    "turned by 180 degrees, rolling": walked(NONE, steady(0, 0, 25), 3, start=yaw(180)),
}


def moving(camera: CameraTrack, path: Callable[[np.ndarray], np.ndarray], **values: object) -> ObjectTrack:
    """An object 6 ahead of the first camera whose way [T, 3] is in that camera's axes."""
    local = np.array([0, 0, 6.0]) + path(camera.times)
    world = camera.centres[0] + local @ camera.rotations[0].T
    return ObjectTrack("ball", camera.times, world, metric=camera.metric, **values)


def straight(*velocity: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: t[:, None] * np.array(velocity, float)


@pytest.mark.parametrize("direction", VECTORS)
@pytest.mark.parametrize("camera", CAMERAS)
def test_directions_are_in_the_world_as_first_seen(camera, direction):
    track = CAMERAS[camera]
    item = moving(track, straight(*(0.4 * np.array(VECTORS[direction]))))
    assert object_direction(item, track, 0, 3) == direction
    (move,) = object_moves(item, track)
    assert (move.name, move.start, move.end) == (direction, 0, 3)


def test_all_words_are_tested():
    assert set(VECTORS) == set(OBJECT_DIRECTIONS)


@pytest.mark.parametrize("camera", CAMERAS)
def test_an_object_at_rest_is_stationary_whatever_the_camera_does(camera):
    track = CAMERAS[camera]
    item = moving(track, straight(0, 0, 0))
    assert object_direction(item, track, 0, 3) == "stationary"
    assert [m.name for m in object_moves(item, track)] == ["stationary"]


def test_one_move_after_the_other_with_their_times():
    track = walked(steady(0, 0, 0.3), NONE, 6, rate=30)
    speeds = [(0.5, 0, 0)] * 2 + [(0, 0, 0)] + [(0, 0, 0.5)] * 3
    item = moving(
        track, lambda t: np.cumsum(np.array([speeds[min(int(x), 5)] for x in t], float), axis=0) / 30
    )
    moves = object_moves(item, track)
    assert [m.name for m in moves] == ["right", "stationary", "away from the camera"]
    assert [m.start for m in moves] == pytest.approx([0, 2, 3], abs=0.25)
    assert object_direction(item, track, 0, 6) is None  # it goes around a corner
    assert object_direction(item, track, 0.2, 1.8) == "right"
    assert object_direction(item, track, 3.2, 5.8) == "away from the camera"


def test_unclear_directions_are_none():
    track = CAMERAS["at rest"]
    border = np.deg2rad(22.5)
    assert object_direction(moving(track, straight(np.cos(border), -np.sin(border), 0)), track, 0, 3) is None
    assert object_direction(moving(track, straight(0.5, 0, 0.5)), track, 0, 3) is None
    assert object_direction(moving(track, straight(0.1, 0, 0)), track, 0, 3) is None
    unsure = moving(track, straight(0.5, 0, 0), confidence=np.zeros(31))
    assert object_direction(unsure, track, 0, 3) is None


def test_an_object_that_is_seen_later_is_described_by_the_camera_of_that_time():
    """The camera has turned right by 90 degrees before it is sure of the object."""
    track = walked(NONE, lambda t: np.where(t[:, None] < 2, [0, 45.0, 0], 0.0), 5)
    world = np.array([6.0, 0, 0]) + track.times[:, None] * np.array([0, 0, 0.5])
    item = ObjectTrack("ball", track.times, world, metric=True, confidence=(track.times >= 2).astype(float))
    assert {m.name for m in object_moves(item, track)} == {"left"}
    assert {m.name for m in object_moves(replace(item, confidence=np.ones(51)), track)} == {
        "away from the camera"
    }


def test_what_is_not_seen_is_not_labelled():
    """It goes beside the camera; where it is hidden its track holds the nearest position that was seen."""
    track = walked(steady(0, 0, 1.0), NONE, 10, rate=10)
    true = moving(track, straight(0, 0, 1.0))
    assert distance_change(true, track, 0, 10) == "same"
    for hidden in (track.times < 4, track.times > 6, (track.times > 2) & (track.times < 8)):
        nearest = np.abs(np.subtract.outer(track.times, track.times[~hidden])).argmin(axis=1)
        held = replace(true, positions=true.positions[~hidden][nearest], confidence=(~hidden).astype(float))
        assert distance_change(held, track, 0, 10) is None
        assert object_direction(held, track, 0, 10) is None
        part = seen_part(held, track)
        assert part is not None
        assert not hidden[np.searchsorted(track.times, part.times)].any()
        assert distance_change(part, track, part.times[0], part.times[-1]) == "same"
        assert object_direction(part, track, part.times[0], part.times[-1]) == "away from the camera"
    unseen = replace(true, confidence=np.zeros(len(track.times)))
    assert seen_part(unseen, track) is None
    lost = replace(track, confidence=(track.times < 5).astype(float))
    part = seen_part(true, lost)
    assert part is not None
    assert part.times[-1] < 5


def test_a_short_gap_is_bridged_by_a_straight_line():
    track = CAMERAS["at rest"]
    true = moving(track, straight(0.5, 0, 0))
    gap = (track.times > 1) & (track.times < 1.9)
    positions = np.where(gap[:, None], 99.0, true.positions)
    part = seen_part(replace(true, positions=positions, confidence=(~gap).astype(float)), track)
    assert part is not None
    np.testing.assert_allclose(part.positions, true.positions, atol=1e-9)
    assert part.confidence.min() == 0


def test_the_distance_is_the_true_one_and_not_the_directions():
    """A camera that follows keeps the distance, a faster one gets closer, and to one at rest it grows."""
    for speed, change in ((0.5, "same"), (1.5, "closer"), (0.0, "farther")):
        track = walked(steady(0, 0, speed), NONE, 3)
        item = moving(track, straight(0, 0, 0.5))
        assert object_direction(item, track, 0, 3) == "away from the camera"
        assert distance_change(item, track, 0, 3) == change
    track = walked(steady(0, 0, 0.8), NONE, 3)
    item = moving(track, straight(0.4, 0, 0))
    assert object_direction(item, track, 0, 3) == "right"
    assert distance_change(item, track, 0, 3) == "closer"
    np.testing.assert_allclose(distances(item, track)[[0, -1]], [6, np.hypot(1.2, 3.6)])


def test_small_changes_of_distance_and_detours_are_none():
    track = CAMERAS["at rest"]
    assert distance_change(moving(track, straight(0, 0, 0.2)), track, 0, 3) is None
    there_and_back = moving(track, lambda t: np.outer(np.sin(np.pi * t / 3), [0, 0, 3.0]))
    assert distance_change(there_and_back, track, 0, 3) is None


PROFILES = {
    "constant speed": lambda t: 0.5 * t,
    "speeding up": lambda t: 0.2 * t + 0.15 * t**2,
    "slowing down": lambda t: 1.1 * t - 0.15 * t**2,
    "first speeding up, then slowing down": lambda t: (
        0.5 * t - 0.3 * np.sin(2 * np.pi * t / 3) * 3 / (2 * np.pi)
    ),
    "first slowing down, then speeding up": lambda t: (
        0.5 * t + 0.3 * np.sin(2 * np.pi * t / 3) * 3 / (2 * np.pi)
    ),
    "varying speed": lambda t: 0.5 * t + 0.3 * np.sin(4 * np.pi * t / 3) * 3 / (4 * np.pi),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("camera", ["at rest", "faster to the right"])
def test_profiles_of_speed(profile, camera):
    track = CAMERAS[camera]
    item = moving(track, lambda t: np.outer(PROFILES[profile](t), [0.6, 0, 0.8]))
    assert speed_profile(item, 0, 3) == profile


def test_profiles_are_the_fixed_words_and_need_motion():
    assert set(PROFILES) == set(SPEED_PROFILES)
    assert speed_profile(moving(CAMERAS["at rest"], straight(0.05, 0, 0)), 0, 3) is None


def test_a_speed_of_which_the_start_was_not_seen_has_no_profile():
    camera = walked(NONE, NONE, 3)
    item = moving(camera, lambda t: np.stack([t**2, 0 * t, 6 + 0 * t], axis=1))
    assert speed_profile(item, 0, 3) == "speeding up"
    assert speed_profile(replace(item, confidence=(item.times > 0.6).astype(float)), 0, 3) is None


def test_noise_does_not_change_a_label():
    track = walked(steady(0.5, 0, 0), NONE, 3, rate=30)
    noise = np.random.default_rng(3).normal(0, 0.01, (len(track.times), 3))
    item = moving(track, lambda t: t[:, None] * np.array([0.5, 0, 0]) + noise)
    assert [m.name for m in object_moves(item, track)] == ["right"]
    assert speed_profile(item, 0, 3) == "constant speed"


def test_tracks_that_do_not_fit_are_refused():
    track = CAMERAS["at rest"]
    item = moving(track, straight(0.5, 0, 0))
    with pytest.raises(GeometryError, match="has metres and the camera has not"):
        object_moves(item, replace(track, metric=False))
    with pytest.raises(GeometryError, match="outside the camera's"):
        object_moves(replace(item, times=item.times + 60), track)
    with pytest.raises(GeometryError, match="holds none of it"):
        object_direction(item, track, 7, 9)
    with pytest.raises(GeometryError, match="one position"):
        object_moves(ObjectTrack("ball", np.zeros(1), np.zeros((1, 3)), metric=True), track)
