"""The upsampling and its proof of what need not be computed, against PyTorch in float64.

Labels must be right wherever float32 can tell: where the two best logits are further apart than
what rounding can do to a sum of that many products. That is a strict bound, and not a tolerance:
a window that is skipped without proof shows as soon as another class wins it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes import bilinear
from fcn_deploy import upsample
from fcn_deploy.upsample import Fields, FloatArray, Upsampling, Wanted, fields_of, window_matrix

torch = pytest.importorskip("torch")

Exact = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
EPSILON = 2.0**-23
Number = TypeVar("Number", bound=np.generic)


def transposed(scores: Exact, kernel: Exact, bias: Exact) -> Exact:
    """Logits (C, h * s, w * s) of scores (C, h, w), as PyTorch computes them in float64."""
    s = kernel.shape[2] // 2
    tensors = (
        torch.from_numpy(np.array(part, np.float64)) for part in (scores[None], kernel, bias)
    )
    logits: Exact = torch.nn.functional.conv_transpose2d(*tensors, s, s // 2)[0].numpy()
    return logits


def rounding(scores: Exact, kernel: Exact, bias: Exact) -> Exact:
    """What float32 may be off by, at most: (h * s, w * s)."""
    products = 4 * len(scores) + 2
    size: Exact = transposed(np.abs(scores), np.abs(kernel), np.abs(bias)).max(0)
    return products * EPSILON * size


def cells_of(scores: FloatArray) -> tuple[FloatArray, NDArray[np.intp]]:
    """Scores (C, h, w) as a whole map: channels last, a border of zeros, and every window."""
    cells = np.pad(scores.transpose(1, 2, 0), ((1, 1), (1, 1), (0, 0)))
    return cells, np.arange(cells.shape[1] - 1)


def as_image(windows: NDArray[Number], s: int) -> NDArray[Number]:
    """Windows (..., h + 1, w + 1, s, s) as pixels (..., h * s, w * s)."""
    *more, rows, columns, _, _ = windows.shape
    pixels = windows.swapaxes(-3, -2).reshape(*more, rows * s, columns * s)
    return pixels[..., s // 2 : pixels.shape[-2] - s // 2, s // 2 : pixels.shape[-1] - s // 2]


def check(scores: FloatArray, kernel: FloatArray, bias: FloatArray) -> NDArray[np.uint8]:
    """Labels and logits of a map, and whether they are PyTorch's; returns the labels."""
    s, classes = kernel.shape[2] // 2, len(scores)
    upsampling = Upsampling(window_matrix(kernel, bias), classes)
    assert (upsampling.stride, upsampling.num_classes) == (s, classes)
    exact = [part.astype(np.float64) for part in (scores, kernel, bias)]
    wanted, slack = transposed(*exact), rounding(*exact)
    cells, left = cells_of(scores)

    # Once as it is, and once with each window alone: what rules out too much may be made up for by
    # neighbours, for which the same classes are computed.
    for pixels in (upsample._PIXELS_AT_ONCE, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upsample, "_PIXELS_AT_ONCE", pixels)
            labels = as_image(upsampling.labels(cells, left), s)
        assert labels.dtype == np.uint8
        assert labels.shape == wanted.shape[1:]
        won = np.take_along_axis(wanted, labels[None].astype(np.intp), 0)[0]
        assert (wanted.max(0) - won <= 2 * slack).all()

    pieces = list(upsampling.logits(cells, left))
    rows = [row for piece, _ in pieces for row in range(piece.start, piece.stop)]
    assert rows == list(range(cells.shape[0] - 1))
    logits = as_image(np.concatenate([part for _, part in pieces], 1), s)
    assert (np.abs(logits - wanted) <= slack).all()
    return labels.astype(np.uint8)


KERNELS = ("bilinear", "rounded", "learned", "one class", "random", "negative", "zero")


def kernel_of(kind: str, classes: int, stride: int, random: np.random.Generator) -> FloatArray:
    shape = (classes, classes, 2 * stride, 2 * stride)
    kernel = bilinear(classes, stride)
    if kind == "rounded":  # what training with a tiny rate leaves
        kernel += random.uniform(-1, 1, shape) * 10.0 ** random.uniform(-9, -5)
    elif kind == "learned":
        kernel += random.standard_normal(shape) * 10.0 ** random.uniform(-4, -1)
    elif kind == "one class":
        strong = random.integers(classes)
        kernel[strong] *= 10.0 ** random.uniform(0, 3)
        kernel[strong] += 0.1 * random.standard_normal(shape[1:])
    elif kind == "random":
        kernel = random.standard_normal(shape)
    elif kind == "negative":
        kernel = -kernel - 0.01 * np.abs(random.standard_normal(shape))
    elif kind == "zero":
        kernel = np.zeros(shape)
    return kernel.astype(np.float32)


