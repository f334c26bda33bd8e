"""A model against labelled images: accuracy and IoU from one confusion matrix, and boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.boundary import BoundaryScores, boundary_f, boundary_scores
from fcn_deploy.dataset import Dataset, Pair, read_pair
from fcn_deploy.errors import DataError
from fcn_deploy.metrics import Scores, confusion_matrix, scores
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec
from fcn_deploy.tiling_options import Tiling

OnImage = Callable[[Pair, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]], None]
"""Called with pair, image (H, W, 3), truth (H, W) and prediction (H, W)."""


@dataclass(frozen=True)
class Evaluation:
    """What a model achieves on a split.

    Attributes:
        classes: Class names.
        confusion: int64 (C, C), rows being the truth.
        images: Number of images.
        boundary: How well boundaries lie, if that was asked for.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    images: int
    boundary: BoundaryScores | None = None

    @property
    def scores(self) -> Scores:
        """Accuracy and IoU."""
        return scores(self.confusion)

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "images": self.images,
            **self.scores.as_dict(self.classes),
            "boundary": self.boundary and self.boundary.as_dict(self.classes),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    model: Segmenter,
    dataset: Dataset,
    pairs: list[Pair],
    *,
    tiling: Tiling = Tiling(),
    boundary_tolerance: float | None = None,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Segment labelled images at full size, and count.

    Args:
        model: What to judge.
        dataset: Where the images are from; its classes must be the model's.
        pairs: Which images; none is left out.
        tiling: How images are cut into crops.
        boundary_tolerance: Share of the image diagonal that boundaries may be off, such as
            :data:`~fcn_deploy.boundary.DEFAULT_TOLERANCE`; ``None`` leaves them alone.
        on_image: Told of each image; for progress and pictures.

    Raises:
        DataError: The classes differ, or a pair cannot be read.
        InputError: An image cannot be read.
    """
    require_same_classes(model.spec, dataset)
    num_classes = model.spec.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    boundaries = []
    for pair in pairs:
        image, truth = read_pair(dataset, pair)
        prediction = model.predict(image, tiling).labels
        confusion += confusion_matrix(truth, prediction, num_classes)
        if boundary_tolerance is not None:
            boundaries.append(boundary_f(truth, prediction, num_classes, boundary_tolerance))
        if on_image is not None:
            on_image(pair, image, truth, prediction)
    boundary = None
    if boundary_tolerance is not None:
        boundary = boundary_scores(boundaries, num_classes, boundary_tolerance)
    return Evaluation(model.spec.classes, confusion, len(pairs), boundary)


def require_same_classes(spec: ModelSpec, dataset: Dataset) -> None:
    """Refuse a data set whose labels mean something else than the model's.

    Raises:
        DataError: Names the first difference.
    """
    if spec.classes == dataset.classes:
        return
    pairs = zip(spec.classes, dataset.classes, strict=False)
    first = next((f"{a!r} is {b!r} there" for a, b in pairs if a != b), "")
    counts = f"{spec.num_classes} classes, the data set {len(dataset.classes)}"
    raise DataError(
        f"The model has other classes than {dataset.root}: {first or f'it has {counts}'}.",
        "Evaluate on the data set that the model was trained for.",
    )
