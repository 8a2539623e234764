"""Whether the elements of a Matroska or WebM file follow each other without a gap.

FFmpeg searches on after data that are no element, and does not say so: frames are then missing from the
middle of a file. Here only the heads of elements are read. Sources: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_VOID, _CRC = 0xEC, 0xBF
MOST = 12  # bytes of an element's head
OFTEN = 1024  # elements between two checks of the deadline
# SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags.
_OTHERS = {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
_PARTS = _OTHERS | {_CLUSTER, _VOID, _CRC}
# Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock.
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, _VOID, _CRC}


@dataclass(frozen=True)
class Walk:
    """What a walk over the elements of a file found.

    Attributes:
        suspect_from: offset in bytes of the first data that may be damaged, or after which some are missing;
            None where there are none, and for other files than Matroska.
        complete: all sizes are known and the file holds as much.
    """

    suspect_from: int | None = None
    complete: bool = False


def walk(media: str | os.PathLike[str] | bytes, name: str, check: Callable[[], None]) -> Walk:
    """Walk through a file, at `name` unless it is bytes. check is called now and then."""
    if isinstance(media, bytes):
        return _Walker(io.BytesIO(media), len(media), check).walk()
    with open(name, "rb", buffering=0) as file:
        return _Walker(file, os.fstat(file.fileno()).st_size, check).walk()


class _Walker:
    """In a file of so many bytes."""

    def __init__(self, file: BinaryIO, size: int, check: Callable[[], None]) -> None:
        self.file, self.size, self.check = file, size, check
        self.count = 0
        self.sized = True

    def walk(self) -> Walk:
        if self.file.read(4) != MAGIC:
            return Walk()
        suspect_from = self.first_suspect()
        return Walk(suspect_from, self.sized and suspect_from is None)

    def first_suspect(self) -> int | None:
        head = self.element(0)
        segment = None if head is None or head[1] is None else self.element(head[2] + head[1])
        if segment is None or segment[0] != _SEGMENT:
            self.sized = False
            return None
        self.sized = segment[1] is not None
        offset = begin = segment[2]
        end = self.size if segment[1] is None else offset + segment[1]
        while offset < end:
            part = self.element(offset)
            if part is None or part[0] not in _PARTS:
                return begin
            begin, offset = offset, part[2]
            if part[0] == _CLUSTER:
                suspect_from, offset = self.cluster(begin, *part[1:])
                if suspect_from is not None:
                    return suspect_from
            elif part[1] is None or offset + part[1] > self.size:
                return begin
            else:
                offset += part[1]
        return None

    def cluster(self, begin: int, size: int | None, offset: int) -> tuple[int | None, int]:
        """(where data begin that may be damaged, the end of the cluster).

        Damage lies before the place where it shows, for data may look like an element by chance: all of the
        cluster is suspect then. Of one that the end of the file cuts off, only the last element is.
        """
        self.sized = self.sized and size is not None
        limit = self.size if size is None else offset + size
        last = begin
        while offset < min(limit, self.size):
            child = self.element(offset)
            if size is None and child is not None and child[0] in _OTHERS | {_CLUSTER}:
                return None, offset  # a cluster of unknown size ends where another part begins
            if child is None or child[0] not in _IN_CLUSTER or child[1] is None:
                return last if offset + MOST > self.size else begin, offset
            last, offset = offset, child[2] + child[1]
        if offset > self.size or limit > self.size:
            return last, offset
        return (None if offset == limit else begin), offset

    def element(self, offset: int) -> tuple[int, int | None, int] | None:
        """(identifier, size of the content or None where it is unknown, where that begins), or None."""
        self.count += 1
        if self.count % OFTEN == 0:
            self.check()
        self.file.seek(offset)
        head = self.file.read(MOST)
        if len(head) < 2 or not head[0]:
            return None
        begin = 9 - head[0].bit_length()
        if begin > 4 or begin >= len(head) or not head[begin]:
            return None
        after = begin + 9 - head[begin].bit_length()
        if after > len(head):
            return None
        bits = 7 * (after - begin)
        size = int.from_bytes(head[begin:after], "big") & ((1 << bits) - 1)
        return int.from_bytes(head[:begin], "big"), None if size == (1 << bits) - 1 else size, offset + after
