"""What rungs are compared on: crops of several shapes and batch sizes, real and random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.errors import DataError, InputError, UsageError
from fcn_deploy.image import read_image

Pixels = NDArray[np.uint8]

CELLS = ((1, 1), (2, 3), (5, 7), (8, 11), (7, 5), (10, 15))
"""Heights and widths of the usual shapes, in steps of 32 pixels: 32x32 to 320x480."""

BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Batch:
    """Crops of one shape.

    Attributes:
        crops: uint8 (N, H, W, 3).
        source: ``real``: cut out of images; ``random``: textures, noise and plain surfaces.
    """

    crops: Pixels
    source: str


def usual_shapes(step: int) -> tuple[tuple[int, int], ...]:
    """Shapes to compare on, for a network whose heights and widths are multiples of ``step``."""
    unit = -(-32 // step) * step
    return tuple((rows * unit, columns * unit) for rows, columns in CELLS)


def require_shapes(shapes: Sequence[tuple[int, int]], batches: Sequence[int], step: int) -> None:
    """Refuse what no network of this output stride takes.

    Raises:
        UsageError: Names it.
    """
    for height, width in shapes:
        if height < 1 or width < 1 or height % step or width % step:
            raise UsageError(
                f"{height}x{width} is no shape for this model: heights and widths are multiples "
                f"of {step} pixels.",
                f"For example: --shapes {4 * step}x{6 * step},{8 * step}x{8 * step}",
            )
    if any(batch < 1 for batch in batches):
        raise UsageError("--batches takes numbers from 1, such as 1,2,4.")


def batches_of(
    images: Sequence[Path],
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    *,
    rounds: int = 1,
    seed: int = 0,
) -> Iterator[Batch]:
    """A batch of real crops and one of random ones for each shape and batch size.

    Args:
        images: Where real crops are cut out of, in turn; none for random ones alone.
        shapes: Heights and widths, in pixels.
        batches: Crops at once.
        rounds: How often, with other crops each time; random ones in the first round alone.
        seed: Of the places of crops and of what is random.

    Yields:
        uint8 (N, H, W, 3).

    Raises:
        DataError: An image cannot be read.
    """
    random = np.random.default_rng(seed)
    turn = cycle(images)
    for turns in range(rounds):
        for height, width in shapes:
            for count in batches:
                if images:
                    pictures = [read_or_refuse(path) for path in islice(turn, count)]
                    crops = [cut_crop(image, (height, width), random) for image in pictures]
                    yield Batch(np.stack(crops), "real")
                if turns == 0:
                    yield Batch(_random(count, (height, width), random), "random")


def calibration_crops(images: Sequence[Path], step: int, *, most: int = 32) -> list[Pixels]:
    """One crop of each of some images, spread over all, for ranges of activations.

    Args:
        images: Image files.
        step: Heights and widths are multiples of it, 512 pixels at most.
        most: Crops.

    Returns:
        uint8 (1, H, W, 3) each.

    Raises:
        DataError: An image cannot be read.
    """
    random = np.random.default_rng(0)
    count = min(most, len(images))
    crops = []
    for number in range(count):
        image = read_or_refuse(images[number * len(images) // count])
        height, width = (
            min(-(-size // step), max(1, 512 // step)) * step for size in image.shape[:2]
        )
        crops.append(cut_crop(image, (height, width), random)[None])
    return crops


def read_or_refuse(path: Path) -> Pixels:
    """An image that has to be read.

    Raises:
        DataError: It cannot be.
    """
    try:
        return read_image(path)
    except InputError as error:  # one of many elsewhere, but here all must be read
        raise DataError(error.problem, "Verify on other images: --images FOLDER") from error


def cut_crop(image: Pixels, hw: tuple[int, int], random: np.random.Generator) -> Pixels:
    """A crop anywhere in an image, which is repeated where it is too small."""
    height, width = (max(0, wanted - there) for wanted, there in zip(hw, image.shape, strict=False))
    if height or width:
        image = np.pad(image, ((0, height), (0, width), (0, 0)), mode="symmetric")
    top, left = (
        int(random.integers(0, size - wanted + 1))
        for size, wanted in zip(image.shape[:2], hw, strict=True)
    )
    return image[top : top + hw[0], left : left + hw[1]]


def _random(count: int, hw: tuple[int, int], random: np.random.Generator) -> Pixels:
    """Textures, and for some crops what no photo shows: noise, black and white."""
    crops = np.empty((count, *hw, 3), np.uint8)
    for crop in crops:
        kind = random.integers(0, 4)
        if kind == 0:
            crop[:] = random.integers(0, 256, crop.shape, np.uint8)
        elif kind == 1:
            crop[: hw[0] // 2], crop[hw[0] // 2 :] = 0, 255
        else:
            crop[:] = _texture(hw, random)
    return crops


def _texture(hw: tuple[int, int], random: np.random.Generator) -> Pixels:
    """Cloudy colours, coarse to fine, each octave weaker than the last."""
    texture = np.zeros((*hw, 3), np.float32)
    for cells in (3, 9, 40, 150):
        noise = random.integers(0, 256, (cells, cells, 3), np.uint8)
        octave = Image.fromarray(noise).resize((hw[1], hw[0]), Image.Resampling.BICUBIC)
        texture += np.asarray(octave, np.float32) * (1.5 / cells**0.5)
    low, high = texture.min(), texture.max()
    return np.asarray((texture - low) * (255 / max(high - low, 1)), np.uint8)
