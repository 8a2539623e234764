"""What the data of a coded picture tell about it: bits of one byte, the same for all families.

KEYFRAME: the container calls it one, and its data do not say otherwise. RANDOM_ACCESS: decoding can begin at
it without a reset of the decoder, for neither it nor what follows refers to anything before it.
NON_REFERENCE: no other picture refers to it, so it need not be decoded unless it is wanted. NOT_SHOWN: it is
decoded only for others to refer to. SECOND_FIELD: of the picture that the packet before begins, and
shown with it (H.264). LOST: a picture before this one, which it and those after it may refer to, is not in
the file. DUPLICATE: the decoder may show another packet's picture under the stamp
of this one. A bit that is not set says nothing.
"""

from __future__ import annotations

from collections.abc import Callable

KEYFRAME, RANDOM_ACCESS, NON_REFERENCE, NOT_SHOWN, DUPLICATE = 1, 2, 4, 8, 128
SECOND_FIELD, LOST = 16, 32
# H.265 only: the temporal layer of a picture that nothing of its own layer refers to, until
# `nal.settle_layers`.
LAYER_SHIFT, LAYERS = 4, 7

Data = bytes | memoryview
Flags = Callable[[Data], int]  # the bits of a picture, given all data of its packet
Test = Callable[[Data], bool]  # whether something holds of it
Damage = Callable[[Data], str | None]  # the cause, where the data of a picture show that they are damaged
ZEROS = "a run of zero bytes, as a lost block leaves"  # such a cause
