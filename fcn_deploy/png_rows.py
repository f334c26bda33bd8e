"""Does a PNG file hold all the rows of pixels that it declares? Pillow does not ask."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column and row, and steps between columns and rows, of the passes of interlaced PNG."""


def rows_are_missing(path: Path) -> bool:
    """Whether the compressed data inflates to less than the header declares.

    Source: PNG specification (ISO/IEC 15948), sections 7.2 (scanlines) and 8.2 (interlacing).

    Args:
        path: A PNG file that Pillow has decoded.
    """
    content = path.read_bytes()
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    expected = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        expected += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    inflate, found, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(content):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        if name == b"IDAT":
            try:
                found += len(inflate.decompress(content[place + 8 : place + 8 + length]))
            except zlib.error:  # in what follows the pixels: Pillow has taken them
                return False
        place += 12 + length
    return found < expected
