"""Models of COLMAP, text or binary: world-to-camera poses with OpenCV's axes, without scale."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fourdthinker.errors import GeometryError
from fourdthinker.files import PathLike
from fourdthinker.synth.geometry.conventions import (
    frame_times,
    intrinsic_matrix,
    inverted,
    of_frames,
    quaternion_rotations,
    read_source,
    scaled_intrinsics,
)
from fourdthinker.synth.tracks import Array, CameraTrack

# Camera models by number: name, number of parameters, whether x and y share the focal length.
_MODELS = (
    ("SIMPLE_PINHOLE", 3, True),
    ("PINHOLE", 4, False),
    ("SIMPLE_RADIAL", 4, True),
    ("RADIAL", 5, True),
    ("OPENCV", 8, False),
    ("OPENCV_FISHEYE", 8, False),
    ("FULL_OPENCV", 12, False),
    ("FOV", 5, False),
    ("SIMPLE_RADIAL_FISHEYE", 4, True),
    ("RADIAL_FISHEYE", 5, True),
    ("THIN_PRISM_FISHEYE", 12, False),
)
_BY_NAME = {name: (count, shared) for name, count, shared in _MODELS}


@dataclass(frozen=True)
class _Lens:
    size: tuple[int, int]
    matrix: Array


@dataclass(frozen=True)
class _Image:
    name: str
    camera: int
    quaternion: tuple[float, ...]  # w x y z, world to camera
    translation: tuple[float, ...]
    points: tuple[int, ...]  # ids of the 3D points that it sees


def read_colmap(
    folder: PathLike,
    *,
    names: Sequence[str],
    times: Sequence[float],
    size: tuple[int, int] | None = None,
) -> CameraTrack:
    """The camera's path from a model of COLMAP.

    Args:
        folder: with cameras, images and points3D, all .txt or all .bin.
        names: of the frames in order of time, as in the model; folders do not count.
        times: seconds of these frames.
        size: width and height of the pictures that are used, where it is not the model's.

    Returns:
        The track. Its unit is the median depth of the points that the frames see; distortion is left out.

    Raises:
        GeometryError: a file is missing or damaged, or a frame has no pose.
    """
    folder = Path(folder)
    source = str(folder)
    lenses, images, points = _read(folder)
    seconds = frame_times(times, len(names), source)
    chosen = of_frames(images, names, source)
    if not all(image.camera in lenses for image in chosen):
        raise GeometryError(
            f"{source}: an image names a camera that is not among the cameras; export the model anew"
        )
    quaternions = np.array([(*image.quaternion[1:], image.quaternion[0]) for image in chosen])
    rotations = quaternion_rotations(quaternions, source)
    translations = np.array([image.translation for image in chosen])
    used = [lenses[image.camera] for image in chosen]
    intrinsics = np.stack(
        [scaled_intrinsics(lens.matrix, lens.size, size or used[0].size, source) for lens in used]
    )
    poses = inverted(rotations, translations)
    poses[:, :3, 3] /= _median_depth(rotations, translations, chosen, points)
    return CameraTrack(seconds, poses, intrinsics, size or used[0].size, source="colmap")


def _median_depth(
    rotations: Array, translations: Array, images: Sequence[_Image], points: dict[int, Array]
) -> float:
    """Of the points that each frame sees; 1 for a model without points."""
    depths = [
        float(rotation[2] @ points[point] + translation[2])
        for rotation, translation, image in zip(rotations, translations, images, strict=True)
        for point in image.points
        if point in points
    ]
    return float(np.median(depths)) if depths and np.median(depths) > 0 else 1.0


def _read(folder: Path) -> tuple[dict[int, _Lens], dict[str, _Image], dict[int, Array]]:
    binary = (folder / "images.bin").exists()
    kind, read = (".bin", _binary) if binary else (".txt", _text)
    files = {name: folder / f"{name}{kind}" for name in ("cameras", "images", "points3D")}
    try:
        return read(*(read_source(path) for path in files.values()))
    except (struct.error, ValueError, IndexError, KeyError) as error:
        if isinstance(error, GeometryError):
            raise
        raise GeometryError(
            f"{folder}: no model of COLMAP, or a damaged one ({error}); export it anew"
        ) from error


def _lens(model: str, width: int, height: int, values: Sequence[float]) -> _Lens:
    shared = _BY_NAME[model][1]
    focal = [values[0], values[0], values[1], values[2]] if shared else list(values[:4])
    return _Lens((width, height), intrinsic_matrix(*focal))


def _lines(data: bytes) -> list[str]:
    lines = data.decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _text(
    cameras: bytes, images: bytes, points: bytes
) -> tuple[dict[int, _Lens], dict[str, _Image], dict[int, Array]]:
    lenses, found, places = {}, {}, {}
    for line in filter(str.strip, _lines(cameras)):
        number, model, width, height, *values = line.split()
        lenses[int(number)] = _lens(model, int(width), int(height), [float(v) for v in values])
    # Two lines an image: its pose, and its points, which may be an empty line.
    lines = _lines(images)
    while lines and not lines[0].strip():
        lines.pop(0)
    for pose, seen in zip(lines[::2], [*lines[1::2], ""], strict=False):
        _, *numbers, camera, name = pose.split(maxsplit=9)
        pose_values = tuple(float(n) for n in numbers)
        base = PurePosixPath(name.strip()).name
        ids = tuple(int(word) for word in seen.split()[2::3])
        found[base] = _Image(base, int(camera), pose_values[:4], pose_values[4:7], ids)
    for line in filter(str.strip, _lines(points)):
        words = line.split()
        places[int(words[0])] = np.array([float(word) for word in words[1:4]])
    return lenses, found, places


class _Reader:
    """Little-endian values from bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, form: str) -> tuple[float, ...]:
        values = struct.unpack_from(f"<{form}", self.data, self.offset)
        self.offset += struct.calcsize(f"<{form}")
        return values

    def whole(self, form: str) -> int:
        return int(self.take(form)[0])

    def text(self) -> str:
        end = self.data.index(b"\0", self.offset)
        value = self.data[self.offset : end].decode("utf-8", errors="replace")
        self.offset = end + 1
        return value

    def skip(self, count: int) -> None:
        if self.offset + count > len(self.data):
            raise ValueError("the file ends early")
        self.offset += count


