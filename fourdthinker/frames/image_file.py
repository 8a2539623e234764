"""One image file to upright 8-bit RGB, the same whichever call reads it; and which files are images."""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.animation import first_of_gif
from fourdthinker.frames.checks import whole
from fourdthinker.frames.orientation import Orientation
from fourdthinker.frames.rgba import SIXTEEN, STRIP, gray_of_sixteen, has_alpha, scale_key, with_alpha
from fourdthinker.frames.tiff import check_parts

# Plain raster formats only: some others that Pillow knows start external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# Major brands of HEIF (ISO/IEC 23008-12): one picture, maybe of tiles, or with alpha as a picture of its own.
_HEIC = (b"heic", b"heix", b"heim", b"heis")
_STILL = (b"avif", b"mif1", *_HEIC)
MAX_SOURCE_PIXELS = 1 << 26  # 8192 x 8192: at most 0.8 GB while the image is read (docs/video.md)
VARIABLE = "FOURDTHINKER_MAX_SOURCE_PIXELS"
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _SIGNED = 258, 262, 339, 2  # tags of TIFF, and a value of the last
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of JPEG, but those within entropy-coded data
Bytes = bytes | mmap.mmap


def source_limit(value: int | None = None) -> int:
    """Pixels that a source may have: `value`, else the environment's, else MAX_SOURCE_PIXELS.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    remedy = f"give a whole number of pixels above 0 (default {MAX_SOURCE_PIXELS})"
    if value is not None:
        return whole("max_source_pixels", value, 1, remedy)
    text = os.environ.get(VARIABLE)
    if text is None:
        return MAX_SOURCE_PIXELS
    try:
        return whole(VARIABLE, int(text), 1, remedy)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE} is {text!r}; {remedy}") from error


def check_source_size(name: str, height: int, width: int, limit: int) -> None:
    """Refuse a source of more pixels than a bound.

    Args:
        name: of the source, in messages.
        height: of its picture, in pixels.
        width: likewise.
        limit: the bound on height * width.

    Raises:
        VideoError: it has more.
    """
    if height * width > limit:
        raise VideoError(
            f"{name}: {width}x{height} are {height * width} pixels, more than max_source_pixels, {limit}; "
            f"make it smaller, or raise the bound ({VARIABLE}, or max_source_pixels of read_images)"
        )


def load_image(
    source: str | os.PathLike[str] | bytes, *, limit: int | None = None, at_least: int | None = None
) -> NDArray[np.uint8]:
    """Read an image: the first, where a file holds several (GIF, animated PNG and WebP, TIFF).

    Turned and mirrored by EXIF. Transparent pixels lie over white, as the models' own preprocessing puts
    them; 16-bit gray is scaled to 8 bits; gray, palettes and CMYK become RGB. Colour profiles are not
    applied.

    Args:
        source: a file of one of FORMATS, or its bytes.
        limit: bound on its height * width; default `source_limit()`.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both sides
            keep so many pixels.

    Returns:
        uint8 [H, W, 3], contiguous.

    Raises:
        VideoError: no such file, empty, damaged, cut off, of another format, too large, or of levels that
            have no scale (floating point, 32-bit integers).
    """
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    size = len(source) if isinstance(source, bytes) else _size_of(name)
    if size == 0:
        raise VideoError(f"{name}: the file is empty (0 bytes); replace it, or drop the record that names it")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(name, "rb") as file:
            image = _identified(file)
            scale_key(image)
            check_source_size(name, image.height, image.width, source_limit(limit))
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                check_parts(image.tag_v2)
            if image.format == "GIF":  # Pillow fills what the first picture leaves free with a colour
                file.seek(0)
                return first_of_gif(file.read())
            if at_least is not None:
                image.draft(image.mode, (at_least, at_least))
            image.load()
            return _upright_rgb(image, name)
    except VideoError:  # the bound's, or of levels without a scale
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, struct.error) as error:
        raise VideoError(
            f"{name}: not a readable picture ({error}); replace the file, or drop the record that names it"
        ) from error


def image_header(source: str | os.PathLike[str] | bytes) -> tuple[str, tuple[int, int], Orientation]:
    """What an image's header says, for a file of which `is_image` holds.

    Args:
        source: the file, or its bytes.

    Returns:
        (Pillow's name of the format in small letters, (height, width) as stored, what makes it upright).

    Raises:
        VideoError: as `load_image`.
    """
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    with contents(source) as data:
        try:
            image = _identified(io.BytesIO(data[:]))
        except OSError as error:
            raise VideoError(
                f"{name}: not a readable picture ({error}); replace it, or drop the record that names it"
            ) from error
        return str(image.format).lower(), (image.height, image.width), _orientation(image)


def _size_of(name: str) -> int:
    if not os.path.exists(name):
        raise VideoError(f"{name}: no such file")
    if not os.path.isfile(name):
        kind = "a folder" if os.path.isdir(name) else "no regular file"
        raise VideoError(f"{name}: {kind}, not a picture")
    return os.path.getsize(name)


def _identified(file: BinaryIO) -> Image.Image:
    """As `Image.open`, whose bound on the size is one for the whole process: ours is checked instead."""
    head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        raise UnidentifiedImageError("HEIC is not read here: convert it to JPEG, PNG or AVIF")
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:
            continue  # Pillow is built without it
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(head) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                raise UnidentifiedImageError(f"its header is no {name}'s: {error}") from error
    raise UnidentifiedImageError(f"its first bytes are those of none of {', '.join(FORMATS)}")


def _orientation(image: Image.Image) -> Orientation:
    try:
        return Orientation.of_exif(image.getexif().get(ExifTags.Base.Orientation))
    except (SyntaxError, ValueError, OSError, struct.error):  # EXIF that cannot be read says nothing
        return Orientation()


def _upright_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    orientation = _orientation(image)  # after loading, which turns a TIFF by itself
    tags = dict(getattr(image, "tag_v2", {}))
    sixteen = image.mode in SIXTEEN or (image.mode == "I" and image.format != "TIFF")
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    if signed or (image.mode in ("F", "I") and not sixteen):
        levels = "floating point" if image.mode == "F" else "signed or 32-bit integers"
        raise VideoError(
            f"{name}: its levels are {levels}, which have no scale; save it with 8 or 16 unsigned bits"
        )
    bits, inverted = tags.get(_BITS, (16,))[0], tags.get(_PHOTOMETRIC) == 0
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP):  # no second picture of full size is made
        strip = image.crop((0, top, width, min(top + STRIP, height)))
        made = _from_sixteen(strip, bits, inverted) if sixteen else np.asarray(_over_white(strip))
        pixels[top : top + STRIP] = made
    return np.ascontiguousarray(orientation.apply(pixels))


def _from_sixteen(image: Image.Image, bits: int, inverted: bool) -> NDArray[np.uint8]:
    """Gray levels of so many bits, scaled to 8 and rounded. inverted: white is zero."""
    gray, clear = gray_of_sixteen(image, bits)
    gray = 255 - gray if inverted else gray
    if clear is not None:
        gray[clear] = 255
    return gray[..., None]


def _over_white(image: Image.Image) -> Image.Image:
    if not has_alpha(image):
        return image.convert("RGB")
    clear = with_alpha(image)
    white = Image.new("RGB", clear.size, (255, 255, 255))
    white.paste(clear, mask=clear.getchannel("A"))
    return white


def is_image(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether a file holds one image of FORMATS, and no more.

    Animated PNG and WebP, GIF, and JPEG or PNG pictures one after the other are videos. False also for what
    cannot be opened.
    """
    try:
        with contents(source) as data:
            head = data[:16]
            if head[:3] == b"\xff\xd8\xff":
                return not _jpeg_goes_on(data)
            if head[:8] == _PNG:
                return not _png_moves(data)
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
                return not (head[12:16] == b"VP8X" and data[20] & 2)
            return (
                head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
                or (head[4:8] == b"ftyp" and head[8:12] in _STILL)
                or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
                or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b"\n\r\t #")
            )
    except (OSError, ValueError, IndexError, struct.error):
        return False


@contextmanager
def contents(source: str | os.PathLike[str] | bytes) -> Iterator[Bytes]:
    """The bytes of a file. OSError: it cannot be read."""
    if isinstance(source, bytes):
        yield source
        return
    if not os.path.isfile(source):
        raise OSError("no regular file")
    with open(source, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        yield data


def _jpeg_goes_on(data: Bytes) -> bool:
    """Whether another JPEG follows that is no preview or depth map of the first (CIPA DC-007)."""
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        position, marker = found.end(), found.group()[1]
        if marker == 0xD9:
            return data[position : position + 3] == b"\xff\xd8\xff"
        if marker not in (0x01, 0xD8):
            (length,) = struct.unpack_from(">H", data, position)
            if marker == 0xE2 and data[position + 2 : position + 6] == b"MPF\0":
                return False
            position += length
    return False


def _png_moves(data: Bytes) -> bool:
    """Whether it is animated, or another PNG follows."""
    position, pixels = 8, False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += length + 12
        pixels = pixels or kind == b"IDAT"
        if kind == b"acTL" and not pixels:  # behind the pixels it says nothing
            return True
        if kind == b"IEND":
            return data[position : position + 8] == _PNG
    return False
