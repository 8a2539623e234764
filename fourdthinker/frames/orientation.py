"""Which way up a stored picture is shown: display matrices of videos, EXIF of pictures."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import VideoError

if TYPE_CHECKING:
    import av

STRAIGHT = 0.02  # of its length at most, a side of the picture may deviate from the axes: 1.1 degrees


@dataclass(frozen=True)
class Orientation:
    """What makes a stored picture upright.

    `quarter_turns` counter-clockwise (0 to 3), after which, where `mirrored`, left and right are exchanged.
    """

    quarter_turns: int = 0
    mirrored: bool = False

    @property
    def transposed(self) -> bool:
        """Whether height and width are exchanged."""
        return self.quarter_turns % 2 == 1

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """A view of pictures [..., H, W, 3] as they are shown."""
        turned = np.rot90(pixels, self.quarter_turns, (-3, -2))
        return turned[..., ::-1, :] if self.mirrored else turned

    def after_turns(self, done: int) -> Orientation:
        """What remains to be done when the stored picture has already been turned by `done` quarters."""
        return Orientation((self.quarter_turns - done) % 4, self.mirrored)

    @staticmethod
    def of_exif(value: object) -> Orientation:
        """Of the EXIF tag Orientation (CIPA DC-008, 4.6.5.1.6). Values out of 1 to 8 say nothing: upright."""
        return _EXIF.get(value, Orientation()) if isinstance(value, int) else Orientation()

    @staticmethod
    @lru_cache(maxsize=64)
    def of_matrix(matrix: bytes) -> Orientation:
        """Read a display matrix as FFmpeg gives it: nine native 32-bit numbers a b u c d v x y w.

        By them the stored point (p, q), q downwards, is shown at (a p + c q, b p + d q) apart from the shift.
        Scale, which FFmpeg turns into the aspect of pixels, is ignored. A matrix of zeros says nothing:
        upright.

        Raises:
            ValueError: the picture is turned by another angle, sheared or flat.
        """
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
        if not (a or b or c or d):
            return Orientation()
        columns = ((a, b), (c, d))  # where a step to the right and a step down are shown
        oblique = any(min(abs(x), abs(y)) > STRAIGHT * max(abs(x), abs(y)) for x, y in columns)
        axes = [(x > 0) - (x < 0) if abs(x) > abs(y) else 2 * ((y > 0) - (y < 0)) for x, y in columns]
        found = _AXES.get((axes[0], axes[1]))
        if oblique or found is None:
            raise ValueError(f"({a / 65536:g}, {b / 65536:g}, {c / 65536:g}, {d / 65536:g})")
        return found


_EXIF = {
    1: Orientation(0),
    2: Orientation(0, True),
    3: Orientation(2),
    4: Orientation(2, True),
    5: Orientation(3, True),
    6: Orientation(3),
    7: Orientation(1, True),
    8: Orientation(1),
}
# Where a step to the right and a step down of the stored picture are shown: 1 right, -1 left, 2 down, -2 up.
_AXES = {
    (1, 2): Orientation(0),
    (-2, 1): Orientation(1),
    (-1, -2): Orientation(2),
    (2, -1): Orientation(3),
    (-1, 2): Orientation(0, True),
    (-2, -1): Orientation(1, True),
    (1, -2): Orientation(2, True),
    (2, 1): Orientation(3, True),
}


def matrix_of(frame: av.VideoFrame) -> bytes | None:
    """The display matrix that comes with a decoded frame.

    The container's comes first and with all frames; one of H.264 or H.265 itself stands behind it.
    """
    from av.sidedata.sidedata import SideDataContainer, Type

    # Not frame.side_data, which refers back to its frame: their memory would wait for the garbage collector.
    read: Any = SideDataContainer
    try:
        found = list(read(frame))
    except ValueError:
        _accept_unknown(Type)
        found = list(read(frame))
    return next((bytes(data) for data in found if data.type == Type.DISPLAYMATRIX), None)


def orientation_of(frame: av.VideoFrame, name: str) -> Orientation:
    """Of a decoded frame of the file `name`; `frame.rotation`, an angle, does not tell mirrored pictures.

    A matrix in H.264 or H.265 itself comes with the first picture of a sequence only, and holds for all of
    it: `sink.Sink` leaves it in `opaque` of the others.

    Raises:
        VideoError: the frame is shown turned by another angle than quarters.
    """
    data = matrix_of(frame) or frame.opaque
    if not isinstance(data, bytes):
        return Orientation()
    try:
        return Orientation.of_matrix(data)
    except ValueError as error:
        raise VideoError(
            f"{name}: its display matrix {error} turns the picture by other than quarters, or shears it; "
            "write it anew with the picture itself turned (ffmpeg does so when it re-encodes)"
        ) from error


def _accept_unknown(kinds: Any) -> None:
    """Make PyAV give the side data of frames that have a kind it does not know, such as EXIF.

    PyAV 18 gives none at all then. Its enumeration of kinds takes unknown ones from here on.
    """

    def unknown(cls: Any, value: object) -> Any:
        member: Any = object.__new__(cls)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return member

    kinds._missing_ = classmethod(unknown)
