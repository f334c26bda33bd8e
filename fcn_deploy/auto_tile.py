"""Which crop computes the least within a given memory: NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import UsageError
from fcn_deploy.tiling import CropGrid, plan_crops

DEFAULT_MAX_MEMORY_MIB = 512

CROPS_AT_ONCE = 2
"""On CPUs half of the cores for each is faster than all of them for one."""

LEAST_SIDE = 256
"""A smaller crop shows a network too little of what is around a pixel."""

_ROW_BYTES = 5 * 3 + 1
"""By pixel of a row of crops, where there are several. Of RGB five times as many: the row that was
in work, of which the next one is being made; the rows that are new in that; both together; and the
two that are read ahead (:func:`~fcn_deploy.tiling.cut_crops`, :mod:`fcn_deploy.read_ahead`). Once
of labels. Measured 11 to 16, the more the smaller the crops."""

_ALONE_BYTES = 2 * 3 + 1
"""The same where one row of crops is all: the image, what it was made of, and labels."""

_TILE_ROWS = 512
"""A file's tiles are decoded row by row, the next one while the last one is held; this is the
largest height of a tile that is common."""

_FIXED_BYTES = 72 << 20
"""Windows in work, labels of a band and the writer's own, measured 30 to 60 MiB; and 20 MiB of what
Pillow decodes at once."""

_MOST_SIDES = 512
"""Sizes tried along one side; more would only serve images of millions of pixels a side."""


@dataclass(frozen=True)
class Footprint:
    """Memory that a backend needs for crops.

    Attributes:
        bytes_per_pixel: Of one crop, while it is computed.
        workers: Crops that are computed at the same time, where there are several.
    """

    bytes_per_pixel: float
    workers: int = 1

    def of(self, grid: CropGrid) -> int:
        """Bytes beyond the loaded model to segment an image by this plan, read row by row."""
        sides, counts = grid.crop_hw, (len(grid.tops), len(grid.lefts))
        height, width, rows, columns = (np.array([size]) for size in (*sides, *counts))
        return int(_needed(self, (height, width), (rows, columns), grid.padded_hw)[0, 0])


def _needed(
    footprint: Footprint,
    sides: tuple[NDArray[np.int64], NDArray[np.int64]],
    counts: tuple[NDArray[np.int64], NDArray[np.int64]],
    padded_hw: tuple[int, int],
) -> NDArray[np.float64]:
    """Bytes for every height of a crop (rows of the result) and every width (columns).

    Args:
        footprint: What a crop costs.
        sides: Heights, and widths, in pixels.
        counts: How many crops there are of each, one below the other and side by side.
        padded_hw: Of the image.
    """
    at_once = np.minimum(footprint.workers, np.multiply.outer(*counts))
    computed = footprint.bytes_per_pixel * np.multiply.outer(*sides) * at_once
    decoded = 2 * 3 * min(_TILE_ROWS, padded_hw[0])
    several = _ROW_BYTES * sides[0] + decoded
    rows = np.where(counts[0] > 1, several, _ALONE_BYTES * sides[0]) * float(padded_hw[1])
    return computed + rows[:, None] + _FIXED_BYTES


def choose_grid(
    image_hw: tuple[int, int],
    footprint: Footprint,
    *,
    max_memory_mib: int = DEFAULT_MAX_MEMORY_MIB,
    overlap: int,
    halo: int | None = None,
    step: int = 32,
    min_hw: tuple[int, int] = (1, 1),
    max_hw: tuple[int, int] | None = None,
) -> CropGrid:
    """The whole image where it fits, or else the crops of least computed area that do.

    Args:
        image_hw: Height and width, in pixels.
        footprint: What a crop costs.
        max_memory_mib: Bound on :meth:`Footprint.of`; the loaded model is not counted.
        overlap: As in :func:`~fcn_deploy.tiling.plan_crops`.
        halo: The same.
        step: The same.
        min_hw: Smallest crop that the backend takes.
        max_hw: Largest crop that it takes.

    Raises:
        UsageError: Not even small crops fit.
    """
    whole = plan_crops(image_hw, None, overlap, step=step, min_hw=min_hw, halo=halo)
    budget = max_memory_mib * 2**20
    taken = max_hw is None or all(a <= b for a, b in zip(whole.crop_hw, max_hw, strict=True))
    if taken and footprint.of(whole) <= budget:
        return whole
    shared = overlap if halo is None else 2 * (-(-halo // step) * step)
    sides, counts = [], []
    for axis in (0, 1):
        size = whole.padded_hw[axis]
        most = min(size, size if max_hw is None else max_hw[axis] // step * step)
        least = max(LEAST_SIDE, min_hw[axis], shared + step)
        least = min(-(-least // step) * step, most)
        side = np.arange(least, min(most, least + _MOST_SIDES * step) + 1, step)
        stride = np.maximum((side - shared) // step * step, step)
        sides.append(side)
        counts.append(np.where(side >= size, 1, -(-(size - side) // stride) + 1))
    area = np.multiply.outer(sides[0] * counts[0], sides[1] * counts[1]).astype(np.float64)
    needed = _needed(footprint, (sides[0], sides[1]), (counts[0], counts[1]), whole.padded_hw)
    if needed.min() > budget:
        h, w = int(sides[0][0]), int(sides[1][0])
        raise UsageError(
            f"{max_memory_mib} MiB are too little: crops of {h}x{w} of an image "
            f"{image_hw[0]}x{image_hw[1]} need {int(needed.min() / 2**20) + 1} MiB.",
            "Raise --max-memory, or name the --tile.",
        )
    # Of equal areas the squarer crop sees more around its pixels.
    squareness = np.abs(np.subtract.outer(sides[0], sides[1])) * 1e-6
    best = np.where(needed <= budget, area + squareness, np.inf).argmin()
    row, column = np.unravel_index(best, area.shape)
    tile = (int(sides[0][row]), int(sides[1][column]))
    return plan_crops(image_hw, tile, overlap, step=step, min_hw=min_hw, halo=halo)