def _binary(
    cameras: bytes, images: bytes, points: bytes
) -> tuple[dict[int, _Lens], dict[str, _Image], dict[int, Array]]:
    lenses, found, places = {}, {}, {}
    reader = _Reader(cameras)
    for _ in range(reader.whole("Q")):
        number, model, width, height = (int(v) for v in reader.take("iiQQ"))
        if not 0 <= model < len(_MODELS):
            raise ValueError(f"camera model {model}")
        name, count, _ = _MODELS[model]
        lenses[number] = _lens(name, width, height, reader.take(f"{count}d"))
    for image in _binary_images(_Reader(images)):
        found[image.name] = image
    reader = _Reader(points)
    for _ in range(reader.whole("Q")):
        number = reader.whole("Q")
        places[number] = np.array(reader.take("3d"))
        reader.skip(3 + 8)  # colour and error
        reader.skip(8 * reader.whole("Q"))  # where it is seen
    return lenses, found, places


def _binary_images(reader: _Reader) -> Iterator[_Image]:
    for _ in range(reader.whole("Q")):
        reader.skip(4)
        values = reader.take("7d")
        camera = reader.whole("i")
        name = PurePosixPath(reader.text()).name
        count = reader.whole("Q")
        start = reader.offset
        reader.skip(24 * count)
        rows = np.frombuffer(reader.data, "<f8,<f8,<i8", count, start)
        yield _Image(name, camera, values[:4], values[4:], tuple(rows["f2"].tolist()))
