"""Camera moves of known paths: names, times, concurrency, thresholds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.errors import ConfigError, GeometryError
from fourdthinker.synth.motion import (
    MotionSettings,
    camera_moves,
    move_sets,
    moves_during,
    unclear_spans,
)
from fourdthinker.synth.tracks import CAMERA_MOVES, CameraTrack, Move
from tests.unit.synth.paths import FORWARD, NONE, during, steady, walked, yaw

# What the camera does in its own axes, x right, y down, z forward: velocity, degrees a second about each.
SINGLE = {
    "dolly in": ((0, 0, 0.5), (0, 0, 0)),
    "dolly out": ((0, 0, -0.5), (0, 0, 0)),
    "truck left": ((-0.5, 0, 0), (0, 0, 0)),
    "truck right": ((0.5, 0, 0), (0, 0, 0)),
    "pedestal up": ((0, -0.5, 0), (0, 0, 0)),
    "pedestal down": ((0, 0.5, 0), (0, 0, 0)),
    "pan left": ((0, 0, 0), (0, -20, 0)),
    "pan right": ((0, 0, 0), (0, 20, 0)),
    "tilt up": ((0, 0, 0), (20, 0, 0)),
    "tilt down": ((0, 0, 0), (-20, 0, 0)),
    "roll clockwise": ((0, 0, 0), (0, 0, 20)),
    "roll counter-clockwise": ((0, 0, 0), (0, 0, -20)),
}


def only(moves: tuple[Move, ...]) -> list[str]:
    return [move.name for move in moves]


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("turned", [0, 90, 180])
def test_each_move_wherever_the_camera_points(name, turned):
    velocity, turning = SINGLE[name]
    track = walked(steady(*velocity), steady(*turning), 2, start=yaw(turned), position=(0, 0, 1))
    assert only(camera_moves(track)) == [name]


def test_the_twelve_words_are_all_tested():
    assert set(SINGLE) == set(CAMERA_MOVES)


def test_the_words_are_what_the_pictures_show():
    """Signs, by the picture: a point ahead of the camera goes where the camera does not."""
    point = np.array([0.2, -0.3, 4.0])
    shift = {
        "truck right": (-1, 0), "truck left": (1, 0), "pan right": (-1, 0), "pan left": (1, 0),
        "pedestal up": (0, 1), "pedestal down": (0, -1), "tilt up": (0, 1), "tilt down": (0, -1),
    }  # fmt: skip
    for name, (x, y) in shift.items():
        velocity, turning = SINGLE[name]
        track = walked(steady(*velocity), steady(*turning), 0.3)
        seen = track.project(np.tile(point, (len(track.times), 1)))
        moved = seen[-1, :2] - seen[0, :2]
        assert np.sign(moved[0 if x else 1]) == (x or y), name
    track = walked(NONE, steady(*SINGLE["roll clockwise"][1]), 0.3)
    seen = track.project(np.tile([0.0, -1.0, 4.0], (len(track.times), 1)))  # above the middle
    assert seen[-1, 0] < seen[0, 0]  # the picture turns the other way, counter-clockwise


@pytest.mark.parametrize("rate", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("name", ["truck left", "tilt up", "roll clockwise"])
def test_moves_begin_and_end_within_a_fifth_of_a_second(name, rate):
    velocity, turning = SINGLE[name]
    track = walked(during(1.4, 3.2, *velocity), during(1.4, 3.2, *turning), 5, rate=rate)
    before, move, after = camera_moves(track)
    assert (before.name, move.name, after.name) == ("static", name, "static")
    assert (move.start, move.end) == pytest.approx((1.4, 3.2), abs=0.2)
    assert before.start == 0
    assert after.end == 5


def test_concurrent_moves_overlap_and_others_follow():
    track = walked(
        lambda t: during(0, 2, 0, 0, 0.6)(t) + during(3, 5, -0.6, 0, 0)(t),
        lambda t: during(1, 4, 0, 15, 0)(t),
        5,
    )
    sets = [(s, e, set(n)) for s, e, n in move_sets(camera_moves(track)) if e - s > 0.3]
    assert [names for _, _, names in sets] == [
        {"dolly in"},
        {"dolly in", "pan right"},
        {"pan right"},
        {"truck left", "pan right"},
        {"truck left"},
    ]
    assert [s for s, _, _ in sets] == pytest.approx(range(5), abs=0.2)
    moves = camera_moves(track)
    assert moves_during(moves, 1.1, 1.9) == {"dolly in", "pan right"}
    assert moves_during(moves, 0, 2) == {"dolly in"}  # the pan covers half of it


def test_a_walk_with_the_camera_held_down_is_one_forward():
    """20 degrees down: the camera moves up in its own axes too, but mostly forward."""
    tilt = np.deg2rad(20)
    track = walked(steady(0, -0.5 * np.sin(tilt), 0.5 * np.cos(tilt)), NONE, 2)
    assert only(camera_moves(track)) == ["dolly in"]
    half = walked(steady(0, -0.5, 0.6), NONE, 2)
    assert only(camera_moves(half)) == ["dolly in", "pedestal up"]


def test_an_orbit_is_a_truck_and_a_pan():
    track = walked(steady(0.8, 0, 0), steady(0, -25, 0), 3)
    assert only(camera_moves(track)) == ["pan left", "truck right"]


def test_swaying_is_no_move():
    def sway(t: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(len(t)), 14 * np.sin(2 * np.pi * 1.8 * t), np.zeros(len(t))], 1)

    moves = camera_moves(walked(FORWARD, sway, 4, rate=30))
    assert only(moves) == ["dolly in"]


def test_thresholds_are_rates_and_depend_on_the_scale():
    slow = walked(steady(0, 0, 0.08), steady(0, 1, 0), 3)
    assert only(camera_moves(slow)) == []  # neither: between half of the threshold and the threshold
    assert only(camera_moves(replace(slow, metric=False))) == ["dolly in"]
    assert only(camera_moves(slow, MotionSettings(translation=0.07))) == ["dolly in"]
    assert only(camera_moves(walked(steady(0, 0, 0.05), steady(0, 1, 0), 3))) == ["static"]


def test_noise_on_the_poses_makes_no_moves():
    rng = np.random.default_rng(1)
    track = walked(NONE, NONE, 4, rate=30)
    noisy = track.poses.copy()
    noisy[:, :3, 3] += rng.normal(0, 0.002, (len(noisy), 3))
    assert only(camera_moves(replace(track, poses=noisy))) == ["static"]


def test_unsure_instants_are_not_labelled():
    track = walked(FORWARD, NONE, 4)
    sure = np.where((track.times > 1) & (track.times < 3), 0.0, 1.0)
    first, second = camera_moves(replace(track, confidence=sure))
    assert first.name == second.name == "dolly in"
    assert first.end == pytest.approx(1, abs=0.2)
    assert second.start == pytest.approx(3, abs=0.2)


def test_what_is_not_named_is_unclear_where_it_may_be_a_move():
    def found(track: CameraTrack) -> tuple[tuple[float, float], ...]:
        return unclear_spans(track, camera_moves(track))

    assert found(walked(FORWARD, NONE, 4)) == found(walked(NONE, NONE, 4)) == ()
    assert found(walked(FORWARD, steady(0, 2, 0), 4)) == ()  # below half of the threshold: not there
    slow = walked(FORWARD, steady(0, 3.5, 0), 4)
    assert only(camera_moves(slow)) == ["dolly in"]
    assert found(slow) == ((0.0, 4.0),)
    (brief,) = found(walked(FORWARD, during(1.0, 1.15, 0, 20, 0), 4, rate=30))  # too short for a move
    assert brief == pytest.approx((1.0, 1.15), abs=0.2)
    track = walked(FORWARD, NONE, 4)
    sure = np.where((track.times > 1) & (track.times < 3), 0.0, 1.0)
    (unsure,) = found(replace(track, confidence=sure))
    assert unsure == pytest.approx((1, 3), abs=0.2)


def test_a_clip_shorter_than_a_move_still_has_one():
    assert only(camera_moves(walked(FORWARD, NONE, 0.3))) == ["dolly in"]


def test_what_cannot_be_is_refused():
    with pytest.raises(GeometryError, match="one pose has no motion"):
        camera_moves(CameraTrack(np.zeros(1), np.eye(4)[None]))
    with pytest.raises(ConfigError, match="rotation is -1"):
        MotionSettings(rotation=-1)
    with pytest.raises(ConfigError, match="keep is 2; it is a share"):
        MotionSettings(keep=2)
    with pytest.raises(ConfigError, match="same is 2"):
        MotionSettings(same=2)
