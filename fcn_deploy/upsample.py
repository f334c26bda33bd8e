"""The last transposed convolution as matrix products, fused with arg-max: NumPy only.

A transposed convolution with kernel 2s, stride s and padding s/2 makes every pixel from 2 x 2
cells. Around each corner that four cells share lies a *window* of s x s pixels that are all made
from the same four: their 4C numbers times a (4C, C * s * s) matrix, whose blocks are the quadrants
of the kernel. Arg-max can run over a window of every class before anything is laid out as an image:
only labels are rearranged, never logits.

Most windows need not be computed at all. The kernel is taken apart into the bilinear one, whose
weights are positive and sum to one, and the rest. What the rest can do is bounded by the sum of
its absolute values times the scores; where one class leads another by more than that at all four
corners, it leads at every pixel between them, because an average cannot leave the range of what it
averages. Classes that cannot win a window are left out of it, and a window that only one class can
win is filled. This is a proof, not a guess, for any kernel that was learned; the closer it is to
the bilinear one, the more is saved.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4,
for transposed convolution; the window form and the bound are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Border = Literal["zeros", "edge"]
"""Scores beyond those of a crop: none, as transposed convolutions see, or the outermost ones again,
as bilinear resizes do."""

Number = TypeVar("Number", bound=np.generic)

_PIXELS_AT_ONCE = 1 << 18
"""Pixels of one class in work: 1 MiB of float32, which stays in a core's second-level cache."""

_ROUNDING = 1e-5
"""Relative to the scores: leads below it are left to arithmetic, which rounds within it."""


