"""Frames of clips, and pictures, each of them once in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fourdthinker.errors import FourdError, VideoError
from fourdthinker.frames import FramePolicy, load_image, read_frames, resize

_HEIGHT = 224  # twice what is shown, for dense screens
_SMALL = 128 * 128  # pixels; smaller pictures are shown enlarged, where JPEG blocks would show
_TINY = 112
ROOM = 8_000_000  # bytes of all pictures of a page

Media = tuple[tuple[str, str], ...]


class FullError(FourdError):
    """The page has no room for another picture."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its name there, its size in pixels, and what it is in words."""

    id: str
    width: int
    height: int
    title: str

    @property
    def tiny(self) -> bool:
        """Whether it is shown enlarged."""
        return self.height < _TINY


@dataclass(frozen=True)
class Clip:
    """What a question shows.

    Attributes:
        media: kind ("video", "frame" of a clip, or "image") and path of each file.
        start: second of the video to begin at; None: its beginning.
        end: second of the video to end at; None: its end.
    """

    media: Media = ()
    start: float | None = None
    end: float | None = None

    @property
    def parts(self) -> list[Media]:
        """The media that are one clip or one picture each."""
        if any(kind == "frame" for kind, _ in self.media):
            return [self.media]
        return [(item,) for item in self.media]


@dataclass
class Album:
    """The pictures of a page; one that is shown at several places is in it once.

    Attributes:
        root: folder of relative paths, which are searched there, then where they point.
        urls: name of a picture -> data URL.
    """

    root: Path
    urls: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[Clip, int], list[list[Picture]]] = field(default_factory=dict)
    _ends: dict[tuple[Clip, int], tuple[float, float]] = field(default_factory=dict)
    _frames: dict[tuple[str, float], Picture] = field(default_factory=dict)

    def of(self, root: Path) -> Album:
        """The same page's album for another folder."""
        return Album(root, self.urls, self._names)

    def pictures(self, clip: Clip, most: int = 8) -> list[list[Picture]]:
        """Frames evenly over each clip, and the pictures.

        Args:
            clip: what is shown.
            most: of all of it together, but at least one of each clip.

        Returns:
            Of each part of `clip` its pictures, in their order; pictures beyond `most` are left out.

        Raises:
            VideoError: one that cannot be read.
            FullError: there is no room for more.
        """
        key = (clip, most)
        if key not in self._known:
            self._check_room()
            parts = clip.parts
            each = max(1, most // max(1, len(parts)))
            self._known[key] = [self._part(clip, part, n, each) for n, part in enumerate(parts[:most])]
        return self._known[key]

    def frame(self, clip: Clip, medium: int, share: float, seconds: float | None) -> Picture | None:
        """One frame of a clip, or a picture.

        Args:
            clip: what is shown.
            medium: number of its part.
            share: how far into it, 0 to 1.
            seconds: the same from its first frame on, of a video.

        Returns:
            The picture; None where there is no such part.

        Raises:
            VideoError: it cannot be read.
            FullError: there is no room for more.
        """
        if not 0 <= medium < len(clip.parts):
            return None
        part = clip.parts[medium]
        if part[0][0] != "video":
            index = min(len(part) - 1, max(0, int(share * len(part))))
            return self._image(part[index][1], _named(clip, medium, f"frame {index + 1}"))
        begin, end = self._bounds(clip, medium)
        time = min(end, max(begin, begin + (share * (end - begin) if seconds is None else seconds)))
        key = (part[0][1], time)
        if key not in self._frames:
            self._check_room()
            read = read_frames(self._located(part[0][1]), _policy(1), times=[time], out="uint8")
            title = _named(clip, medium, f"frame at {time:.2f} s")
            self._frames[key] = self._add(np.asarray(read.pixels)[0], title)
        return self._frames[key]

    def _part(self, clip: Clip, part: Media, medium: int, most: int) -> list[Picture]:
        if part[0][0] != "video":
            chosen = spread(len(part), most)
            return [self._image(part[i][1], _named(clip, medium, f"frame {i + 1}")) for i in chosen]
        read = read_frames(
            self._located(part[0][1]), _policy(most), start=clip.start, end=clip.end, out="uint8"
        )
        pixels, seconds = np.asarray(read.pixels), [float(t) for t in read.seconds]
        return [
            self._add(pixels[i], _named(clip, medium, f"frame at {seconds[i]:.2f} s"))
            for i in spread(len(pixels), most)
        ]

    def _bounds(self, clip: Clip, medium: int) -> tuple[float, float]:
        """Times of the first and the last frame that are shown of a video."""
        key = (clip, medium)
        if key not in self._ends:
            path = self._located(clip.parts[medium][0][1])
            read = read_frames(path, _policy(8), start=clip.start, end=clip.end, out="uint8")
            self._ends[key] = float(read.seconds[0]), float(read.seconds[-1])
        return self._ends[key]

    def _image(self, path: str, title: str) -> Picture:
        key = (path, 0.0)
        if key not in self._frames:
            self._check_room()
            self._frames[key] = self._add(load_image(self._located(path), at_least=2 * _HEIGHT), title)
        return replace(self._frames[key], title=title)

    def _check_room(self) -> None:
        """The album that is full by less than one picture takes it; nothing is read for a full one."""
        if sum(map(len, self.urls.values())) > ROOM:
            raise FullError(
                f"the page has {ROOM // 1_000_000} MB of pictures, and no room for more; name fewer runs, or "
                "fewer --groups"
            )

    def _located(self, path: str) -> Path:
        inside = self.root / path  # an absolute path stays what it is
        return inside if inside.exists() else Path(path)

    def _add(self, pixels: npt.NDArray[np.uint8], title: str) -> Picture:
        url, width, height = _encode(pixels)
        name = self._names.setdefault(url, f"picture-{len(self._names)}")
        self.urls[name] = url
        return Picture(name, width, height, title)


def spread(number: int, most: int) -> list[int]:
    """At most `most` indices below `number`, first and last among them, evenly between."""
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)] if most > 1 else [0]


