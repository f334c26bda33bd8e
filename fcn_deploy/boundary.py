"""How well boundaries lie: precision, recall and F of the boundary pixels of each class.

Regions forgive what people see first: a thin object, or an edge that is off by some pixels, hardly
moves the IoU of a large class.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.spec import IGNORE

DEFAULT_TOLERANCE = 0.0075
"""Share of the image diagonal, as in Csurka et al. 2013."""


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary F over a number of images; ``None`` where there was no boundary to judge.

    Attributes:
        tolerance: How far a boundary may be off, as a share of the image diagonal.
        mean_f: Mean of ``class_f`` over the classes that have one, in [0, 1].
        class_f: Per class, the mean over the images in which truth or prediction has a boundary of
            it, in [0, 1].
    """

    tolerance: float
    mean_f: float | None
    class_f: tuple[float | None, ...]

    def as_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The same, for JSON, with classes by name."""
        return {
            "tolerance": self.tolerance,
            "mean_f": self.mean_f,
            "class_f": dict(zip(classes, self.class_f, strict=True)),
        }


def boundary_scores(
    per_image: list[NDArray[np.float64]], num_classes: int, tolerance: float
) -> BoundaryScores:
    """Average what :func:`boundary_f` said of each image.

    The mean over images comes first and that over classes second, as with IoU: a class counts as
    much as another, in however many images it occurs.

    Args:
        per_image: One (C,) array an image, with NaN for classes without a boundary.
        num_classes: C.
        tolerance: What the arrays were computed with.
    """
    table = np.array(per_image, np.float64).reshape(-1, num_classes)
    judged = [column[~np.isnan(column)] for column in table.T]
    class_f = tuple(float(column.mean()) if column.size else None for column in judged)
    present = [f for f in class_f if f is not None]
    return BoundaryScores(tolerance, float(np.mean(present)) if present else None, class_f)


def boundary_f(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    num_classes: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> NDArray[np.float64]:
    """Compare the boundaries of each class in one image.

    A boundary pixel of a class is a pixel of it with one of its four neighbours in another class;
    neither the rim of the image nor a pixel that is ignored makes one, in the truth as in the
    prediction. Precision is the share of the predicted boundary pixels with a true one of the same
    class within the tolerance (Euclidean, at most), recall the share of the true ones with a
    predicted one, F their harmonic mean.

    Source: BF in Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013, after Martin, Fowlkes and Malik 2004.

    Args:
        truth: Labels (H, W); pixels with :data:`~fcn_deploy.spec.IGNORE` do not count.
        prediction: Labels of the same shape, each below ``num_classes``.
        num_classes: C, at most 255.
        tolerance: Share of the image diagonal, 0 or more.

    Returns:
        (C,) in [0, 1]; NaN for a class that has a boundary in neither; the caller owns it.

    Raises:
        ValueError: The shapes differ, or a label that counts is not below ``num_classes``.
    """
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape}: not both (H, W)")
    ignored = truth == IGNORE
    labels = truth, np.where(ignored, np.uint8(IGNORE), prediction)
    if any(part[~ignored].max(initial=0) >= num_classes for part in labels):
        raise ValueError(f"a label is not below {num_classes}")
    height, width = truth.shape
    # Squared distances of pixels are whole numbers, so that only a limit such as 3 pixels, which is
    # exact but for rounding, needs the slack.
    reach2 = floor(tolerance**2 * (height**2 + width**2) + 1e-6)
    reach2 = min(reach2, height**2 + width**2)
    true, predicted = (_boundary_keys(part, isqrt(reach2)) for part in labels)
    row = width + isqrt(reach2)
    plane = row * (height + isqrt(reach2))
    counts = []
    for keys, others in ((true, predicted), (predicted, true)):
        found = keys[_near(keys, others, reach2, row)]
        counts.append(np.bincount(keys // plane, minlength=num_classes))
        counts.append(np.bincount(found // plane, minlength=num_classes))
    return _f_measure(*counts)


def _boundary_keys(labels: NDArray[np.uint8], reach: int) -> NDArray[np.int64]:
    """Boundary pixels as sorted numbers: class, row and column, in this order.

    Rows and classes are ``reach`` further apart than the image needs: what is added to a number
    within that reach never arrives in another row or class.
    """
    edge = np.zeros(labels.shape, bool)
    counted = labels != IGNORE
    for here, there in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[here] != labels[there]) & counted[here] & counted[there]
        edge[here] |= differ
        edge[there] |= differ
    rows, columns = np.nonzero(edge)
    classes = labels[rows, columns]
    order = np.argsort(classes, kind="stable")
    height, width = labels.shape[0] + reach, labels.shape[1] + reach
    keys: NDArray[np.int64] = (classes.astype(np.int64) * height + rows) * width + columns
    return keys[order]


def _near(
    keys: NDArray[np.int64], others: NDArray[np.int64], reach2: int, row: int
) -> NDArray[np.bool_]:
    """Which pixels have one of the others no further away than the root of ``reach2``.

    Row by row of the disc around a pixel, the nearest of the others to the left and to the right is
    looked up. That takes time by the length of the boundaries and the radius of the disc, whatever
    the number of classes; a pixel that has found one is not asked again.
    """
    near = np.zeros(len(keys), bool)
    if not len(others):
        return near
    reach = isqrt(reach2)
    for down in sorted(range(-reach, reach + 1), key=abs):
        open_ = np.flatnonzero(~near)
        middle = keys[open_] + down * row
        right = np.searchsorted(others, middle)
        left = np.maximum(right - 1, 0)
        right = np.minimum(right, len(others) - 1)
        gap = np.minimum(np.abs(others[right] - middle), np.abs(middle - others[left]))
        near[open_] = gap <= isqrt(reach2 - down**2)
    return near


def _f_measure(
    true: NDArray[np.int64],
    recalled: NDArray[np.int64],
    predicted: NDArray[np.int64],
    precise: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The harmonic mean of precision and recall per class, 0 if only one side has a boundary."""
    result = np.full(len(true), np.nan)
    result[(true > 0) | (predicted > 0)] = 0
    both = (recalled > 0) & (precise > 0)
    recall, precision = recalled[both] / true[both], precise[both] / predicted[both]
    result[both] = 2 * precision * recall / (precision + recall)
    return result
