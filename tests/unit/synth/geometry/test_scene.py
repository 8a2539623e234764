"""Tracks of rendered worlds: labels of 200 scenes from true geometry are what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bench._motion_scenes import make_scene
from bench.geometry import Table, asked, labels
from fourdthinker.synth.geometry import scene_camera, scene_object
from fourdthinker.synth.motion import camera_moves, object_direction
from fourdthinker.worlds.scenes import CAMERA_MOTIONS, DIRECTIONS, make_world

WORDS = {
    "move left": "truck left", "move right": "truck right",
    "move forward": "dolly in", "move back": "dolly out",
    "left": "left", "right": "right", "toward": "toward the camera", "away": "away from the camera",
}  # fmt: skip


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_worlds_are_labelled_as_they_were_made(camera, direction):
    for seed in range(4):
        world = make_world([seed, 5], camera, direction)
        track, item = scene_camera(world), scene_object(world, 0)
        assert [m.name for m in camera_moves(track)] == [WORDS.get(camera, camera)]
        assert object_direction(item, track, 0, float(track.times[-1])) == WORDS[direction]
        assert object_direction(scene_object(world, 1), track, 0, float(track.times[-1])) == "stationary"


def test_tracks_project_to_the_rendered_pixels():
    world = make_world(1, "pan left", "right")
    track, item = scene_camera(world), scene_object(world, 0)
    np.testing.assert_allclose(
        track.project(item.positions), world.project(world.solids[0].centre), atol=1e-3
    )


def test_two_hundred_scenes_from_true_geometry():
    table = Table()
    for seed in range(200):
        scene = make_scene(seed, fps=10, size=64)
        table.add(asked(scene), labels(scene.camera_track(), scene.object_track()))
    share = {
        kind: sum(n for (right, said), n in counts.items() if right == said) / sum(counts.values())
        for kind, counts in table.pairs.items()
    }
    least = {"camera": 0.99, "direction": 0.98, "distance": 0.99, "speed": 0.95}
    assert {kind: share[kind] >= wanted for kind, wanted in least.items()} == dict.fromkeys(least, True), (
        share
    )
