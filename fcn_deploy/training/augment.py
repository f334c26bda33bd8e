"""Random variants of a labelled image: scale, crop, flip and colour, alike for image and mask.

The operations are those of torchvision.transforms.v2; what is drawn comes from a generator that is
passed in, so that an example follows from seed, epoch and index alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from fcn_deploy.spec import IGNORE, IMAGENET_MEAN

PADDING = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""Beyond the image: what normalisation turns into nearly zero."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each example; the fields are those of TrainConfig.

    Attributes:
        crop_hw: Height and width of what comes out, in pixels.
        scale: Least and greatest enlargement.
        stretch: Greatest ratio of the enlargements of the two sides.
        color: Greatest relative change of brightness, contrast and saturation.
        flip: Mirror every other example.
    """

    crop_hw: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 1.0
    color: float = 0.0
    flip: bool = True

    def __call__(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """One variant.

        Args:
            image: RGB uint8 (H, W, 3), any size.
            labels: uint8 (H, W).
            random: Where the draws come from.

        Returns:
            Image uint8 (h, w, 3) and labels uint8 (h, w), with (h, w) the crop; the caller owns
            them. Pixels beyond the image are labelled 255.
        """
        zoom = math.exp(random.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        tilt = math.sqrt(math.exp(random.uniform(-1, 1) * math.log(self.stretch)))
        rows = _Cut.draw(image.shape[0], self.crop_hw[0], zoom * tilt, random)
        columns = _Cut.draw(image.shape[1], self.crop_hw[1], zoom / tilt, random)
        window = (rows.source, columns.source)
        inner = (rows.length, columns.length)
        pixels = torch.from_numpy(image[window].copy()).permute(2, 0, 1)
        marks = torch.from_numpy(labels[window].copy())[None]
        if pixels.shape[1:] != inner:
            pixels = F.resize(pixels, list(inner), InterpolationMode.BILINEAR, antialias=True)
            marks = F.resize(marks, list(inner), InterpolationMode.NEAREST_EXACT)
        if self.flip and random.random() < 0.5:
            pixels, marks = F.horizontal_flip(pixels), F.horizontal_flip(marks)
        pixels = self._tint(pixels, random)
        if inner == self.crop_hw:
            return pixels.permute(1, 2, 0).contiguous(), marks[0].contiguous()
        return _framed(pixels, marks, self.crop_hw, (rows.target, columns.target))

    def _tint(self, pixels: Tensor, random: np.random.Generator) -> Tensor:
        if not self.color:
            return pixels
        changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        for position in random.permutation(len(changes)):
            factor = 1 + float(random.uniform(-self.color, self.color))
            pixels = changes[position](pixels, factor)
        return pixels


@dataclass(frozen=True)
class _Cut:
    """One axis: which part of the image goes where in the crop."""

    source: slice
    target: int
    length: int

    @classmethod
    def draw(cls, size: int, crop: int, zoom: float, random: np.random.Generator) -> _Cut:
        window = max(1, round(crop / zoom))
        if window <= size:
            start = int(random.integers(0, size - window + 1))
            return cls(slice(start, start + window), 0, crop)
        length = min(crop, max(1, round(size * zoom)))
        return cls(slice(0, size), int(random.integers(0, crop - length + 1)), length)


def _framed(
    pixels: Tensor, marks: Tensor, crop_hw: tuple[int, int], start: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    image = torch.tensor(PADDING, dtype=torch.uint8).expand(*crop_hw, 3).contiguous()
    labels = torch.full(crop_hw, IGNORE, dtype=torch.uint8)
    window = tuple(slice(a, a + n) for a, n in zip(start, marks.shape[1:], strict=True))
    image[window] = pixels.permute(1, 2, 0)
    labels[window] = marks[0]
    return image, labels
