"""Twins: answers change as they must, pictures are mirrored or in reverse."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.worlds.questions import camera_motion, distance_change, object_direction
from fourdthinker.worlds.scenes import CAMERA_MOTIONS, DIRECTIONS, make_world, render
from fourdthinker.worlds.twins import mirrored, reversed_in_time, twins

SIDES = {"left": "right", "right": "left"}
ENDS = {
    "left": "right",
    "right": "left",
    "toward": "away",
    "away": "toward",
    "forward": "back",
    "back": "forward",
}
CHANGES = {"closer": "farther", "farther": "closer", "same": "same", None: None}


def swapped(text: str, words: dict[str, str]) -> str:
    return " ".join(words.get(word, word) for word in text.split())


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_answers_change_as_they_must(camera: str, direction: str) -> None:
    world, mirror, reverse, both = twins(make_world(3, camera, direction))
    assert camera_motion(mirror) == swapped(camera, SIDES)
    assert camera_motion(reverse) == swapped(camera, ENDS)
    assert camera_motion(both) == swapped(swapped(camera, ENDS), SIDES)
    assert object_direction(mirror) == SIDES.get(direction, direction)
    if not camera.startswith("pan"):  # the words are those of the first view, which a pan changes
        assert object_direction(reverse) == ENDS[direction]
    for index in (0, 1):
        assert distance_change(mirror, index) == distance_change(world, index)
        there = distance_change(world, index)
        if there == "same":  # the other two have thresholds that are not each other's inverse
            assert distance_change(reverse, index) == "same"
        else:
            assert distance_change(reverse, index) in (CHANGES[there], None)


def test_pictures() -> None:
    world = make_world(5, "pan left", "away")
    clip, mirror, reverse = (render(w) for w in (world, mirrored(world), reversed_in_time(world)))
    assert (reverse.pixels == clip.pixels[::-1]).all()
    assert (mirror.solid == clip.solid[:, :, ::-1]).mean() > 0.999
    ground = (clip.solid == 0) & (mirror.solid[:, :, ::-1] == 0)
    shade = np.abs(mirror.pixels[:, :, ::-1].astype(int) - clip.pixels.astype(int)).max(-1)
    assert np.median(shade[ground]) == 0


def test_twice_is_once() -> None:
    world = make_world(7, "move left", "right")
    assert (mirrored(mirrored(world)).position == world.position).all()
    assert (mirrored(mirrored(world)).ground == world.ground).all()
    assert (reversed_in_time(reversed_in_time(world)).yaw == world.yaw).all()