@dataclass(frozen=True)
class Fields:
    """What is known of some pixels.

    Attributes:
        labels: uint8 (...), the most likely class; the lowest of those that are equal.
        confidence: uint8 (...), the softmax probability of the label from 0 to 255; or ``None``.
        probabilities: uint8 (C, ...), of every class from 0 to 255; or ``None``.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.uint8] | None = None

    def arrays(self) -> list[NDArray[np.uint8]]:
        """Those that are there, in the order of the attributes."""
        parts = (self.labels, self.confidence, self.probabilities)
        return [part for part in parts if part is not None]

    def map(self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Fields:
        """The same fields, each changed alike."""
        confidence, probabilities = self.confidence, self.probabilities
        return Fields(
            change(self.labels),
            None if confidence is None else change(confidence),
            None if probabilities is None else change(probabilities),
        )


@dataclass(frozen=True)
class Wanted:
    """What is wanted beside labels; both need every class of every pixel, so they cost time."""

    confidence: bool = False
    probabilities: bool = False

    def __bool__(self) -> bool:
        return self.confidence or self.probabilities

    def empty(self, hw: tuple[int, int], num_classes: int) -> Fields:
        """Fields of that height and width, yet to be filled."""
        return Fields(
            np.empty(hw, np.uint8),
            np.empty(hw, np.uint8) if self.confidence else None,
            np.empty((num_classes, *hw), np.uint8) if self.probabilities else None,
        )


def fields_of(logits: FloatArray, wanted: Wanted) -> Fields:
    """Decide pixels by their logits (C, ...)."""
    labels = np.asarray(logits.argmax(0), np.uint8)
    if not wanted:
        return Fields(labels)
    # Relative to the maximum the largest exponential is exp(0) = 1, so nothing overflows.
    powers = np.exp(logits - logits.max(0))
    scale = 255 / powers.sum(0)
    confidence = np.rint(scale).astype(np.uint8) if wanted.confidence else None
    if not wanted.probabilities:
        return Fields(labels, confidence)
    powers *= scale
    return Fields(labels, confidence, np.rint(powers, out=powers).astype(np.uint8))


def window_matrix(kernel: FloatArray, bias: FloatArray) -> FloatArray:
    """The kernel (C, C, 2s, 2s) and bias (C,) as a matrix (4C + 1, C * s * s).

    Rows: the C scores of the upper left, upper right, lower left and lower right cell, and a 1.
    Columns: class by class, the s x s pixels of a window row by row.
    """
    classes, _, size, _ = kernel.shape
    s = size // 2
    # The upper cell's kernel starts s rows above the window, so that its lower half meets it.
    rows = (slice(s, None), slice(None, s))
    quadrants = [kernel[:, :, a, b].reshape(classes, -1) for a in rows for b in rows]
    return np.concatenate([*quadrants, np.repeat(bias, s * s)[None]])


def bilinear_matrix(classes: int, stride: int) -> FloatArray:
    """As :func:`window_matrix`, of the layer that enlarges each class alone, linearly."""
    ramp = 1 - np.abs(np.arange(2 * stride) - stride + 0.5) / stride
    kernel = np.zeros((classes, classes, 2 * stride, 2 * stride), np.float32)
    kernel[np.arange(classes), np.arange(classes)] = np.outer(ramp, ramp)
    return window_matrix(kernel, np.zeros(classes, np.float32))


def with_border(scores: FloatArray, border: Border) -> FloatArray:
    """Scores (C, h, w) with channels last and a cell more on each side: (h + 2, w + 2, C)."""
    around = ((1, 1), (1, 1), (0, 0))
    return np.pad(scores.transpose(1, 2, 0), around, "constant" if border == "zeros" else "edge")


class Upsampler(Protocol):
    """The last transposed convolution, wherever it is computed: on the host or by an engine.

    Cells are float32 (rows + 1, K, C), channels last, and ``left`` says which of the K columns are
    the left cells of a window: window (i, j) lies between the cells (i, left[j]), (i, left[j] + 1)
    and the two below. Neighbouring windows may come from different crops.
    """

    @property
    def num_classes(self) -> int:
        """C."""
        ...

    @property
    def stride(self) -> int:
        """Pixels of a window's side, s."""
        ...

    @property
    def border(self) -> Border:
        """What it sees beyond the scores of a crop."""
        ...

    def pixels(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Most likely classes: uint8 (rows * s, ...), and at which column each window begins."""
        ...

    def logits(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> Iterator[tuple[slice, FloatArray]]:
        """Yield windows in pieces: which rows of them, and float32 (C, rows, len(left), s, s)."""
        ...


class Upsampling:
    """A transposed convolution that enlarges s times: kernel 2s, stride s, padding s/2, s even.

    A bilinear resize is one, but for its border. Computed here; see :class:`Upsampler`.

    Args:
        matrix: As :func:`window_matrix` makes it.
        num_classes: C.
        border: What it sees beyond the scores.
    """

    def __init__(self, matrix: FloatArray, num_classes: int, border: Border = "zeros") -> None:
        pixels = matrix.shape[1] // num_classes
        self.num_classes = num_classes
        self.border: Border = border
        self.matrix = matrix
        self.stride = round(pixels**0.5)
        if matrix.shape != (4 * num_classes + 1, num_classes * self.stride**2) or self.stride % 2:
            raise ValueError(f"a matrix {matrix.shape} is not of {num_classes} classes")
        by_class = matrix.reshape(-1, num_classes, pixels).transpose(1, 0, 2)
        self._bias = by_class[:, -1, 0].astype(np.float32)
        # A bilinear kernel mixes no classes: then four rows of the matrix do, not 4C.
        self._rows = [np.flatnonzero(part.any(1)) for part in by_class]
        self._matrices = [
            np.ascontiguousarray(part[rows], np.float32)
            for part, rows in zip(by_class, self._rows, strict=True)
        ]
        self._rest = _beyond_bilinear(by_class[:, :-1])
        self._bilinear = not self._rest.any()

    def labels(self, cells: FloatArray, left: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Most likely class of every pixel of every window: uint8 (rows, len(left), s, s)."""
        s = self.stride
        shape = (cells.shape[0] - 1, len(left))
        undecided, result = self._fill(cells, left)
        if len(undecided):
            corners = _corners(cells, left, undecided)
            possible = self._possible(corners)
            # Neighbours in this order have the same rivals, so that few classes are computed.
            order = np.lexsort(np.packbits(possible, axis=1).T)
            at_once = max(_PIXELS_AT_ONCE // (s * s), 1)
            for start in range(0, len(order), at_once):
                some = order[start : start + at_once]
                rivals = np.flatnonzero(possible[some].any(0))
                result[undecided[some]] = self._race(corners[some], rivals)
        return result.reshape(*shape, s, s)

    def pixels(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Labels of windows side by side: uint8 (rows * s, len(left) * s), where each begins."""
        return as_pixels(self.labels(cells, left)), np.arange(len(left)) * self.stride

    def whole(self, scores: FloatArray) -> FloatArray:
        """Logits (C, h * s, w * s) of a whole image, from its scores (C, h, w)."""
        cells = with_border(scores, self.border)
        windows = self.logits(cells, np.arange(scores.shape[2] + 1))
        cut = slice(self.stride // 2, -(self.stride // 2))
        return np.concatenate([as_pixels(part) for _, part in windows], 1)[:, cut, cut]

    def logits(
        self, cells: FloatArray, left: NDArray[np.intp], *, at_once: int = _PIXELS_AT_ONCE // 8
    ) -> Iterator[tuple[slice, FloatArray]]:
        """Yield windows in pieces: which rows of them, and float32 (C, rows, len(left), s, s)."""
        s, rows = self.stride, cells.shape[0] - 1
        step = max(at_once // (s * s * len(left)), 1)
        for top in range(0, rows, step):
            piece = slice(top, min(top + step, rows))
            shape = (piece.stop - top, len(left))
            corners = _corners(cells[top : piece.stop + 1], left, np.arange(shape[0] * shape[1]))
            logits = np.empty((self.num_classes, len(corners), s * s), np.float32)
            for label in range(self.num_classes):
                np.matmul(self._inputs(corners, label), self._matrices[label], out=logits[label])
            yield piece, logits.reshape(self.num_classes, *shape, s, s)

    def _inputs(self, corners: FloatArray, label: int) -> FloatArray:
        rows = self._rows[label]
        return corners if len(rows) == corners.shape[1] else corners[:, rows]

    def _race(self, corners: FloatArray, rivals: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Label (n, s * s) of windows that one of ``rivals`` (ascending) wins at each pixel."""
        best = self._inputs(corners, rivals[0]) @ self._matrices[rivals[0]]
        labels = np.full(best.shape, rivals[0], np.uint8)
        logits, passed = np.empty_like(best), np.empty(best.shape, np.bool_)
        challenger = np.empty(best.shape, np.uint8)
        for label in rivals[1:]:
            np.matmul(self._inputs(corners, label), self._matrices[label], out=logits)
            np.greater(logits, best, out=passed)
            np.maximum(logits, best, out=best)
            # Labels ascend, so the maximum is the last that passed: faster than a masked copy.
            np.multiply(passed.view(np.uint8), np.uint8(label), out=challenger)
            np.maximum(labels, challenger, out=labels)
        return labels

    def _fill(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Windows that more than one class may win, and the labels (n, s * s) of all others."""
        rated = cells + self._bias
        winner = rated.argmax(2)
        lead = np.take_along_axis(rated, winner[:, :, None], 2)[:, :, 0]
        slack = _ROUNDING * np.maximum(np.abs(rated).max(2), np.abs(lead))
        if self.num_classes > 1:
            np.put_along_axis(rated, winner[:, :, None], -np.inf, 2)
            lead = lead - rated.max(2)
        if not self._bilinear:
            worst = self._rest.reshape(4, self.num_classes, -1).max(0)
            slack += 2 * (np.abs(cells) @ worst).max(2)
        same, least, most = winner, lead, slack
        # The corners of a window: first upper and lower, then left and right.
        alike = same[:-1] == same[1:]
        least, most = np.minimum(least[:-1], least[1:]), most[:-1] + most[1:]
        same = same[:-1]
        right = left + 1
        alike = alike[:, left] & alike[:, right] & (same[:, left] == same[:, right])
        safe = np.minimum(least[:, left], least[:, right]) > most[:, left] + most[:, right]
        if self.num_classes == 1:
            safe = np.ones_like(safe)
        result = np.empty((alike.size, self.stride**2), np.uint8)
        result[:] = same[:, left].reshape(-1, 1)
        return np.flatnonzero(~(alike & safe)), result

    def _possible(self, corners: FloatArray) -> NDArray[np.bool_]:
        """Classes (n, C) that could win some pixel of a window, by its corners (n, 4C + 1)."""
        scores = corners[:, :-1]
        rated = scores.reshape(len(scores), 4, -1) + self._bias
        # Whom to compare with is free: the best on average rules out the most.
        leader = rated.sum(1).argmax(1)[:, None]
        lead = (np.take_along_axis(rated, leader[:, :, None], 2) - rated).min(1)
        slack = _ROUNDING * np.abs(rated).max((1, 2))[:, None]
        if not self._bilinear:
            reach = np.abs(scores) @ self._rest
            slack = slack + reach + np.take_along_axis(reach, leader, 1)
        possible: NDArray[np.bool_] = lead <= slack
        return possible


def as_pixels(windows: NDArray[Number]) -> NDArray[Number]:
    """Windows (..., r, k, s, s) laid out as pixels (..., r * s, k * s)."""
    *more, r, k, s, _ = windows.shape
    return windows.swapaxes(-3, -2).reshape(*more, r * s, k * s)


def _corners(cells: FloatArray, left: NDArray[np.intp], windows: NDArray[np.intp]) -> FloatArray:
    """The four cells of each window, and a 1: float32 (n, 4C + 1)."""
    row, column = np.divmod(windows, len(left))
    column = left[column]
    classes = cells.shape[2]
    corners = np.empty((len(windows), 4 * classes + 1), np.float32)
    for index, (down, across) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        part = slice(index * classes, (index + 1) * classes)
        corners[:, part] = cells[row + down, column + across]
    corners[:, -1] = 1
    return corners


def _beyond_bilinear(by_class: FloatArray) -> FloatArray:
    """Largest absolute weight beyond the bilinear kernel: (4C, C), from (C, 4C, s * s)."""
    classes, _, pixels = by_class.shape
    s = round(pixels**0.5)
    ramp = (np.arange(s) + 0.5) / s
    sides = (1 - ramp, ramp)
    bilinear = np.stack([np.outer(a, b).ravel() for a in sides for b in sides])
    rest = by_class.reshape(classes, 4, classes, pixels).astype(np.float64)
    own = np.arange(classes)
    rest[own, :, own] -= bilinear
    largest = np.abs(rest).max(3)
    # Weights of the bilinear kernel are sums of few bits: what remains of them is rounding.
    rounded = largest[own, :, own]
    largest[own, :, own] = np.where(rounded < 1e-7, 0, rounded)
    return np.ascontiguousarray(largest.reshape(classes, -1).T, np.float32)
