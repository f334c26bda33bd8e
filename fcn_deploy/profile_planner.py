"""Shapes, tile and batch for a folder of images: what an engine should be built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import LEAST_SIDE
from fcn_deploy.errors import UsageError
from fcn_deploy.image_headers import read_sizes
from fcn_deploy.recipe import Shapes
from fcn_deploy.tiling import DEFAULT_OVERLAP, plan_crops

DEFAULT_BUDGET_MIB = 1024
"""For activations: an eighth of the memory of small GPUs, which the system may share."""

_PIXELS_AT_ONCE = 1 << 20
"""A call should have about as many, so that all of a GPU has work in the small last layers."""

_SPREAD = 1.1
"""Images are of one size if padding all of them to the largest computes no more than this."""

_MOST_SIDES = 512
"""Sizes tried along one side; more would only serve images of millions of pixels a side."""


@dataclass(frozen=True)
class Proposal:
    """What to build an engine for.

    Attributes:
        shapes: Of its optimization profile.
        tile_hw: Height and width of the crops of images that are larger, in pixels.
        overlap: Pixels that neighbouring crops share, at least.
        images: How many were looked at.
        crops: Of all of them together; as many as images where each fits as a whole.
        computed_ratio: Pixels that are computed, by pixel of the images.
        activation_mib: Most memory for activations, at ``shapes.max_batch`` of the largest crop.
        unreadable: Files that are no images, or damaged.
    """

    shapes: Shapes
    tile_hw: tuple[int, int]
    overlap: int
    images: int
    crops: int
    computed_ratio: float
    activation_mib: float
    unreadable: int = 0

    def lines(self) -> list[str]:
        """The same for a person, in a few lines."""
        low, best, high = (
            f"{h}x{w}" for h, w in (self.shapes.min_hw, self.shapes.opt_hw, self.shapes.max_hw)
        )
        unreadable = f"; {self.unreadable} more cannot be read" if self.unreadable else ""
        whole = self.crops == self.images
        crops = (
            "each fits as a whole"
            if whole
            else f"{self.crops:,} crops of {high} at most, overlap {self.overlap}"
        )
        return [
            f"{self.images:,} images: {crops}, {self.computed_ratio:.2f} times their "
            f"pixels{unreadable}",
            f"Shapes {low} to {high}, fastest at {best}, {self.shapes.max_batch} at once: about "
            f"{self.activation_mib:.0f} MiB of activations",
        ]


def plan_for_folder(
    source: Path, folder: Path, *, fp16: bool, budget_mib: int = DEFAULT_BUDGET_MIB
) -> Proposal:
    """Propose shapes of an engine for the images of a folder.

    Args:
        source: The ONNX file that the engine is built from.
        folder: Images, searched recursively; only their headers are read.
        fp16: Whether it is built in FP16.
        budget_mib: Most memory for activations.

    Raises:
        ModelError: The file is not usable.
        DataError: There is no image that can be read.
        UsageError: The memory is too little.
    """
    from fcn_deploy.onnx_file import read_onnx, to_half
    from fcn_deploy.onnx_footprint import ENGINE_FIXED_BYTES, engine_bytes_per_pixel

    model = read_onnx(source)
    proto = to_half(model.proto) if fp16 and model.precision == "fp32" else model.proto
    # What is for whole images makes labels; what is for crops ends at scores, and takes less.
    ends = ("labels",) if "labels" in model.outputs else None
    sizes, unreadable = read_sizes(folder)
    tile, bytes_per_pixel = (512, 512), 0.0
    while (needed := engine_bytes_per_pixel(proto, tile, ends)) > bytes_per_pixel:
        # By pixel, small crops need more: their upsampling reaches beyond them.
        bytes_per_pixel = needed
        proposal = plan_profile(
            sizes,
            bytes_per_pixel,
            step=model.spec.output_stride,
            budget_mib=budget_mib,
            fixed_bytes=ENGINE_FIXED_BYTES,
        )
        tile = proposal.shapes.max_hw
    return replace(proposal, unreadable=unreadable)


def plan_profile(
    sizes_hw: Sequence[tuple[int, int]],
    bytes_per_pixel: float,
    *,
    step: int = 32,
    overlap: int = DEFAULT_OVERLAP,
    budget_mib: int = DEFAULT_BUDGET_MIB,
    fixed_bytes: int = 0,
    min_hw: tuple[int, int] = (1, 1),
) -> Proposal:
    """Propose shapes for images of these sizes.

    Images of nearly one size are taken whole, by an engine for that size alone. Else all crops of
    all images together compute as little as they can within the memory.

    Args:
        sizes_hw: Height and width of each image in pixels.
        bytes_per_pixel: Activations, by pixel of all crops of a call.
        step: Output stride of the network.
        overlap: Pixels that neighbouring crops are to share, at least.
        budget_mib: Most memory for activations.
        fixed_bytes: What is needed beside ``bytes_per_pixel``.
        min_hw: Smallest crop that is wanted; smaller images are padded to it.

    Raises:
        UsageError: No sizes, or the memory is too little for any crop.
    """
    if not sizes_hw:
        raise UsageError("There are no images to choose shapes for.")
    padded = np.array(
        [plan_crops(hw, None, 0, step=step, min_hw=min_hw).padded_hw for hw in sizes_hw]
    )
    kinds, counts = np.unique(padded, axis=0, return_counts=True)
    pixels = int(max(budget_mib * 2**20 - fixed_bytes, 0) / bytes_per_pixel)
    largest = kinds.max(0)
    spread = largest.prod() * counts.sum() / (kinds.prod(1) * counts).sum()
    if spread <= _SPREAD and largest.prod() <= pixels:
        tile = best = least = _hw(largest)
    else:
        tile = _best_tile(kinds, counts, pixels, step=step, overlap=overlap)
        least = _hw(np.minimum(kinds, tile).min(0))
        whole = (largest <= tile).all()
        # Of whole images the size that most of the work is spent on; crops are of one size.
        best = _hw(kinds[(kinds.prod(1) * counts).argmax()]) if whole else tile
    area = tile[0] * tile[1]
    batch = max(min(-(-_PIXELS_AT_ONCE // area), pixels // area), 1)
    overlap = min(overlap, min(tile) // 2)  # as segment does
    grids = [plan_crops(_hw(kind), tile, overlap, step=step, min_hw=least) for kind in kinds]
    computed = sum(int(n) * grid.computed_pixels for n, grid in zip(counts, grids, strict=True))
    return Proposal(
        shapes=Shapes(least, best, tile, batch),
        tile_hw=tile,
        overlap=overlap,
        images=len(sizes_hw),
        crops=sum(int(n) * len(grid) for n, grid in zip(counts, grids, strict=True)),
        computed_ratio=computed / sum(h * w for h, w in sizes_hw),
        activation_mib=(bytes_per_pixel * batch * area + fixed_bytes) / 2**20,
    )


def _best_tile(
    kinds: NDArray[np.int64], counts: NDArray[np.int64], pixels: int, *, step: int, overlap: int
) -> tuple[int, int]:
    """The crop of at most ``pixels`` by which all images together compute the least.

    Args:
        kinds: Sizes (K, 2) of padded images.
        counts: How many there are of each, (K,).
        pixels: Bound on its area.
        step: Output stride.
        overlap: Pixels that neighbours share.
    """
    sides = [_sides(int(most), step, overlap) for most in kinds.max(0)]
    rows, columns = (_computed(kinds[:, axis], sides[axis], step, overlap) for axis in (0, 1))
    total = (rows * counts[:, None]).T @ columns
    area = np.multiply.outer(*sides)
    if area.min() > pixels:
        h, w = int(sides[0][0]), int(sides[1][0])
        raise UsageError(
            f"The memory is too little: it holds {pixels:,} pixels, and the smallest crop is "
            f"{h}x{w}.",
            "Name the shapes: --min-shape, --opt-shape, --max-shape, --max-batch.",
        )
    # Of equal sums the squarer crop sees more around its pixels.
    squareness = np.abs(np.subtract.outer(*sides)) * 1e-6
    best = np.where(area <= pixels, total + squareness, np.inf).argmin()
    row, column = np.unravel_index(best, area.shape)
    return int(sides[0][row]), int(sides[1][column])


def _sides(most: int, step: int, overlap: int) -> NDArray[np.int64]:
    """Sizes of a crop along one side to choose from, ascending."""
    least = max(LEAST_SIDE, 2 * overlap, overlap + step)
    least = min(-(-least // step) * step, most)
    return np.arange(least, min(most, least + _MOST_SIDES * step) + 1, step)


def _computed(
    sizes: NDArray[np.int64], sides: NDArray[np.int64], step: int, overlap: int
) -> NDArray[np.float64]:
    """Pixels that crops compute along one side: (images, sides of a crop)."""
    size, side = sizes[:, None], sides[None, :]
    stride = np.maximum((side - overlap) // step * step, step)
    crops = -(-(size - side) // stride) + 1
    return np.where(side >= size, size, side * crops).astype(np.float64)


def _hw(pair: NDArray[np.int64]) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])
