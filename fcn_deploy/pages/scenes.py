"""The images of a gallery: each with its mask, and with the truth where that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.dataset import Dataset, Pair, read_pair
from fcn_deploy.evaluate import Evaluation, evaluate
from fcn_deploy.metrics import confusion_matrix, scores
from fcn_deploy.pages.pictures import errors_uri, mask_uri, photo_uri, shrunk, shrunk_labels
from fcn_deploy.segment import RowSource, Segmenter
from fcn_deploy.spec import Color, ModelSpec
from fcn_deploy.tiling_options import Tiling


@dataclass(frozen=True)
class Share:
    """How much of a mask a class takes; ``share`` in [0, 1]."""

    name: str
    color: Color
    share: float


@dataclass(frozen=True)
class Scene:
    """One image of a gallery; pictures are addresses that hold their own content.

    Attributes:
        name: What to call it.
        hw: Height and width of the image itself, in pixels.
        image: JPEG.
        prediction: PNG of the mask.
        truth: PNG of the labels, or ``None`` where nobody knows.
        errors: PNG of where they differ, or ``None``.
        mean_iou: Of this image alone, or ``None``.
        shares: Classes in the mask, the largest first.
    """

    name: str
    hw: tuple[int, int]
    image: str
    prediction: str
    truth: str | None
    errors: str | None
    mean_iou: float | None
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Judged:
    """A model on labelled images, with some of them to look at.

    Attributes:
        evaluation: The figures.
        data: Name of the data set.
        split: The part of it.
        ignored: Pixels that did not count.
        sizes: The different heights and widths of the images, in pixels.
        scenes: Some of the images, the worst first.
    """

    evaluation: Evaluation
    data: str
    split: str
    ignored: int
    sizes: tuple[tuple[int, int], ...]
    scenes: tuple[Scene, ...]


def judge(
    model: Segmenter,
    dataset: Dataset,
    split: str,
    pairs: list[Pair],
    *,
    wanted: int,
    on_image: Callable[[], None],
) -> Judged:
    """Evaluate a model, and keep some of the images to look at.

    These are spread evenly from the image with the lowest mean IoU to that with the highest: the
    worst alone would say little of the model, and the best nothing.

    Args:
        model: What to judge.
        dataset: Where the images are from.
        split: What they are called there.
        pairs: Which images.
        wanted: How many to look at.
        on_image: Called after each image.

    Raises:
        DataError: The classes differ, or a pair cannot be read.
        InputError: An image cannot be read.
    """
    figures: list[float | None] = []
    sizes: dict[tuple[int, int], None] = {}
    pixels = 0

    def look(
        _pair: Pair,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
    ) -> None:
        nonlocal pixels
        figures.append(mean_iou_of(truth, prediction, model.spec.num_classes))
        sizes[(image.shape[0], image.shape[1])] = None
        pixels += truth.size
        on_image()

    evaluation = evaluate(model, dataset, pairs, on_image=look)
    # An image without a pixel that counts is neither good nor bad.
    ranked = sorted((found, place) for place, found in enumerate(figures) if found is not None)
    chosen = [pairs[ranked[rank][1]] for rank in spread(len(ranked), wanted)]
    # Segmenting some of them again takes less than keeping all of them.
    scenes = tuple(_scene_of(model, dataset, pair) for pair in chosen)
    return Judged(
        evaluation,
        dataset.root.resolve().name,
        split,
        pixels - evaluation.scores.pixels,
        tuple(sizes),
        scenes,
    )


def spread(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` of ``count`` places, evenly from the first to the last."""
    if wanted >= count:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, wanted)]


def mean_iou_of(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int
) -> float | None:
    """Mean IoU of one image; ``None`` where no pixel counts."""
    return scores(confusion_matrix(truth, prediction, num_classes)).mean_iou


@dataclass(frozen=True)
class _InMemory:
    image: NDArray[np.uint8]

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.image[start:stop]


def _scene_of(model: Segmenter, dataset: Dataset, pair: Pair) -> Scene:
    image, truth = read_pair(dataset, pair)
    prediction = model.predict(image, Tiling()).labels
    return scene(pair.name, _InMemory(image), prediction, model.spec, truth=truth)


def scene(
    name: str,
    image: RowSource,
    prediction: NDArray[np.uint8],
    spec: ModelSpec,
    *,
    truth: NDArray[np.uint8] | None = None,
) -> Scene:
    """Pictures and figures of one image.

    Args:
        name: What to call it.
        image: Its pixels, by rows.
        prediction: Labels uint8 (H, W).
        spec: Names and colours of the classes.
        truth: Labels uint8 (H, W), if anybody knows.

    Raises:
        InputError: The image is damaged.
    """
    small = shrunk_labels(prediction)
    labels = None if truth is None else shrunk_labels(truth)
    return Scene(
        name,
        image.image_hw,
        photo_uri(shrunk(image)),
        mask_uri(small, spec.palette),
        None if labels is None else mask_uri(labels, spec.palette),
        None if labels is None else errors_uri(small, labels),
        None if truth is None else mean_iou_of(truth, prediction, spec.num_classes),
        shares_of(prediction, spec),
    )


def shares_of(labels: NDArray[np.uint8], spec: ModelSpec) -> tuple[Share, ...]:
    """Classes in labels (H, W) by how much they take, those that are nowhere left out."""
    counts = np.bincount(labels.ravel(), minlength=spec.num_classes)[: spec.num_classes]
    found = [
        Share(name, color, int(count) / labels.size)
        for name, color, count in zip(spec.classes, spec.palette, counts, strict=True)
        if count
    ]
    return tuple(sorted(found, key=lambda share: -share.share))
