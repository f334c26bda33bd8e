"""Accuracy and intersection over union, from one confusion matrix."""

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
        mean_accuracy: Mean of ``class_accuracy`` over the classes that have one, in [0, 1].
        mean_iou: Mean over the classes that occur in truth or prediction, in [0, 1].
        frequency_weighted_iou: Mean of ``class_iou`` weighed by ``class_frequency``, in [0, 1].
        class_iou: Intersection over union per class; ``None`` for a class that never occurs.
        class_accuracy: Share of a class's true pixels that were found (its recall); ``None`` for a
            class that does not occur in the truth.
        class_frequency: Share of the counted pixels that are truly of a class, in [0, 1].
        pixels: Counted pixels.
    """

    pixel_accuracy: float | None
    mean_accuracy: float | None
    mean_iou: float | None
    frequency_weighted_iou: float | None
    class_iou: tuple[float | None, ...]
    class_accuracy: tuple[float | None, ...]
    class_frequency: tuple[float | None, ...]
    pixels: int

    def as_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The same, for JSON, with classes by name."""
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "class_iou": dict(zip(classes, self.class_iou, strict=True)),
            "class_accuracy": dict(zip(classes, self.class_accuracy, strict=True)),
            "class_frequency": dict(zip(classes, self.class_frequency, strict=True)),
            "pixels": self.pixels,
        }


def scores(matrix: NDArray[np.int64]) -> Scores:
    """Accuracy and IoU of a (C, C) confusion matrix, rows being the truth.

    Source: the four figures in section 5 of Long, Shelhamer and Darrell 2015. A class that occurs
    in neither truth nor prediction does not enter the mean IoU, and one that does not occur in the
    truth not the mean accuracy, where nothing could be found; in the mean IoU it counts as 0.
    """
    hits, true = np.diag(matrix), matrix.sum(axis=1)
    pixels = int(matrix.sum())
    class_iou = _ratios(hits, matrix.sum(axis=0) + true - hits)
    class_accuracy = _ratios(hits, true)
    weighted = [
        iou * int(count) for iou, count in zip(class_iou, true, strict=True) if iou is not None
    ]
    return Scores(
        pixel_accuracy=float(hits.sum() / pixels) if pixels else None,
        mean_accuracy=_mean(class_accuracy),
        mean_iou=_mean(class_iou),
        frequency_weighted_iou=sum(weighted) / pixels if pixels else None,
        class_iou=class_iou,
        class_accuracy=class_accuracy,
        class_frequency=_ratios(true, np.full_like(true, pixels)),
        pixels=pixels,
    )


def _ratios(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> tuple[float | None, ...]:
    pairs = zip(parts, wholes, strict=True)
    return tuple(float(part / whole) if whole else None for part, whole in pairs)


def _mean(values: tuple[float | None, ...]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
