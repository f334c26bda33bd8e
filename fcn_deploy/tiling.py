"""Crops that cover an image, and the average of their logits: NumPy only, no files, no vendor.

The prediction of a pixel is defined as the average of the logits of all crops that cover it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import UsageError

DEFAULT_OVERLAP = 64


@dataclass(frozen=True)
class CropGrid:
    """Crops of one size on a grid, in pixels; their union is exactly the padded image.

    Attributes:
        image_hw: Height and width of the image.
        padded_hw: The same, after padding at the bottom and right.
        crop_hw: Height and width of every crop.
        tops: First row of each row of crops, ascending, unique.
        lefts: First column of each column of crops, ascending, unique.
    """

    image_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each crop, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]


def plan_crops(
    image_hw: tuple[int, int],
    tile_hw: tuple[int, int] | None,
    overlap: int = DEFAULT_OVERLAP,
    *,
    step: int = 32,
    min_hw: tuple[int, int] = (1, 1),
) -> CropGrid:
    """Cover an image with crops whose sizes and starts are multiples of ``step``; all in pixels.

    The image is padded at the bottom and right to a multiple of ``step``. The last row and column
    of crops shift back inside instead of being cut short, so their overlap may be larger.

    Args:
        image_hw: Any height and width from 1.
        tile_hw: Wanted crop size; smaller images get one crop of their padded size. ``None``: one
            crop for the whole image.
        overlap: Pixels that neighbouring crops share, at least. Rounded up so that starts stay
            multiples of ``step``.
        step: Output stride of the network.
        min_hw: Smallest crop that the backend takes; smaller images are padded to it.

    Raises:
        UsageError: An empty image; a tile that is not a multiple of ``step``; an overlap that is
            negative or leaves no stride.
    """
    if min(image_hw) < 1:
        raise UsageError(f"An image of {image_hw[0]}x{image_hw[1]} pixels has nothing to segment.")
    padded = _round_up(image_hw, step, min_hw)
    tile = padded if tile_hw is None else tile_hw
    if min(tile) < step or any(size % step for size in tile):
        raise UsageError(
            f"The tile {tile[0]}x{tile[1]} is not a multiple of the output stride {step}.",
            f"For example: --tile {'x'.join(str(size) for size in _round_up(tile, step, (1, 1)))}",
        )
    if overlap < 0 or (tile_hw is not None and overlap > min(tile) - step):
        raise UsageError(
            f"An overlap of {overlap} does not go with a tile of {tile[0]}x{tile[1]}.",
            f"It must lie between 0 and {min(tile) - step}.",
        )
    crop = (min(tile[0], padded[0]), min(tile[1], padded[1]))
    tops, lefts = (
        _starts(size, edge, (wanted - overlap) // step * step)
        for size, edge, wanted in zip(padded, crop, tile, strict=True)
    )
    return CropGrid(image_hw, padded, crop, tops, lefts)


def _round_up(hw: tuple[int, int], step: int, least: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        max(-(-size // step) * step, -(-low // step) * step)
        for size, low in zip(hw, least, strict=True)
    )
    return height, width


def _starts(size: int, crop: int, stride: int) -> tuple[int, ...]:
    if crop == size:
        return (0,)
    return (*range(0, size - crop, stride), size - crop)


def cut_crops(image: NDArray[np.uint8], grid: CropGrid) -> Iterator[NDArray[np.uint8]]:
    """Yield the crops (h, w, 3) of an image (H, W, 3), row by row.

    Beyond the bottom and right edge the image is mirrored, which keeps textures going: a constant
    would draw an edge that the network sees. Crops inside the image are views, not copies.
    """
    height, width = grid.image_hw
    crop_h, crop_w = grid.crop_hw
    for top, left in grid.corners:
        part = image[top : top + crop_h, left : left + crop_w]
        if part.shape[:2] == grid.crop_hw:
            yield part
            continue
        rows = _mirror(np.arange(top, top + crop_h), height)
        columns = _mirror(np.arange(left, left + crop_w), width)
        yield image[rows[:, None], columns[None, :]]


def _mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold indices from 0 up into [0, size), the edge pixel counting twice."""
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def merge_logits(
    grid: CropGrid, logits: Iterable[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Average the logits of overlapping crops, one band of finished rows after the other.

    Holds one band of crop height, whatever the height of the image.

    Args:
        grid: The plan that the crops were cut by.
        logits: One (C, h, w) per crop, in the order of the plan.

    Yields:
        (C, rows, W) float32 of the padded image, from top to bottom without gaps; the caller owns
        each band.
    """
    crop_h, crop_w = grid.crop_hw
    rows_covered = _coverage(grid.tops, crop_h, grid.padded_hw[0])
    columns_covered = _coverage(grid.lefts, crop_w, grid.padded_hw[1])
    crops = iter(logits)
    band: NDArray[np.float32] | None = None
    for index, top in enumerate(grid.tops):
        for left in grid.lefts:
            crop = next(crops)
            if band is None:
                band = np.zeros((crop.shape[0], crop_h, grid.padded_hw[1]), np.float32)
            band[:, :, left : left + crop_w] += crop
        assert band is not None
        end = grid.tops[index + 1] if index + 1 < len(grid.tops) else top + crop_h
        done = end - top
        # The weight of a pixel is separable: crops that cover its row times those of its column.
        count = rows_covered[top:end, None] * columns_covered[None, :]
        yield band[:, :done] / count
        band[:, : crop_h - done] = band[:, done:].copy()
        band[:, crop_h - done :] = 0


def _coverage(starts: tuple[int, ...], crop: int, size: int) -> NDArray[np.float32]:
    count = np.zeros(size, np.float32)
    for start in starts:
        count[start : start + crop] += 1
    return count