SCORES = ("smooth", "one class leads", "near ties", "ties", "noise", "zeros", "offset")


def scores_of(kind: str, classes: int, hw: tuple[int, int], random: np.random.Generator) -> Exact:
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    smooth = np.stack(
        [
            np.sin(rows / 4 + random.uniform(0, 6)) + np.cos(columns / 5 + random.uniform(0, 6))
            for _ in range(classes)
        ]
    )
    if kind == "one class leads":
        smooth[random.integers(classes)] += 10.0 ** random.uniform(-6, 2)
    elif kind == "near ties":
        smooth = smooth[:1] + random.uniform(-1, 1, smooth.shape) * 10.0 ** random.uniform(-8, -3)
    elif kind == "ties":
        smooth = np.round(smooth)
    elif kind == "noise":
        smooth = random.standard_normal(smooth.shape)
    elif kind == "zeros":
        smooth = smooth * (random.uniform(0, 1, hw) < 0.3)
    elif kind == "offset":
        smooth = smooth * 0.01 - 1000
    return smooth


@given(
    SEEDS,
    st.integers(1, 6),
    st.sampled_from([2, 4, 6, 8, 10, 16, 32]),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(KERNELS),
    st.sampled_from(SCORES),
    st.sampled_from([0, 1, 1000]),
    st.sampled_from([1, 1, 1e-20, 1e20]),
)
@example(0, 2, 32, (3, 3), "rounded", "near ties", 0, 1)
@settings(max_examples=250, deadline=None)
def test_labels_and_logits_are_those_of_the_transposed_convolution(
    seed: int,
    classes: int,
    stride: int,
    hw: tuple[int, int],
    kernel: str,
    scores: str,
    bias: float,
    magnitude: float,
) -> None:
    random = np.random.default_rng(seed)
    check(
        (scores_of(scores, classes, hw, random) * magnitude).astype(np.float32),
        kernel_of(kernel, classes, stride, random),
        (random.standard_normal(classes) * bias * magnitude).astype(np.float32),
    )


@pytest.mark.parametrize("classes", [21, 255])
@pytest.mark.parametrize("kernel", ["bilinear", "learned"])
def test_many_classes(classes: int, kernel: str) -> None:
    random = np.random.default_rng(classes)
    scores = scores_of("noise", classes, (5, 4), random).astype(np.float32)
    labels = check(scores, kernel_of(kernel, classes, 4, random), np.zeros(classes, np.float32))
    assert len(np.unique(labels)) > 2


def test_256_classes_still_fit_a_label() -> None:
    scores = np.zeros((256, 2, 2), np.float32)
    scores[255] = 1
    cells, left = cells_of(scores)
    upsampling = Upsampling(
        window_matrix(bilinear(256, 2).astype(np.float32), np.zeros(256, np.float32)), 256
    )
    assert (as_image(upsampling.labels(cells, left), 2) == 255).all()


@given(SEEDS, st.integers(2, 5), st.sampled_from([2, 8]), st.sampled_from(["bilinear", "learned"]))
@settings(max_examples=40, deadline=None)
def test_the_lower_of_two_equal_classes_wins(
    seed: int, classes: int, stride: int, kind: str
) -> None:
    # Twins: nothing that goes into one differs from what goes into the other.
    random = np.random.default_rng(seed)
    low, high = sorted(random.choice(classes, 2, replace=False))
    kernel = kernel_of(kind, classes, stride, random)
    scores = scores_of("smooth", classes, (4, 5), random).astype(np.float32)
    bias = random.standard_normal(classes).astype(np.float32)
    if kind == "bilinear":
        scores[high] = scores[low]
    else:
        kernel[:, high] = kernel[:, low]
    bias[high] = bias[low]
    labels = check(scores, kernel, bias)
    assert (labels != high).all()
    if classes == 2:
        assert (labels == low).all()


def test_all_zeros_are_class_0_and_the_bias_decides_where_nothing_else_does() -> None:
    for classes in (1, 2, 7):
        kernel = kernel_of("learned", classes, 8, np.random.default_rng(0))
        zeros = np.zeros((classes, 3, 4), np.float32)
        bias = np.zeros(classes, np.float32)
        assert (check(zeros, kernel, bias) == 0).all()
        bias[classes - 1] = 1e-3
        assert (check(zeros, kernel, bias) == classes - 1).all()


