"""Numbers out of the bits of a header."""

from __future__ import annotations


class Bits:
    """Reads a header from its first bit on. ValueError past its end."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        if count > self.left:
            raise ValueError("the header ends early")
        self.left -= count
        return self.value >> self.left & ((1 << count) - 1)

    def ue(self) -> int:
        """An unsigned number in Exp-Golomb code."""
        zeros = self.left - (self.value & ((1 << self.left) - 1)).bit_length()
        if zeros > 32:
            raise ValueError("a number of more than 32 bits")
        return self.take(2 * zeros + 1) - 1

    def skip_ue(self, count: int) -> None:
        """Skip `count` numbers in Exp-Golomb code."""
        for _ in range(count):
            self.ue()
