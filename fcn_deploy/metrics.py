"""Pixel accuracy and intersection over union, from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.spec import IGNORE


def confusion_matrix(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by true class (row) and predicted class (column).

    Args:
        truth: Labels of any shape; pixels with :data:`~fcn_deploy.spec.IGNORE` do not count.
        prediction: Labels of the same shape, each below ``num_classes``.
        num_classes: C, at most 255.

    Returns:
        (C, C) int64; the caller owns it.

    Raises:
        ValueError: The shapes differ, or a label that counts is not below ``num_classes``.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    counted = truth != IGNORE
    rows, columns = truth[counted], prediction[counted]
    if rows.size and max(int(rows.max()), int(columns.max())) >= num_classes:
        raise ValueError(f"a label is not below {num_classes}")
    cells = np.bincount(rows.astype(np.int64) * num_classes + columns, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; ``None`` where nothing was there to judge.

    Attributes:
        pixel_accuracy: Correct pixels over counted pixels, in [0, 1].
        mean_iou: Mean over the classes that occur in truth or prediction, in [0, 1].
        class_iou: Intersection over union per class; ``None`` for a class that never occurs.
        pixels: Counted pixels.
    """

    pixel_accuracy: float | None
    mean_iou: float | None
    class_iou: tuple[float | None, ...]
    pixels: int

    def as_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The same, for JSON, with classes by name."""
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "mean_iou": self.mean_iou,
            "class_iou": dict(zip(classes, self.class_iou, strict=True)),
            "pixels": self.pixels,
        }


def scores(matrix: NDArray[np.int64]) -> Scores:
    """Accuracy and IoU of a (C, C) confusion matrix, rows being the truth.

    Source: pixel accuracy and mean IU in Long, Shelhamer and Darrell 2015, section 5; a class that
    occurs in neither truth nor prediction does not enter the mean.
    """
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    class_iou = tuple(
        float(hit / whole) if whole else None for hit, whole in zip(hits, union, strict=True)
    )
    present = [iou for iou in class_iou if iou is not None]
    pixels = int(matrix.sum())
    return Scores(
        pixel_accuracy=float(hits.sum() / pixels) if pixels else None,
        mean_iou=float(np.mean(present)) if present else None,
        class_iou=class_iou,
        pixels=pixels,
    )
