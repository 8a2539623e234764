"""Frames of a rollout's clip as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fourdthinker.frames import FramePolicy, load_image, read_frames, resize

_HEIGHT = 224  # twice what is shown, for dense screens


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it: a data URL, its size in pixels, and when it is shown."""

    url: str
    width: int
    height: int
    seconds: float | None = None

    def name(self, index: int) -> str:
        """What is said of it in words; `index` counts from 1."""
        return f"frame {index}" if self.seconds is None else f"frame at {self.seconds:.2f} s"


def clip_pictures(
    *,
    video: str | None,
    frames: Sequence[str],
    start: float | None,
    end: float | None,
    root: Path,
    most: int = 8,
) -> list[Picture]:
    """At most `most` frames, evenly over the clip.

    Relative paths are searched in `root`, then where they point.

    Args:
        video: path of a video file, or None.
        frames: paths of images, which come before `video`.
        start: second of the video to begin at; None: its beginning.
        end: second of the video to end at; None: its end.
        root: folder of relative paths.
        most: pictures, at least 1.

    Returns:
        The pictures, in the order of the clip.

    Raises:
        VideoError: the video or an image cannot be read.
    """
    if frames:
        chosen = [frames[i] for i in spread(len(frames), most)]
        return [_encode(load_image(_locate(path, root), at_least=2 * _HEIGHT)) for path in chosen]
    if video is None:
        return []
    policy = FramePolicy(fps=8.0, max_frames=most, max_pixels=_HEIGHT * _HEIGHT * 2)
    clip = read_frames(_locate(video, root), policy, start=start, end=end, out="uint8")
    pixels = np.asarray(clip.pixels)
    seconds = [float(t) for t in clip.seconds]
    return [_encode(pixels[i], seconds[i]) for i in spread(len(pixels), most)]


def spread(number: int, most: int) -> list[int]:
    """At most `most` indices below `number`, first and last among them, evenly between."""
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)] if most > 1 else [0]


def _locate(path: str, root: Path) -> Path:
    inside = root / path  # an absolute path stays what it is
    return inside if inside.exists() else Path(path)


def _encode(pixels: npt.NDArray[np.uint8], seconds: float | None = None) -> Picture:
    height, width = pixels.shape[:2]
    scale = min(1.0, _HEIGHT / height, 2 * _HEIGHT / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(resize(pixels[None], size).numpy()[0])
    buffer = io.BytesIO()
    if (
        image.width * image.height <= 128 * 128
    ):  # small pictures are shown enlarged, where JPEG blocks would show
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=82)
        kind = "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", image.width, image.height, seconds)
