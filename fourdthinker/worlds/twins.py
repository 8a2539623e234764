"""Twins of a world: mirrored, in reverse, and both. A model is consistent when it is right on all four."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fourdthinker.worlds.scenes import World


def mirrored(world: World) -> World:
    """The world as a mirror shows it: left and right change places.

    Its light is not mirrored, so shades differ; every motion and every place does not.

    Args:
        world: any.

    Returns:
        Its twin; `mirrored` of that is the world.
    """
    flip = np.array([-1, 1, 1], np.float32)
    return replace(
        world,
        position=world.position * flip,
        yaw=-world.yaw,
        solids=tuple(replace(solid, centre=solid.centre * flip) for solid in world.solids),
        ground=world.ground[::-1].copy(),  # tile k covers what tile -1 - k did
    )


def reversed_in_time(world: World) -> World:
    """The world as a film of it shows it when it is run backwards.

    Args:
        world: any.

    Returns:
        Its twin; the pictures are the same ones, the last first.
    """
    return replace(
        world,
        position=world.position[::-1].copy(),
        yaw=world.yaw[::-1].copy(),
        solids=tuple(replace(solid, centre=solid.centre[::-1].copy()) for solid in world.solids),
    )


def twins(world: World) -> tuple[World, World, World, World]:
    """The world, its mirror image, both in reverse.

    Args:
        world: any.

    Returns:
        Four worlds; answers to questions about them follow from their own geometry.
    """
    return world, mirrored(world), reversed_in_time(world), reversed_in_time(mirrored(world))
