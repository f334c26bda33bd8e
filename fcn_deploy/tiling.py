"""Crops that cover an image, and which of them say what a pixel is: NumPy only, no vendor.

The prediction of a pixel is defined as the average of the logits of all crops that cover it; with a
halo, as the logits of the one crop in whose middle it lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import UsageError

DEFAULT_OVERLAP = 64


@dataclass(frozen=True)
class Span:
    """Rows or columns, in pixels from ``start`` to before ``stop``, that the same crops decide."""

    start: int
    stop: int
    crops: range

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.stop - self.start


@dataclass(frozen=True)
class CropGrid:
    """Crops of one size on a grid, in pixels; their union is exactly the padded image.

    Attributes:
        image_hw: Height and width of the image.
        padded_hw: The same, after padding at the bottom and right.
        crop_hw: Height and width of every crop.
        tops: First row of each row of crops, ascending, unique.
        lefts: First column of each column of crops, ascending, unique.
        step: Sizes and starts are multiples of it.
        overlap: Pixels that neighbouring crops share, at least.
        halo: Pixels at the inner borders of each crop whose logits are thrown away; ``None`` where
            the logits of all crops are averaged.
    """

    image_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    step: int = 32
    overlap: int = DEFAULT_OVERLAP
    halo: int | None = None

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each crop, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def computed_pixels(self) -> int:
        """Pixels of all crops together."""
        return len(self) * self.crop_hw[0] * self.crop_hw[1]

    @property
    def row_spans(self) -> list[Span]:
        """Rows of the padded image by the rows of crops that decide them, from the top."""
        return self._spans(self.tops, 0)

    @property
    def column_spans(self) -> list[Span]:
        """Columns of the padded image by the columns of crops that decide them."""
        return self._spans(self.lefts, 1)

    def _spans(self, starts: tuple[int, ...], axis: int) -> list[Span]:
        size, crop = self.padded_hw[axis], self.crop_hw[axis]
        if self.halo is not None:
            shared = [after + crop - next_ for after, next_ in pairwise(starts)]
            # In the middle of what two crops share; on the grid, where their cells begin.
            middles = [
                start + pixels // 2 // self.step * self.step
                for start, pixels in zip(starts[1:], shared, strict=True)
            ]
            return [
                Span(start, stop, range(index, index + 1))
                for index, (start, stop) in enumerate(pairwise((0, *middles, size)))
            ]
        edges = sorted({*starts, *(start + crop for start in starts)})
        return [
            Span(start, stop, range(_first(starts, start - crop), _first(starts, start)))
            for start, stop in pairwise(tuple(edges))
        ]


def _first(starts: tuple[int, ...], place: int) -> int:
    """Index of the first start beyond ``place``."""
    return int(np.searchsorted(starts, place, side="right"))


def plan_crops(
    image_hw: tuple[int, int],
    tile_hw: tuple[int, int] | None,
    overlap: int = DEFAULT_OVERLAP,
    *,
    step: int = 32,
    min_hw: tuple[int, int] = (1, 1),
    halo: int | None = None,
) -> CropGrid:
    """Cover an image with crops whose sizes and starts are multiples of ``step``; all in pixels.

    The image is padded at the bottom and right to a multiple of ``step``. The last row and column
    of crops shift back inside instead of being cut short, so their overlap may be larger.

    Args:
        image_hw: Any height and width from 1.
        tile_hw: Wanted crop size; smaller images get one crop of their padded size. ``None``: one
            crop for the whole image.
        overlap: Pixels that neighbouring crops share, at least. Rounded up so that starts stay
            multiples of ``step``. With a halo, twice the halo instead.
        step: Output stride of the network.
        min_hw: Smallest crop that the backend takes; smaller images are padded to it.
        halo: Throw this border of each crop away instead of averaging; rounded up to ``step``.

    Raises:
        UsageError: An empty image; a tile that is not a multiple of ``step``; an overlap or halo
            that is negative or leaves no stride.
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
    if halo is not None:
        halo = -(-halo // step) * step
        overlap = 2 * halo
    # Along a side that one crop covers, nothing overlaps.
    several = [side for side, size in zip(tile, padded, strict=True) if side < size]
    if overlap < 0 or (several and overlap > min(several) - step):
        raise _does_not_go(tile, overlap, halo, step)
    crop = (min(tile[0], padded[0]), min(tile[1], padded[1]))
    tops, lefts = (
        _starts(size, edge, (wanted - overlap) // step * step)
        for size, edge, wanted in zip(padded, crop, tile, strict=True)
    )
    return CropGrid(image_hw, padded, crop, tops, lefts, step, overlap, halo)


def _does_not_go(tile: tuple[int, int], overlap: int, halo: int | None, step: int) -> UsageError:
    size = f"{tile[0]}x{tile[1]}"
    if halo is None or halo < 0:
        name = "An overlap" if halo is None else "A halo"
        return UsageError(
            f"{name} of {overlap if halo is None else halo} does not go with a tile of {size}.",
            f"It must lie between 0 and {(min(tile) - step) // (1 if halo is None else 2)}.",
        )
    least = overlap + step
    return UsageError(
        f"A halo of {halo} on each side leaves nothing of a tile of {size}.",
        f"Pass a --tile of at least {least}x{least}, or a smaller --halo.",
    )


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


def row_blocks(grid: CropGrid) -> list[tuple[int, int]]:
    """First and last row (exclusive) of what must be read, block by block, for a row of crops."""
    stops = [min(top + grid.crop_hw[0], grid.image_hw[0]) for top in grid.tops]
    return list(zip([0, *stops], stops, strict=False))


def cut_crops(
    blocks: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], grid: CropGrid
) -> Iterator[NDArray[np.uint8]]:
    """Yield the crops (h, w, 3) of an image, row by row.

    Beyond the bottom and right edge the image is mirrored, which keeps textures going: a constant
    would draw an edge that the network sees. Crops inside the image are views, not copies.

    Args:
        blocks: The image RGB uint8 (H, W, 3); or the blocks (rows, W, 3) of it that
            :func:`row_blocks` lists, so that no more than two rows of crops are ever in memory.
        grid: The plan.
    """
    height, width = grid.image_hw
    crop_h, crop_w = grid.crop_hw
    whole = isinstance(blocks, np.ndarray)
    band = np.asarray(blocks) if whole else np.empty((0, width, 3), np.uint8)
    rest = iter(()) if whole else iter(blocks)
    first = 0
    for top in grid.tops:
        if not whole:
            # The rows that the bottom is padded with lie above its last row of crops, maybe.
            keep = min(top, 2 * height - grid.padded_hw[0]) if top else 0
            band = _append(band[max(keep, 0) - first :], next(rest))
            first = max(keep, 0)
        bottom = min(top + crop_h, height)
        for left in grid.lefts:
            part = band[top - first : bottom - first, left : left + crop_w]
            if part.shape[:2] == grid.crop_hw:
                yield part
                continue
            rows = _mirror(np.arange(top, top + crop_h), height) - first
            columns = _mirror(np.arange(left, left + crop_w), width)
            yield band[rows[:, None], columns[None, :]]


def _append(kept: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([kept, new]) if len(kept) else new


def _mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold indices from 0 up into [0, size), the edge pixel counting twice."""
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)
