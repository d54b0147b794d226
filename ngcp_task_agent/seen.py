"""
Which keys were perhaps seen before: Bloom filters (Bloom, 1970), asked before the disk is.

No library in Debian 13 has one that costs less than the look at the disk does.
"""

from __future__ import annotations

from collections.abc import Hashable

BYTES = 1024 * 1024  # of a filter
FULL = BYTES  # keys, with 8 bits each: of unseen ones, one in twenty is taken for seen

_MASK = BYTES * 8 - 1
_SHIFT = _MASK.bit_length()


class Seen:
    """Two filters of which the older is given up when the newer has had its time.

    ``key not in seen`` is never wrong for the keys since the last `turn` but one;
    ``key in seen`` may be.

    Attributes:
        count: Keys since the last `turn` that were not there before.
    """

    def __init__(self) -> None:
        self.count = 0
        self._bits, self._older = bytearray(BYTES), bytearray(BYTES)

    def add(self, key: Hashable) -> None:
        """Remember *key* until the turn after the next."""
        self.count += key not in self
        number, bits = hash(key), self._bits
        first, second = number & _MASK, number >> _SHIFT & _MASK
        bits[first >> 3] |= 1 << (first & 7)
        bits[second >> 3] |= 1 << (second & 7)

    def __contains__(self, key: Hashable) -> bool:
        number = hash(key)
        first, second = number & _MASK, number >> _SHIFT & _MASK
        at, bit, again, other = first >> 3, 1 << (first & 7), second >> 3, 1 << (second & 7)
        bits, older = self._bits, self._older
        return bool(bits[at] & bit and bits[again] & other) or bool(
            older[at] & bit and older[again] & other
        )

    def turn(self) -> None:
        """Begin a new filter; the one so far becomes the older."""
        self._bits, self._older = bytearray(BYTES), self._bits
        self.count = 0
