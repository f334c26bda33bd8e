"""TIFF read from the top: each piece is a small TIFF with the same tags and some of the blocks.

A block is a strip or a tile, whichever the file has.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.errors import InputError
from fcn_deploy.row_reader import PIECE_PIXELS, RowReader, decode_rgb
from fcn_deploy.tiff_blocks import (
    BITS,
    COMPRESSION,
    HEIGHT,
    MOST_PIXELS,
    PHOTOMETRIC,
    PLANAR,
    STRIP_BYTES,
    STRIP_OFFSETS,
    STRIP_ROWS,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
    Blocks,
    read_blocks,
    refuse_missing_blocks,
)

JPEG_TABLES = 347
_LONG = {WIDTH, HEIGHT, STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES, 292, 293}
_LONG |= {TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES}
_KEPT = (
    *(BITS, COMPRESSION, PHOTOMETRIC, 277, PLANAR, JPEG_TABLES),
    *(266, 292, 293, 317),  # order of bits, options of fax compression, predictor
    *(320, 332, 338, 339, 530),  # colour map, inks, alpha, sample format, chroma subsampling
)
"""Tags that say how pixels are stored."""

_UNCOMPRESSED, _OLD_JPEG, _JPEG = 1, 6, 7
_YCBCR = 6


def open_tiff(path: Path, image: Image.Image) -> RowReader | None:
    """Open a TIFF to be read in windows, or ``None`` where that is not possible.

    Args:
        path: The file.
        image: The same file, opened with Pillow.

    Raises:
        InputError: Blocks are missing, or its first ones are damaged.
    """
    tags: Any = getattr(image, "tag_v2", {})
    try:
        blocks = _refined(read_blocks(tags), tags)
        turned = image.getexif().get(0x0112, 1) != 1
    except Exception:  # tags are as breakable as pixels; read_image has the words for it
        return None
    if turned or image.mode in ("I", "F") or not _can_be_cut(blocks, tags, path.stat().st_size):
        return None
    refuse_missing_blocks(path, blocks)
    if blocks.planes > 1 and max(tags[BITS]) > 8 and tags.get(COMPRESSION, 1) == _UNCOMPRESSED:
        # Pillow 13 takes every byte of them for a pixel, without a word.
        raise InputError(
            f"{path} has 16-bit bands that are stored apart and not compressed.",
            'Compress it, or have GDAL read it: pip install "fcn-deploy[large]"',
        )
    high, wide = blocks.block_hw
    down = max(1, PIECE_PIXELS // (high * blocks.grid[1] * wide))
    file = path.open("rb")
    cut = _Cut(path, file, blocks, {tag: tags[tag] for tag in _KEPT if tag in tags})
    try:
        cut.try_one()
    except BaseException:
        file.close()
        raise
    return RowReader(path, blocks.image_hw, down * high, cut.decode, file.close)


def _refined(blocks: Blocks, tags: Any) -> Blocks:
    """Cut the one strip of an uncompressed file, which many programs write, into small ones."""
    alone = len(blocks.offsets) == 1 and not blocks.tiled
    if not alone or tags.get(COMPRESSION, 1) != _UNCOMPRESSED or tags[PHOTOMETRIC] == _YCBCR:
        return blocks
    height, width = blocks.image_hw
    row_bytes = -(-width * sum(tags[BITS]) // 8)
    if blocks.sizes[0] < height * row_bytes:
        return blocks
    high = max(1, PIECE_PIXELS // width)
    starts = range(0, height, high)
    return replace(
        blocks,
        block_hw=(high, width),
        offsets=[blocks.offsets[0] + start * row_bytes for start in starts],
        sizes=[(min(start + high, height) - start) * row_bytes for start in starts],
    )


def _can_be_cut(blocks: Blocks, tags: Any, file_bytes: int) -> bool:
    compression = tags.get(COMPRESSION, 1)
    whole = all(
        offset + size <= file_bytes
        for offset, size in zip(blocks.offsets, blocks.sizes, strict=True)
    )
    strange = compression == _OLD_JPEG or (tags[PHOTOMETRIC] == _YCBCR and compression != _JPEG)
    pixels = blocks.block_hw[0] * blocks.block_hw[1]
    # Of a compressed file in one strip nothing less than the whole can be decoded.
    parts = blocks.tiled or blocks.grid[0] > 1 or pixels <= PIECE_PIXELS
    return whole and parts and pixels <= MOST_PIXELS and not strange


class _Cut:
    """Pieces of a TIFF file, each of whole rows of blocks."""

    def __init__(self, path: Path, file: BinaryIO, blocks: Blocks, tags: dict[int, Any]) -> None:
        self._path = path
        self._file = file
        self._blocks = blocks
        self._tags = tags
        file.seek(0)
        self._order = "<" if file.read(2) == b"II" else ">"

    def try_one(self) -> None:
        """Decode one block: whether Pillow knows the compression shows only then."""
        (high, wide), (height, width) = self._blocks.block_hw, self._blocks.image_hw
        content = self._piece((0, min(high, height)), (0, 1), min(wide, width))
        decode_rgb(self._path, content)

    def decode(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) as RGB; begins and ends with a row of blocks."""
        (high, wide), (_, width) = self._blocks.block_hw, self._blocks.image_hw
        down, (_, columns) = -(-(stop - start) // high), self._blocks.grid
        across = max(1, PIECE_PIXELS // (down * high * wide))
        rows = np.empty((stop - start, width, 3), np.uint8)
        for left in range(0, columns, across):
            right = min(left + across, columns)
            x, end = left * wide, min(right * wide, width)
            content = self._piece((start, stop), (left, right), end - x)
            rows[:, x:end], _ = decode_rgb(self._path, content)
        return rows

    def _piece(self, rows: tuple[int, int], columns: tuple[int, int], width: int) -> bytes:
        """A TIFF file of rows of pixels and columns of blocks."""
        blocks = self._blocks
        down, across = blocks.grid
        high, wide = blocks.block_hw
        numbers = [
            (plane * down + row) * across + column
            for plane in range(blocks.planes)
            for row in range(rows[0] // high, -(-rows[1] // high))
            for column in range(*columns)
        ]
        data = [self._read(blocks.offsets[number], blocks.sizes[number]) for number in numbers]
        tags = {**self._tags, WIDTH: width, HEIGHT: rows[1] - rows[0]}
        sizes = [len(block) for block in data]
        if blocks.tiled:
            tags |= {TILE_WIDTH: wide, TILE_HEIGHT: high, TILE_BYTES: sizes}
        else:
            tags |= {STRIP_ROWS: high, STRIP_BYTES: sizes}
        places = TILE_OFFSETS if blocks.tiled else STRIP_OFFSETS
        # Twice: only when the directory's length is known are the places of the blocks known.
        first = len(_directory({**tags, places: sizes}, self._order))
        tags[places] = [first + sum_before for sum_before in np.cumsum([0, *sizes[:-1]]).tolist()]
        return b"".join((_directory(tags, self._order), *data))

    def _read(self, offset: int, size: int) -> bytes:
        try:
            self._file.seek(offset)
            content = self._file.read(size)
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error.strerror}.") from error
        if len(content) < size:
            raise InputError(f"{self._path} ends too early: it has changed while it was read.")
        return content


def _directory(tags: dict[int, Any], order: str) -> bytes:
    """Header and tags of a TIFF file.

    Source: TIFF 6.0, section 2.
    """
    entries, outside = b"", b""
    place = 8 + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, (bytes, tuple, list)) else (value,)
        code, letter = (7, "B") if tag == JPEG_TABLES else (4, "I") if tag in _LONG else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        entries += struct.pack(f"{order}HHI", tag, code, len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", place + len(outside))
            outside += packed + b"\0" * (len(packed) % 2)
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + outside
