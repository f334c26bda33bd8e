"""Where in a TIFF file its pixels lie.

A block is a strip or a tile, whichever the file has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fcn_deploy.errors import InputError
from fcn_deploy.quiet import quiet

MOST_PIXELS = 1 << 26
"""Of a block that is decoded alone; Pillow warns of decompression bombs from 89 MP."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
PLANAR = 284
_SEPARATE = 2
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Blocks:
    """Where the strips or tiles of a TIFF lie.

    Attributes:
        image_hw: Size in pixels.
        block_hw: Size of a block; those at the bottom may be shorter if they are strips.
        tiled: Whether they are tiles.
        planes: 1, or the number of bands if each has blocks of its own.
        offsets: Where each begins in the file, row by row, plane by plane.
        sizes: Bytes in the file; 0 where a block is missing.
    """

    image_hw: tuple[int, int]
    block_hw: tuple[int, int]
    tiled: bool
    planes: int
    offsets: Sequence[int]
    sizes: Sequence[int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        (height, width), (high, wide) = self.image_hw, self.block_hw
        return -(-height // high), -(-width // wide)


def read_tags(path: Path) -> ImageFileDirectory_v2 | None:
    """The first directory of a TIFF, also of one whose pixels Pillow cannot decode.

    ``None`` of what is no TIFF, or one with a broken directory.
    """
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] not in _SIGNATURES:
                return None
            tags = ImageFileDirectory_v2(head + (file.read(8) if 43 in head[2:4] else b""))
            file.seek(tags.next)
            with quiet:
                tags.load(file)
    except Exception:  # tags are as breakable as pixels
        return None
    return tags


def read_blocks(tags: Any) -> Blocks:
    """The blocks that a directory of Pillow's declares.

    Args:
        tags: ``tag_v2`` of an image, or any other directory.

    Raises:
        KeyError: It lacks a tag.
        ValueError: Its tags contradict each other.
    """
    height, width = int(tags[HEIGHT]), int(tags[WIDTH])
    tiled = TILE_OFFSETS in tags
    high = int(tags[TILE_HEIGHT] if tiled else min(tags.get(STRIP_ROWS, height), height))
    block_hw = (high, int(tags[TILE_WIDTH]) if tiled else width)
    planes = len(tags[BITS]) if tags.get(PLANAR, 1) == _SEPARATE else 1
    places = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    offsets, sizes = (tuple(tags[tag]) for tag in places)
    blocks = Blocks((height, width), block_hw, tiled, planes, offsets, sizes)
    if min(*blocks.image_hw, *block_hw) < 1:
        raise ValueError("a size of nothing")
    if not len(offsets) == len(sizes) == planes * blocks.grid[0] * blocks.grid[1]:
        raise ValueError(f"{len(offsets)} and {len(sizes)} blocks")
    return blocks


def refuse_missing_blocks(path: Path, blocks: Blocks) -> None:
    """Refuse a file of which parts were never written; GDAL takes them for black.

    Raises:
        InputError: Some blocks are empty.
    """
    if not all(blocks.sizes):
        raise InputError(
            f"{path} lacks {blocks.sizes.count(0)} of its {len(blocks.sizes)} blocks of pixels.",
            "If that is on purpose (a sparse GeoTIFF): gdal_translate -co SPARSE_OK=FALSE IN OUT",
        )
