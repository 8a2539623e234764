"""Pictures of GIF and animated PNG, composed of their parts.

FFmpeg's decoders compose some of them otherwise than the standards and browsers do: a GIF's canvas is cleared
to its background colour where the first picture has no transparent one, and what some animated PNGs lay over
a cleared or restored part is lost. Parts are decoded by Pillow, each as a file of its own.

Sources: GIF89a specification, 23.c (disposal), with the canvas transparent where nothing is drawn, as all
browsers have it; PNG specification, third edition, 11.3.6.2 (fcTL: disposal, blending), 13.16 (alpha).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, GifImagePlugin, Image, PngImagePlugin

from fourdthinker.frames.bitstream import gif, png
from fourdthinker.frames.orientation import Orientation
from fourdthinker.frames.rgba import (
    SIXTEEN,
    STRIP,
    gray_of_sixteen,
    opaque,
    over_white,
    scale_key,
    with_alpha,
)

if TYPE_CHECKING:
    import av

MOST_PIXELS = 1 << 28  # of a canvas; about what FFmpeg allows its decoders
KEEP, CLEAR, RESTORE = range(3)  # what becomes of a part before the next one is drawn (as in fcTL)
_DISPOSALS = {0: KEEP, 1: KEEP, 2: CLEAR, 3: RESTORE}  # of GIF; 4 to 7 are not defined
Pixels = NDArray[np.uint8]
Compose = Callable[[bytes], Pixels | None]


@dataclass
class Canvas:
    """pixels: uint8 [H, W, 4], with alpha; transparent at first."""

    pixels: Pixels
    pending: tuple[tuple[slice, slice], Pixels] | None = None  # to be put back before the next part is drawn

    @staticmethod
    def of(size: tuple[int, int]) -> Canvas:
        """An empty canvas of (height, width). ValueError: too large."""
        return Canvas(np.zeros((*_allowed(size), 4), np.uint8))

    def part(self, box: tuple[int, int, int, int]) -> tuple[slice, slice]:
        """Where (left, top, width, height) lies. ValueError: not within the canvas."""
        return _region(box, self.pixels.shape[:2])

    def draw(
        self, region: tuple[slice, slice], part: Pixels, over: bool, after: int, *, halves: bool = True
    ) -> Pixels:
        """Lay a part on the canvas. Returns the canvas, which the next call changes.

        Without ``halves`` a pixel of the part is opaque or 0."""
        if self.pending is not None:
            self.pixels[self.pending[0]] = self.pending[1]
        before = self.pixels[region]
        if after == KEEP:
            self.pending = None
        else:
            self.pending = region, before.copy() if after == RESTORE else np.zeros_like(before)
        alpha, drawn = part[..., 3], part.view(np.uint32)[..., 0]
        if not halves:
            np.copyto(before.view(np.uint32)[..., 0], drawn, where=drawn != 0)
        elif not over or opaque(part):
            self.pixels[region] = part
        elif ((alpha == 0) | (alpha == 255)).all():
            np.copyto(before.view(np.uint32)[..., 0], drawn, where=alpha > 0)
        else:
            below = Image.fromarray(np.ascontiguousarray(before))
            self.pixels[region] = np.asarray(Image.alpha_composite(below, Image.fromarray(part)))
        return self.pixels


def _allowed(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"a canvas of {size[1]}x{size[0]} is too large")
    return size


def _region(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    left, top, width, height = box
    if not (width and height) or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"a part of {width}x{height} at {left}, {top} does not lie on the canvas")
    return slice(top, top + height), slice(left, left + width)


def gif_composer(extradata: bytes) -> Compose:
    """Makes of each packet of a GIF, from the first on, the canvas [H, W, 4] that it shows.

    None for a packet without a picture. ValueError and OSError: the data are damaged, or say nothing that is
    defined."""
    canvas: Canvas | None = None
    colours = b""

    def compose(data: bytes) -> Pixels | None:
        nonlocal canvas, colours
        found = gif.picture(data)
        if found is None:
            return None
        if found.screen is not None:
            canvas, colours = Canvas.of(found.screen), found.colours
        if canvas is None:
            raise ValueError("it does not begin as a GIF")
        region, rgba = canvas.part(found.box), _palette(found, colours)
        part = rgba.view(np.uint32)[:, 0].take(_indices(found))  # several times faster than of four bytes
        drawn = part[..., None].view(np.uint8)
        return canvas.draw(region, drawn, True, _DISPOSALS[found.disposal], halves=False)

    return compose


def first_of_gif(data: bytes) -> Pixels:
    """The first picture of a GIF file over white, RGB [H, W, 3], without a canvas with alpha.

    ValueError and OSError: there is none, or it is damaged."""
    found = gif.picture(data)
    if found is None:
        raise ValueError("it holds no picture")
    if found.screen is None:
        raise ValueError("it does not begin as a GIF")
    pixels = np.full((*_allowed(found.screen), 3), 255, np.uint8)
    colours = over_white(_palette(found, found.colours)[None])[0]
    part, indices = pixels[_region(found.box, found.screen)], _indices(found)
    for top in range(0, len(part), STRIP):
        part[top : top + STRIP] = colours.take(indices[top : top + STRIP], axis=0)
    return pixels


def _palette(picture: gif.Picture, colours: bytes) -> Pixels:
    """uint8 [256, 4]: RGBA of the indices of a picture in a file with these colours."""
    if picture.disposal not in _DISPOSALS:
        raise ValueError(f"its disposal is {picture.disposal}, which GIF does not define")
    table = picture.table or colours
    if not table:
        raise ValueError("it has no colours")
    rgba = np.zeros((256, 4), np.uint8)  # an index without a colour is not drawn
    rgba[: len(table) // 3, :3] = np.frombuffer(table, np.uint8).reshape(-1, 3)
    rgba[: len(table) // 3, 3] = 255
    if picture.transparent is not None:
        rgba[picture.transparent] = 0
    return rgba


def _indices(picture: gif.Picture) -> Pixels:
    """uint8 [h, w]: of a file that holds this picture alone and no colours, Pillow makes gray levels."""
    width, height = picture.box[2:]
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0, 0, 0)
    head = struct.pack("<BHHHHB", gif.IMAGE_BLOCK, 0, 0, width, height, 0x40 * picture.interlaced)
    whole = screen + head + picture.data + bytes([gif.TRAILER])
    with GifImagePlugin.GifImageFile(io.BytesIO(whole)) as image:
        return np.asarray(image)


def png_composer(extradata: bytes) -> Compose:
    """Likewise of an animated PNG, upright by its EXIF; extradata: its chunks before the first picture."""
    canvas, upright, due = Canvas.of(png.size_of(extradata)), _orientation(extradata), 0

    def compose(data: bytes) -> Pixels | None:
        nonlocal canvas, due
        found = png.picture(data)
        if found is None:
            return None
        if found.number not in (0, due):
            raise ValueError("a picture before it is missing")
        due = found.following
        if found.number == 0:
            canvas = Canvas.of(canvas.pixels.shape[:2])
        region = canvas.part(found.box)
        with PngImagePlugin.PngImageFile(io.BytesIO(png.alone(extradata, found))) as image:
            scale_key(image)
            image.load()
            shown = canvas.draw(region, _colour(image), found.over, found.disposal)
        return shown if upright == Orientation() else np.ascontiguousarray(upright.apply(shown))

    return compose


def _orientation(extradata: bytes) -> Orientation:
    exif = Image.Exif()
    data = next((content for kind, content in png.chunks(extradata) if kind == b"eXIf"), None)
    if data is not None:
        with suppress(SyntaxError, ValueError, OSError, struct.error):  # what cannot be read says nothing
            exif.load(b"Exif\0\0" + data)
    return Orientation.of_exif(exif.get(ExifTags.Base.Orientation))


def _colour(image: Image.Image) -> Pixels:
    if image.mode not in SIXTEEN:
        return np.asarray(with_alpha(image))
    gray, clear = gray_of_sixteen(image)
    alpha = np.full_like(gray, 255) if clear is None else np.where(clear, 0, 255).astype(np.uint8)
    return np.dstack([gray, gray, gray, alpha])


def composing(
    composer: Callable[[bytes], Compose], extradata: bytes
) -> Callable[[av.Packet], list[av.VideoFrame]]:
    """What takes the place of a decoder's `decode`, with a ValueError for data that cannot be composed."""
    import av

    compose: Compose | None = None

    def decode(packet: av.Packet) -> list[av.VideoFrame]:
        nonlocal compose
        try:
            compose = compose or composer(extradata)
            pixels = compose(bytes(packet))
        except (OSError, SyntaxError, struct.error) as error:
            raise ValueError(str(error)) from error
        if pixels is None:
            return []
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
        frame.pts = packet.pts
        if packet.time_base is not None:
            frame.time_base = packet.time_base
        return [frame]

    return decode
