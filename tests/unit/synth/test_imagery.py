"""Imagery: what each kind shows, pixel by pixel where that can be said."""

from __future__ import annotations

import numpy as np

from fourdthinker.synth import imagery

FRAME = np.full((60, 80, 3), 100, np.uint8)
MASK = np.zeros((60, 80), bool)
MASK[20:40, 30:50] = True


def test_the_overlay_is_the_published_one() -> None:
    shown = imagery.overlay(FRAME, MASK)
    assert shown.shape == FRAME.shape
    assert tuple(shown[30, 40]) == (162, 60, 60)  # 60 % of the frame, 40 % of red
    assert tuple(shown[20, 40]) == (255, 0, 0)  # the contour, two pixels wide, half of it outside
    assert tuple(shown[19, 40]) == (255, 0, 0)
    assert tuple(shown[18, 40]) == (100, 100, 100)
    assert tuple(shown[21, 40]) == (162, 60, 60)
    assert (shown[0] == 100).all()


def test_a_mask_at_the_border_keeps_its_contour() -> None:
    full = np.ones((60, 80), bool)
    shown = imagery.overlay(FRAME, full)
    assert tuple(shown[0, 5]) == (255, 0, 0)
    assert tuple(shown[30, 40]) == (162, 60, 60)


def test_the_silhouette_is_the_mask() -> None:
    shown = imagery.silhouette(MASK)
    assert ((shown == 255).all(-1) == MASK).all()
    assert ((shown == 0).all(-1) == ~MASK).all()


def test_near_is_bright_and_unknown_is_black() -> None:
    depth = np.full((60, 80), 10.0, np.float32)
    depth[20:40] = 2.0
    depth[:5] = np.inf
    shown = imagery.depth_picture(depth)
    assert shown[30, 5, 0] == 255
    assert abs(int(shown[50, 5, 0]) - 51) <= 1
    assert (shown[:5] == 0).all()
    outlined = imagery.depth_picture(depth, MASK)
    changed = (outlined != shown).any(-1)
    assert changed.any()
    assert (outlined[changed] == (255, 0, 0)).all()
    assert not (changed & ~MASK).any()


def test_the_trail_ends_where_the_object_is() -> None:
    shown = imagery.trail(FRAME, np.array([[10.0, 50.0], [40.0, 30.0], [60.0, 10.0]]))
    assert tuple(shown[10, 60]) == (255, 0, 0)
    assert tuple(shown[30, 40]) == (255, 0, 0)
    assert (shown[55, 75] == 100).all()
    assert (FRAME == 100).all()


def test_the_map_has_forward_up_and_right_to_the_right() -> None:
    camera = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    thing = np.array([[1.0, 2.0]] * 3)
    shown = imagery.top_down((100, 100), camera, np.array([[0.0, 1.0]] * 3), thing, 2)
    blue = np.argwhere((shown == (30, 90, 255)).all(-1))
    red = np.argwhere((shown == (255, 0, 0)).all(-1))
    assert red[:, 1].mean() > blue[:, 1].mean()  # the object is on the right
    assert red[:, 0].mean() < blue[:, 0].mean()  # and at the end of a path that goes up
    start = imagery.top_down((100, 100), camera, np.array([[0.0, 1.0]] * 3), thing, 0)
    assert np.argwhere((start == (30, 90, 255)).all(-1))[:, 0].max() > 80


def test_the_map_of_a_camera_at_rest() -> None:
    shown = imagery.top_down((40, 60), np.zeros((3, 2)), np.zeros((3, 2)), None, 1)
    assert tuple(shown[20, 30]) == (30, 90, 255)


def test_from_above_is_in_the_axes_of_the_first_camera() -> None:
    turned = np.eye(4)
    turned[:3, :3] = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along world x
    turned[:3, 3] = (5, 0, 0)
    (seen,) = imagery.from_above(turned[None], [np.array([[8.0, 0, 0], [5.0, 0, -2.0]])])
    assert np.allclose(seen, [[0, 3], [2, 0]])
