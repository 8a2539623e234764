"""The project's own scenes as sources: rendered to a file once, with their truth beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.clips import Clip
from fourdthinker.synth.geometry import scene_camera, scene_object
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack
from fourdthinker.worlds.scenes import CAMERA_MOTIONS, DIRECTIONS, World, make_world, render, write_video

SECONDS, SIZE = 4.0, 160
ASKED = 2  # solids that questions are about: the moving one and one at rest


@dataclass(frozen=True)
class Scene:
    """A scene and what is known of each of its pictures, which are `settings.analysis_fps` a second.

    Attributes:
        world: all poses.
        solid: [T, H, W] int8, as of `worlds.scenes.RenderedWorld`.
        depth: [T, H, W] float32, metres along the ray.
    """

    world: World
    solid: NDArray[np.int8]
    depth: NDArray[np.float32]

    def index(self, clip: Clip) -> NDArray[np.int64]:
        """Which pictures of the scene the frames of a clip show."""
        last = len(self.world.seconds) - 1
        found = np.floor((clip.times + clip.start) * self.world.fps + 1e-6).astype(np.int64)
        return np.minimum(found, last)

    def masks(self, clip: Clip) -> list[NDArray[np.bool_]]:
        """Of each solid that is asked about, [T, H, W] of the clip's size."""
        height, width = clip.pixels.shape[1:3]
        solid = self.solid[self.index(clip)]
        rows = ((np.arange(height) + 0.5) * solid.shape[1] / height).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * solid.shape[2] / width).astype(np.int64)
        seen = solid[:, rows][:, :, columns]
        return [seen == number + 1 for number in range(ASKED)]

    def camera(self, clip: Clip) -> CameraTrack:
        """The true path of the camera."""
        index, whole = self.index(clip), scene_camera(self.world)
        assert whole.intrinsics is not None
        height, width = clip.pixels.shape[1:3]
        lens = whole.intrinsics[index] * (np.array([[width], [height], [self.world.size]]) / self.world.size)
        return CameraTrack(
            clip.times, whole.poses[index], lens, (width, height), metric=whole.metric, source=whole.source
        )

    def things(self, clip: Clip) -> list[ObjectTrack]:
        """The true paths of the solids that are asked about."""
        index = self.index(clip)
        tracks = [scene_object(self.world, number) for number in range(ASKED)]
        return [
            ObjectTrack(
                track.name, clip.times, track.positions[index], metric=track.metric, source=track.source
            )
            for track in tracks
        ]


def render_scene(source: Source, settings: SynthSettings, out: Path) -> tuple[Source, Scene]:
    """Render a scene to OUT/scenes/NAME.mp4, unless it is there.

    Args:
        source: with the number of the scene.
        settings: the seed and the rate.
        out: the output folder.

    Returns:
        The source with the path of its file, and the truth.
    """
    number = source.scene
    assert number is not None
    camera = CAMERA_MOTIONS[number % len(CAMERA_MOTIONS)]
    direction = DIRECTIONS[number // len(CAMERA_MOTIONS) % len(DIRECTIONS)]
    fps = round(settings.analysis_fps)
    world = make_world(
        (settings.seed, 14, number), camera, direction, frames=round(SECONDS * fps), fps=fps, size=SIZE
    )
    clip = render(world)
    path = out / "scenes" / f"{source.name}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, clip.pixels, fps)
    return replace(source, path=str(path)), Scene(world, clip.solid, clip.depth)
