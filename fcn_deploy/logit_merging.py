"""Crops of logits to decided pixels, pixel by pixel: NumPy only, no files, no vendor.

The plain form of :mod:`fcn_deploy.merging`, for models whose last layer is no transposed
convolution of the usual kind. It holds the strips that neighbouring crops share, and one crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from fcn_deploy.merging import Band, Blend, blend_window
from fcn_deploy.tiling import CropGrid
from fcn_deploy.upsample import FloatArray, Wanted, fields_of


def merge_logits(
    grid: CropGrid, logits: Iterable[FloatArray], *, blend: Blend = "mean"
) -> Iterator[tuple[int, int, FloatArray]]:
    """Merge logits pixel by pixel; holds what neighbouring crops share, and one crop.

    Args:
        grid: The plan that the crops were cut by.
        logits: One float32 (C, h, w) per crop, in the order of the plan; overwritten.
        blend: Weights of the pixels of a crop in the average.

    Yields:
        Top, left, and the final logits (C, rows, columns) of a block of the padded image. Blocks
        come row by row without gaps; together they are the padded image.
    """
    crops = iter(logits)
    if grid.halo is not None:
        for span in grid.row_spans:
            for column in grid.column_spans:
                top, left = grid.tops[span.crops.start], grid.lefts[column.crops.start]
                rows = slice(span.start - top, span.stop - top)
                yield (
                    span.start,
                    column.start,
                    next(crops)[:, rows, column.start - left : column.stop - left],
                )
        return
    (crop_h, crop_w), width = grid.crop_hw, grid.padded_hw[1]
    windows = [blend_window(blend, size) for size in grid.crop_hw]
    sums = [
        _sum_of_windows(window, starts, size)
        for window, starts, size in zip(
            windows, (grid.tops, grid.lefts), grid.padded_hw, strict=True
        )
    ]
    window = None if blend == "mean" else windows[0][:, None] * windows[1]
    below: FloatArray | None = None  # what rows of crops so far say of rows that are not done
    shared = 0
    for top, next_top in zip(grid.tops, (*grid.tops[1:], grid.tops[-1] + crop_h), strict=True):
        right, seen = None, 0  # what crops so far say of columns that are not done
        for left, next_left in zip(
            grid.lefts, (*grid.lefts[1:], grid.lefts[-1] + crop_w), strict=True
        ):
            crop = next(crops)
            if window is not None:
                crop = crop * window
            if below is None:
                below = np.zeros((crop.shape[0], _most_shared(grid), width), np.float32)
            if right is not None:
                crop[:, :, : seen - left] += right
            new = max(seen - left, 0)
            crop[:, :shared, new:] += below[:, :shared, left + new : left + crop_w]
            done = (slice(None), slice(0, next_top - top), slice(0, next_left - left))
            weight = sums[0][top:next_top, None] * sums[1][left:next_left]
            yield top, left, crop[done] / weight
            below[:, : top + crop_h - next_top, left:next_left] = crop[
                :, next_top - top :, : next_left - left
            ]
            right, seen = crop[:, :, next_left - left :], left + crop_w
        shared = top + crop_h - next_top


def _most_shared(grid: CropGrid) -> int:
    return max(
        [grid.crop_hw[0] - (b - a) for a, b in pairwise(grid.tops)],
        default=0,
    )


def _sum_of_windows(window: FloatArray, starts: tuple[int, ...], size: int) -> FloatArray:
    """Weight of all crops together along one side of the padded image: the whole is a product."""
    total = np.zeros(size, np.float32)
    for start in starts:
        total[start : start + len(window)] += window
    return total


def decide_logits(
    grid: CropGrid,
    blocks: Iterable[tuple[int, int, FloatArray]],
    wanted: Wanted,
) -> Iterator[Band]:
    """Decide what :func:`merge_logits` yields: bands from the top without gaps."""
    band, start = None, 0
    for top, left, block in blocks:
        if left == 0:
            start = top
            band = wanted.empty((block.shape[1], grid.padded_hw[1]), block.shape[0])
        assert band is not None
        decided = fields_of(block, wanted)
        for part, whole in zip(decided.arrays(), band.arrays(), strict=True):
            whole[..., left : left + block.shape[2]] = part
        if left + block.shape[2] == grid.padded_hw[1] and start < grid.image_hw[0]:
            yield Band.inside(start, band, grid.image_hw)
