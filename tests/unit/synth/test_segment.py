"""Masks by motion: what moves by itself is found whatever the camera does, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.worlds.scenes import RenderedWorld, make_world, render

pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")

from fourdthinker.synth.segment import moving_segments

FPS = 10.0


def filmed(camera: str, direction: str, *, moving: bool = True, lifted: float = 0.0) -> RenderedWorld:
    """A scene of 2.5 s; "static": a camera at rest. What does not move may be lifted from the ground."""
    still = camera == "static"
    world = make_world([14, 1], "pan left" if still else camera, direction, frames=26, fps=FPS, size=160)
    if still:
        world = replace(world, yaw=np.zeros_like(world.yaw))
    if not moving:
        above = np.array([0, 0, lifted], np.float32)
        first = replace(world.solids[0], centre=np.tile(world.solids[0].centre[:1] + above, (26, 1)))
        world = replace(world, solids=(first, *world.solids[1:]))
    return render(world)


def common_area(found: tuple[np.ndarray | None, ...], true: np.ndarray) -> float:
    """Intersection over union, the median over the frames that have a mask."""
    shares = [(a & b).sum() / (a | b).sum() for a, b in zip(found, true, strict=True) if a is not None]
    return float(np.median(shares))


@pytest.mark.parametrize(
    ("camera", "direction"),
    [("static", "right"), ("pan left", "away"), ("move right", "toward"), ("move forward", "left")],
)
def test_what_moves_is_found(camera: str, direction: str) -> None:
    clip = filmed(camera, direction)
    found = moving_segments(clip.pixels, FPS, 0.002)
    assert len(found) == 1
    assert found[0].score > 0.8
    assert common_area(found[0].masks, clip.mask(0)) > 0.7


@pytest.mark.parametrize(
    ("camera", "lifted"),
    [("move right", 0.0), ("move forward", 0.0), ("move right", 0.6), ("move left", 0.0)],
)
def test_what_stands_before_a_moving_camera_does_not_move(camera: str, lifted: float) -> None:
    """It moves over the ground in the picture, but along the direction to where the camera goes.

    In the last case something nearer hides its lower end, which then moves otherwise; its features do not.
    """
    assert moving_segments(filmed(camera, "left", moving=False, lifted=lifted).pixels, FPS, 0.002) == []


def test_nothing_to_see_is_no_error() -> None:
    assert moving_segments(np.full((12, 48, 64, 3), 90, np.uint8), FPS, 0.002) == []
