"""Tracks of a rendered world: the truth."""

from __future__ import annotations

import numpy as np

from fourdthinker.synth.geometry.conventions import pose_matrices
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack
from fourdthinker.worlds.scenes import World


def scene_camera(world: World) -> CameraTrack:
    """The camera's path in a rendered world.

    Args:
        world: the scene.

    Returns:
        Its true track, in metres.
    """
    rotations = world.rotation.astype(np.float64).transpose(0, 2, 1)
    # float32 rotations are off by 1e-7; a track asks for no more than 1e-3.
    poses = pose_matrices(rotations, world.position.astype(np.float64))
    intrinsics = np.asarray(world.intrinsics, np.float64)
    return CameraTrack(
        _seconds(world), poses, intrinsics, (world.size, world.size), metric=True, source="scene"
    )


def scene_object(world: World, index: int) -> ObjectTrack:
    """The path of one solid of a rendered world, in metres.

    Args:
        world: the scene.
        index: of the solid; 0 moves.

    Returns:
        The track of its centre.
    """
    solid = world.solids[index]
    centre = solid.centre.astype(np.float64)
    return ObjectTrack(solid.name, _seconds(world), centre, metric=True, source="scene")


def _seconds(world: World) -> np.ndarray:
    return world.seconds.astype(np.float64)