def _policy(most: int) -> FramePolicy:
    return FramePolicy(fps=8.0, max_frames=most, max_pixels=_HEIGHT * _HEIGHT * 2)


def _named(clip: Clip, medium: int, what: str) -> str:
    parts = clip.parts
    if len(parts) == 1:
        return what
    kind = parts[medium][0][0]
    number = 1 + sum(part[0][0] == kind for part in parts[:medium])
    return f"{kind} {number}" + (f", {what}" if kind == "video" else "")


def _encode(pixels: npt.NDArray[np.uint8]) -> tuple[str, int, int]:
    """Data URL, width and height."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _HEIGHT / height, 2 * _HEIGHT / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(resize(pixels[None], size).numpy()[0])
    buffer = io.BytesIO()
    if image.width * image.height <= _SMALL:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=82)
        kind = "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}", image.width, image.height


def pictures_or_trouble(album: Album, clip: Clip, most: int) -> tuple[list[Picture], str]:
    """All pictures of a clip in one list; or none, and why, in words."""
    try:
        return [picture for part in album.pictures(clip, most) for picture in part], ""
    except FullError as error:
        return [], f"The frames are left out: {error}"
    except (FourdError, OSError) as error:
        kind = "cannot be read" if isinstance(error, VideoError) else "cannot be found"
        return [], f"The frames {kind}: {error}"


def clip_of(media: object, start: float | None, end: float | None) -> Clip:
    """A clip of a line of JSON, whatever stands there.

    Args:
        media: pairs of kind and path.
        start: second to begin at.
        end: second to end at.

    Returns:
        The clip, of the pairs that are such.
    """
    pairs: Sequence[object] = media if isinstance(media, list) else []
    found = tuple(
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list)
        and len(pair) == 2
        and pair[0] in ("video", "frame", "image")
        and isinstance(pair[1], str)
    )
    return Clip(found, start, end)
