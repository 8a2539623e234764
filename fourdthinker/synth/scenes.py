"""The project's own scenes as sources: rendered to a file once, with their truth beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.worlds.scenes import CAMERA_MOTIONS, DIRECTIONS, World, make_world, render, write_video

SECONDS, SIZE = 4.0, 160


@dataclass(frozen=True)
class Scene:
    """A scene and what is known of each of its pictures, which are `settings.analysis_fps` a second.

    Attributes:
        world: all poses.
        solid: [T, H, W] int8, as of `worlds.scenes.Clip`.
        depth: [T, H, W] float32, metres along the ray.
    """

    world: World
    solid: NDArray[np.int8]
    depth: NDArray[np.float32]


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
