"""Which crop computes the least within a given memory: NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcn_deploy.errors import UsageError
from fcn_deploy.tiling import CropGrid, plan_crops

DEFAULT_MAX_MEMORY_MIB = 512

CROPS_AT_ONCE = 2
"""On CPUs half of the cores for each is faster than all of them for one."""

LEAST_SIDE = 256
"""A smaller crop shows a network too little of what is around a pixel."""

_ROW_BYTES = 2 * 3 + 1
"""By pixel of a row of crops: one in work, the next one being read, and the labels of one."""

_RENDERING_BYTES = 48 << 20
"""Windows in work, labels of a band and the writer's own: measured 30 to 60 MiB."""

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
        pixels = grid.crop_hw[0] * grid.crop_hw[1]
        return int(_bytes(self, np.int64(pixels), grid.crop_hw[0], grid.padded_hw, len(grid)))


def _bytes(
    footprint: Footprint, pixels: np.int64, height: int, padded_hw: tuple[int, int], crops: int
) -> float:
    computed = footprint.bytes_per_pixel * int(pixels) * min(footprint.workers, crops)
    return float(computed + _ROW_BYTES * height * padded_hw[1] + _RENDERING_BYTES)


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
    pixels = np.multiply.outer(sides[0], sides[1])
    crops = np.multiply.outer(counts[0], counts[1])
    computed = footprint.bytes_per_pixel * pixels * np.minimum(footprint.workers, crops)
    rows = sides[0].astype(np.float64)[:, None] * whole.padded_hw[1]
    needed = computed + _ROW_BYTES * rows + _RENDERING_BYTES
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
