"""Checksums: CRC-32, which finds every damage of up to 32 bits in a row and all but one in 2^32 of
others. It is no protection against someone who wants to deceive.
"""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 1 << 20  # stays in a core's cache between the sum and the write


def pieces_of(data: memoryview) -> Iterator[memoryview]:
    """Bytes in pieces that are summed and then written or copied."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


class Checksum:
    """The sum of the bytes that were added."""

    def __init__(self) -> None:
        self._value = 0

    def add(self, data: bytes | memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    @property
    def text(self) -> str:
        return f"{self._value:08x}"


def checksum(data: bytes | memoryview) -> str:
    """The sum of some bytes."""
    total = Checksum()
    total.add(data)
    return total.text