@given(
    SEEDS,
    st.floats(0.2, 1.5),
    st.integers(2, 6),
    st.sampled_from([2, 8, 16]),
    st.sampled_from([None, 0, 1, 2, 3]),
    st.sampled_from([(-1.0, 1.0), (-1.0, 0.0), (0.0, 1.0)]),
)
@settings(max_examples=150, deadline=None)
def test_a_lead_that_the_rest_of_the_kernel_can_just_turn_is_computed(
    seed: int,
    share: float,
    classes: int,
    stride: int,
    quadrant: int | None,
    against: tuple[float, float],
) -> None:
    # The worst case of the bound: one class leads at all cells, by about as much as all that lies
    # beyond the bilinear kernel can do to it, and all of that works against it.
    random = np.random.default_rng(seed)
    beyond = 10.0 ** random.uniform(-5, -1)
    kernel = bilinear(classes, stride)
    leader, rival = random.choice(classes, 2, replace=False)
    size = np.where(random.uniform(0, 1, (4, 4)) < 0.3, 10.0, 0.1) * random.uniform(0.5, 5)
    sign = random.choice([-1.0, 1.0])
    scores = np.broadcast_to(sign * size, (classes, 4, 4)).copy()
    corners = range(4) if quadrant is None else [quadrant]
    for corner in corners:
        rows, columns = (
            slice(side * stride, (side + 1) * stride) for side in (corner // 2, corner % 2)
        )
        for label, way in zip((leader, rival), against, strict=True):
            kernel[:, label, rows, columns] += way * sign * beyond
    logits = transposed(scores, kernel, np.zeros(classes))
    # As much as is lost where most is lost; cells lead by it, and so pixels would without the rest.
    scores[leader] += share * (logits[rival] - logits[leader]).max()
    check(scores.astype(np.float32), kernel.astype(np.float32), np.zeros(classes, np.float32))


@pytest.mark.parametrize("place", [(0, 0), (0, 7), (7, 0), (7, 7), (4, 9)])
@pytest.mark.parametrize("side", [0, 1])
def test_a_single_weight_can_turn_a_single_pixel(place: tuple[int, int], side: int) -> None:
    kernel = bilinear(3, 8)
    kernel[0, 2, place[0] + side * 4, place[1] + 4 * side] = 5
    scores = np.zeros((3, 3, 3), np.float32)
    scores[0] = 1
    labels = check(scores, kernel.astype(np.float32), np.zeros(3, np.float32))
    assert 0 < (labels == 2).sum() <= 9


@given(SEEDS, st.integers(1, 4), st.sampled_from([2, 6, 8]), st.sampled_from(KERNELS), st.data())
@settings(max_examples=60, deadline=None)
def test_windows_of_several_regions_side_by_side(
    seed: int, classes: int, stride: int, kind: str, data: st.DataObject
) -> None:
    # Any columns, in any order, some twice: a window knows its own four cells and no others.
    random = np.random.default_rng(seed)
    kernel = kernel_of(kind, classes, stride, random)
    bias = random.standard_normal(classes).astype(np.float32)
    upsampling = Upsampling(window_matrix(kernel, bias), classes)
    cells = random.standard_normal((4, 9, classes)).astype(np.float32)
    chosen = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=9))
    left = np.array(chosen, np.intp)
    labels = upsampling.labels(cells, left)
    assert labels.shape == (3, len(left), stride, stride)
    pieces = upsampling.logits(cells, left, at_once=data.draw(st.integers(1, 2000)))
    logits = np.concatenate([part for _, part in pieces], 1)
    for index, column in enumerate(left):
        for row in range(3):
            corner = cells[row : row + 2, column : column + 2].transpose(2, 0, 1)
            exact = [part.astype(np.float64) for part in (corner, kernel, bias)]
            middle = slice(stride // 2, stride // 2 + stride)
            wanted = transposed(*exact)[:, middle, middle]
            slack = rounding(*exact)[middle, middle]
            assert (np.abs(logits[:, row, index] - wanted) <= slack).all()
            won = np.take_along_axis(wanted, labels[row, index][None].astype(np.intp), 0)[0]
            assert (wanted.max(0) - won <= 2 * slack).all()


@given(SEEDS, st.integers(1, 3000))
@settings(max_examples=30, deadline=None)
def test_pieces_change_no_label(seed: int, pixels: int) -> None:
    random = np.random.default_rng(seed)
    scores = scores_of("smooth", 5, (6, 8), random).astype(np.float32)
    kernel = kernel_of("learned", 5, 8, random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "_PIXELS_AT_ONCE", pixels)
        check(scores, kernel, np.zeros(5, np.float32))


def test_most_windows_of_a_clear_image_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise all tests of the proof would pass without a proof.
    raced = 0
    race = Upsampling._race

    def counted(
        self: Upsampling, corners: FloatArray, rivals: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        nonlocal raced
        raced += len(corners) * len(rivals)
        return race(self, corners, rivals)

    monkeypatch.setattr(Upsampling, "_race", counted)
    scores = np.full((6, 20, 20), -3, np.float32)
    scores[1, :, :10] = 3
    scores[4, :, 10:] = 3
    random = np.random.default_rng(0)
    kernel = bilinear(6, 8) + 1e-3 * random.standard_normal((6, 6, 16, 16))
    matrix = window_matrix(kernel.astype(np.float32), np.zeros(6, np.float32))
    Upsampling(matrix, 6).labels(*cells_of(scores))
    # A column of windows between the halves, two rivals each, and those at the border's zeros.
    assert 21 * 2 <= raced < 21 * 21 * 6 / 4


@given(
    SEEDS,
    st.integers(1, 30),
    st.lists(st.integers(1, 6), max_size=3),
    st.sampled_from([1e-3, 1, 30, 1e4, 1e30]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_fields_are_the_softmax_in_float64(
    seed: int,
    classes: int,
    shape: list[int],
    magnitude: float,
    confidence: bool,
    probabilities: bool,
) -> None:
    random = np.random.default_rng(seed)
    logits = (magnitude * random.standard_normal((classes, *shape))).astype(np.float32)
    kept = logits.copy()
    fields = fields_of(logits, Wanted(confidence, probabilities))
    np.testing.assert_array_equal(logits, kept)
    exact = logits.astype(np.float64)
    softmax = np.exp(exact - exact.max(0))
    softmax /= softmax.sum(0)
    np.testing.assert_array_equal(fields.labels, exact.argmax(0))
    assert (fields.confidence is not None) == confidence
    assert (fields.probabilities is not None) == probabilities
    for got, wanted in (
        (fields.confidence, softmax.max(0)),
        (fields.probabilities, softmax),
    ):
        if got is not None:
            assert got.dtype == np.uint8
            assert got.shape == wanted.shape
            assert np.abs(got - 255 * wanted).max() <= 0.5 + 1e-4
    assert len(fields.arrays()) == 1 + confidence + probabilities


def test_equal_logits_are_the_lowest_class_at_equal_probability() -> None:
    fields = fields_of(np.zeros((5, 2, 3), np.float32), Wanted(True, True))
    assert (fields.labels == 0).all()
    assert fields.probabilities is not None
    assert fields.confidence is not None
    assert (fields.confidence == 51).all()
    assert (fields.probabilities == 51).all()


def test_fields_that_are_not_there_stay_away() -> None:
    fields = Fields(np.zeros((2, 3), np.uint8))
    doubled = fields.map(lambda part: np.concatenate([part, part]))
    assert doubled.labels.shape == (4, 3)
    assert doubled.confidence is doubled.probabilities is None
    assert not Wanted()
    empty = Wanted(probabilities=True).empty((3, 4), 7)
    assert empty.probabilities is not None
    assert empty.probabilities.shape == (7, 3, 4)
    assert empty.confidence is None


def test_the_matrix_is_the_kernels_quadrants_and_the_bias() -> None:
    kernel = np.arange(2 * 2 * 4 * 4, dtype=np.float32).reshape(2, 2, 4, 4)
    matrix = window_matrix(kernel, np.array([100, 200], np.float32))
    assert matrix.shape == (9, 8)
    for row, (down, across) in enumerate(((2, 2), (2, 0), (0, 2), (0, 0))):
        for cell in (0, 1):
            for label in (0, 1):
                part = kernel[cell, label, down : down + 2, across : across + 2]
                columns = slice(4 * label, 4 * label + 4)
                np.testing.assert_array_equal(matrix[2 * row + cell, columns], part.ravel())
    np.testing.assert_array_equal(matrix[8], [100] * 4 + [200] * 4)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (9, 18), (10, 8), (5, 8)])
def test_a_matrix_of_other_classes_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not of 2 classes"):
        Upsampling(np.zeros(shape, np.float32), 2)


def test_what_is_too_small_to_matter_alone_still_counts_together() -> None:
    classes, each = 255, 0.99e-7
    kernel = bilinear(classes, 2).astype(np.float32)
    kernel[:, 0] -= np.float32(each)
    kernel[:, 1] += np.float32(each)
    scores = np.full((classes, 4, 4), 10, np.float32)
    scores[0] += 0.3 * 2 * 4 * classes * each * 10
    bias = np.zeros(classes, np.float32)
    wanted = transposed(scores.astype(float), kernel.astype(float), bias.astype(float))
    cells, left = cells_of(scores)
    labels = as_image(Upsampling(window_matrix(kernel, bias), classes).labels(cells, left), 2)
    ordered = np.sort(wanted, 0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.any()
    assert (labels == wanted.argmax(0))[clear].all()
