"""Twins: answers change as they must, pictures are mirrored or in reverse."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.demo.questions import label
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
    world, mirror, reverse, both = map(label, twins(make_world(3, camera, direction)))
    assert mirror.camera == swapped(camera, SIDES)
    assert reverse.camera == swapped(camera, ENDS)
    assert both.camera == swapped(swapped(camera, ENDS), SIDES)
    assert mirror.direction == SIDES.get(direction, direction)
    if not camera.startswith("pan"):  # the words are those of the first view, which a pan changes
        assert reverse.direction == ENDS[direction]
    assert mirror.distance == world.distance
    assert reverse.distance == tuple(CHANGES[change] for change in world.distance)


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
