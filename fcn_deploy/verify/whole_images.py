"""Whole images through the real pipeline: the reference's labels and those of each rung."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.dataset import Dataset, Pair, read_pair
from fcn_deploy.errors import CheckFailedError, DataError, InputError
from fcn_deploy.image import read_image
from fcn_deploy.items import Item
from fcn_deploy.metrics import confusion_matrix, scores
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling import CropGrid
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.verify.result import ImageFigures

Labels = NDArray[np.uint8]
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Images:
    """Images to compare on.

    Attributes:
        items: Image files with names, or labelled pairs.
        dataset: Of the pairs.
        root: Where they are from, for people.
        split: Part of the data set.
    """

    items: tuple[Item | Pair, ...] = ()
    dataset: Dataset | None = None
    root: str = ""
    split: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    def read(self) -> Iterator[tuple[str, Labels, Labels | None]]:
        """Name, image (H, W, 3) and truth (H, W) of each.

        Raises:
            DataError: One cannot be read.
        """
        for item in self.items:
            try:
                if isinstance(item, Pair):
                    assert self.dataset is not None
                    image, truth = read_pair(self.dataset, item)
                    yield item.name, image, truth
                else:
                    yield item.name, read_image(item.source), None
            except InputError as error:
                raise DataError(error.problem, "Verify on other images.") from error

    def files(self) -> list[Path]:
        """Their image files."""
        return [item.image if isinstance(item, Pair) else item.source for item in self.items]

    def as_dict(self) -> dict[str, object]:
        """The same, for JSON."""
        return {
            "images": len(self),
            "labelled": self.dataset is not None,
            "root": self.root,
            "split": self.split,
        }


def spread(items: Sequence[Entry], most: int) -> tuple[Entry, ...]:
    """So many of them, evenly: neighbours in a video look alike."""
    count = min(most, len(items))
    return tuple(items[number * len(items) // count] for number in range(count))


@dataclass
class Count:
    """What is added up over images, for one rung."""

    classes: tuple[str, ...]
    pixels: int = 0
    equal: int = 0
    worst: tuple[float, str] = (np.inf, "")
    confusion: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def add(self, name: str, wanted: Labels, got: Labels, truth: Labels | None) -> float:
        """Take one image; returns the share of pixels with the same label."""
        equal = int((wanted == got).sum())
        agreement = equal / wanted.size
        self.pixels, self.equal = self.pixels + wanted.size, self.equal + equal
        self.worst = min(self.worst, (agreement, name))
        if truth is not None:
            number = len(self.classes)
            found = confusion_matrix(truth, wanted, number), confusion_matrix(truth, got, number)
            before = self.confusion
            self.confusion = (
                found if before is None else (before[0] + found[0], before[1] + found[1])
            )
        return agreement

    def figures(self, images: int) -> ImageFigures:
        """All of it."""
        share = self.equal / self.pixels if self.pixels else 0.0
        plain = ImageFigures(images, self.pixels, share, self.worst[1], self.worst[0])
        if self.confusion is None:
            return plain
        wanted, got = (scores(matrix) for matrix in self.confusion)
        change = None
        if wanted.mean_iou is not None and got.mean_iou is not None:
            change = got.mean_iou - wanted.mean_iou
        return ImageFigures(
            **vars(plain)
            | {
                "mean_iou": got.mean_iou,
                "mean_iou_change": change,
                "pixel_accuracy": got.pixel_accuracy,
                "class_iou_change": {
                    name: None if before is None or after is None else after - before
                    for name, before, after in zip(
                        self.classes, wanted.class_iou, got.class_iou, strict=True
                    )
                },
            }
        )


def predictions(
    reference: Segmenter, rungs: Sequence[Segmenter], image: Labels, tiling: Tiling
) -> Iterator[tuple[CropGrid, Labels, Labels] | CheckFailedError]:
    """For each rung its crops, the reference's labels by the same crops, and its own.

    Engines take other crops than the rest. The reference then takes the same, so that a difference
    is not one of tiling. An error takes the place of a result that is not finite.
    """
    hw = (image.shape[0], image.shape[1])
    known: dict[CropGrid, Labels] = {}
    for rung in rungs:
        grid = rung.plan(hw, tiling)
        if grid not in known:
            known[grid] = segment_by(reference, image, grid)
        try:
            yield grid, known[grid], segment_by(rung, image, grid)
        except CheckFailedError as error:
            yield error


def segment_by(model: Segmenter, image: Labels, grid: CropGrid) -> Labels:
    """Labels (H, W) of an image cut into these crops."""
    labels = np.empty(grid.image_hw, np.uint8)
    for band in model.bands(image, grid):
        labels[band.top : band.top + band.rows] = band.fields.labels
    return labels
