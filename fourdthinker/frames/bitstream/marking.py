"""H.264: pictures at which the order of display begins anew though they are no IDR pictures.

Such a picture has memory_management_control_operation 5, which stands at the end of a slice's header.
Sources: ITU-T H.264 7.3.2.2 (picture parameter set), 7.3.3 (slice header), 7.3.3.1 to 7.3.3.3 (modification
of lists, weights, marking), 8.2.1 (order counts after the operation).
"""

from __future__ import annotations

from typing import NamedTuple

from fourdthinker.frames.bitstream.bits import Bits

HEAD = 640  # bytes of a slice that hold its header: 64 weights are the longest part of it
_P, _B, _I, _SP, _SI = range(5)  # slice_type


class Picture264(NamedTuple):
    """Of a picture parameter set, what the header of a slice needs. Flags are 0 or 1.

    sequence: number of the sequence parameter set. order_of_bottom: slices of frames tell that of the bottom
    field. groups: slices are grouped, which is not read. references: of both lists, where slices do not tell.
    weighted: P-slices hold weights. biweighted: 1 where B-slices do. redundant: slices count copies.
    """

    sequence: int
    order_of_bottom: int
    groups: int
    references: tuple[int, int]
    weighted: int
    biweighted: int
    redundant: int


def picture_set(bits: Bits) -> tuple[int, Picture264]:
    """(number of a picture parameter set, what it says), from the first bit behind the unit's head."""
    number, sequence = bits.ue(), bits.ue()
    bits.take(1)
    order_of_bottom, groups = bits.take(1), bits.ue()
    if groups:
        return number, Picture264(sequence, order_of_bottom, groups, (0, 0), 0, 0, 0)
    references = bits.ue() + 1, bits.ue() + 1
    weighted, biweighted = bits.take(1), bits.take(2)
    bits.skip_ue(3)
    bits.take(2)
    return number, Picture264(
        sequence, order_of_bottom, groups, references, weighted, biweighted, bits.take(1)
    )


def begins_anew(bits: Bits, kind: int, picture: Picture264, chroma: bool) -> bool:
    """Whether a slice of a reference picture, no IDR picture, has operation 5.

    Args:
        bits: of its header, behind the order counts.
        kind: slice_type.
        picture: its picture parameter set.
        chroma: there are chroma planes that are coded with luma.

    Raises:
        ValueError: the header cannot be read.
    """
    kind %= 5
    if picture.groups:
        raise ValueError("groups of slices are not read")
    if picture.redundant:
        bits.ue()
    if kind == _B:
        bits.take(1)
    lists = {_P: 1, _SP: 1, _B: 2}.get(kind, 0)
    counts = list(picture.references[:lists])
    if lists and bits.take(1):
        counts = [bits.ue() + 1 for _ in range(lists)]
    for _ in range(lists):
        if bits.take(1):
            while bits.ue() != 3:
                bits.ue()
    if (picture.weighted and kind in (_P, _SP)) or (picture.biweighted == 1 and kind == _B):
        _skip_weights(bits, counts, chroma)
    if not bits.take(1):
        return False
    while operation := bits.ue():
        if operation == 5:
            return True
        bits.skip_ue({3: 2}.get(operation, 1))
    return False


def _skip_weights(bits: Bits, counts: list[int], chroma: bool) -> None:
    bits.skip_ue(1 + chroma)
    for count in counts:
        for _ in range(count):
            if bits.take(1):
                bits.skip_ue(2)
            if chroma and bits.take(1):
                bits.skip_ue(4)
