"""Merging in score space and pixel by pixel, against a float64 average by brute force.

The twelve properties of field/tiling.md, section 3, and where they are held:

1.  Crops are aligned, unique, inside, and cover the image: test_tiling.
2.  Their number is the closed form: test_tiling.
3.  Constant logits stay the same constant; weights are positive everywhere: here.
4.  A pointwise model gives the whole image's answer: here in score space, in test_segment for the
    plain path.
5.  A position-coded model gives the brute-force average: here.
6.  An image no larger than the tile is one inference, and its padding never shows: here.
7.  Translation: here for a small network, in test_segment for a real one.
8.  The fast path equals the slow one with random cut points: here; its parts in test_upsample.
9.  Batches, workers, prefetching and completion order change no label: here, and in test_segment
    for ONNX Runtime.
10. Peak memory does not grow with height: test_outputs.
11. Faults surface as themselves and leave nothing: test_outputs.
12. 1, 2, 21 and 255 classes: here; what is not finite is rejected: here and in test_segment;
    georeferences are kept: test_outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes import Coded, CodedBackend, bilinear
from fcn_deploy import merging, segment, tiling, upsample
from fcn_deploy.backends import ShapeLimits
from fcn_deploy.errors import CheckFailedError, ModelError
from fcn_deploy.logit_merging import decide_logits, merge_logits
from fcn_deploy.merging import (
    BLENDS,
    Band,
    Blend,
    blend_window,
    merge_scores,
)
from fcn_deploy.read_ahead import ahead
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.tiling import CropGrid, cut_crops, plan_crops
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.upsample import FloatArray, Upsampling, Wanted, window_matrix

STEP = 32
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def plans(draw: st.DrawFn, largest: int = 300) -> CropGrid:
    """Any image from 1x1 up, any tile, any overlap or halo that leaves a stride."""
    image_hw = (draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    tile_hw = (STEP * draw(st.integers(1, 5)), STEP * draw(st.integers(1, 5)))
    if draw(st.booleans()):
        most = (min(tile_hw) - STEP) // 2 // STEP * STEP
        return plan_crops(image_hw, tile_hw, step=STEP, halo=draw(st.integers(0, most)))
    return plan_crops(image_hw, tile_hw, draw(st.integers(0, min(tile_hw) - STEP)), step=STEP)


def photo(seed: int, hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def average(grid: CropGrid, crops: list[NDArray[np.float64]], blend: Blend) -> NDArray[np.float64]:
    """Weighted average of all crops that cover a pixel; by the definition, in float64."""
    total = np.zeros((crops[0].shape[0], *grid.padded_hw), np.float64)
    weights = np.zeros(grid.padded_hw, np.float64)
    y, x = (blend_window(blend, size).astype(np.float64) for size in grid.crop_hw)
    for (top, left), crop in zip(grid.corners, crops, strict=True):
        part = (slice(top, top + grid.crop_hw[0]), slice(left, left + grid.crop_hw[1]))
        total[(slice(None), *part)] += crop * y[:, None] * x
        weights[part] += y[:, None] * x
    return total / weights


def owned(grid: CropGrid, crops: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Every pixel from the crop that the spans name; test_tiling holds these to the halo."""
    whole = np.full((crops[0].shape[0], *grid.padded_hw), np.nan)
    for span in grid.row_spans:
        for column in grid.column_spans:
            row, col = span.crops.start, column.crops.start
            crop = crops[row * len(grid.lefts) + col]
            top, left = grid.tops[row], grid.lefts[col]
            whole[:, span.start : span.stop, column.start : column.stop] = crop[
                :, span.start - top : span.stop - top, column.start - left : column.stop - left
            ]
    return whole


def brute_force(
    grid: CropGrid, crops: list[NDArray[np.float64]], blend: Blend = "mean"
) -> NDArray[np.float64]:
    return average(grid, crops, blend) if grid.halo is None else owned(grid, crops)


def stack(bands: Iterable[Band], hw: tuple[int, int]) -> list[NDArray[np.uint8]]:
    parts, top = [], 0
    for band in bands:
        assert band.top == top
        top += band.rows
        parts.append(band.fields.arrays())
    assert top == hw[0]
    return [np.concatenate(part, -2) for part in zip(*parts, strict=True)]


def check(got: list[NDArray[np.uint8]], wanted: NDArray[np.float64], hw: tuple[int, int]) -> None:
    """Labels equal wherever the two best are 1e-4 apart, and all else equal to rounding."""
    wanted = wanted[:, : hw[0], : hw[1]]
    labels = got[0]
    assert labels.shape == hw
    ordered = np.sort(wanted, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4 if len(wanted) > 1 else np.ones(hw, bool)
    assert (labels == wanted.argmax(0))[clear].all()
    if len(got) > 1:
        softmax = np.exp(wanted - wanted.max(0))
        softmax *= 255 / softmax.sum(0)
        assert got[1].shape == hw
        assert np.abs(got[1] - softmax.max(0)).max() <= 0.51
        assert np.abs(got[2] - softmax).max() <= 0.51


# Property 5


@given(
    plans(),
    SEEDS,
    st.integers(1, 5),
    st.sampled_from([2, 4, 8, 16, 32]),
    st.sampled_from([0, 1e-4, 1e-2, 1]),
    st.sampled_from(BLENDS),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_property_5_merged_scores_are_the_average_of_all_crops_logits(
    grid: CropGrid,
    seed: int,
    classes: int,
    stride: int,
    learned: float,
    blend: Blend,
    everything: bool,
) -> None:
    if stride < 8:
        grid = plan_crops((min(grid.image_hw[0], 90), 70), (64, 32), 0, step=STEP)
    network = Coded(seed, classes, stride, learned)
    scores = [network.scores(crop) for crop in cut_crops(photo(seed, grid.image_hw), grid)]
    wanted = brute_force(grid, [network.logits(part) for part in scores], blend)
    want = Wanted(everything, everything)
    bands = merge_scores(grid, iter(scores), network.upsampling, wanted=want, blend=blend)
    check(stack(bands, grid.image_hw), wanted, grid.image_hw)


@given(plans(), SEEDS, st.integers(1, 4), st.sampled_from(BLENDS), st.booleans())
@settings(max_examples=80, deadline=None)
def test_property_5_the_plain_path_gives_the_same_average(
    grid: CropGrid, seed: int, classes: int, blend: Blend, everything: bool
) -> None:
    random = np.random.default_rng(seed)
    crops = [random.standard_normal((classes, *grid.crop_hw)) for _ in grid.corners]
    wanted = brute_force(grid, crops, blend)
    got = np.full(wanted.shape, np.nan)
    for top, left, block in merge_logits(
        grid, (crop.astype(np.float32) for crop in crops), blend=blend
    ):
        here = got[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert np.isnan(here).all()  # no pixel is said twice
        here[:] = block
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    blocks = merge_logits(grid, (crop.astype(np.float32) for crop in crops), blend=blend)
    bands = decide_logits(grid, blocks, Wanted(everything, everything))
    check(stack(bands, grid.image_hw), wanted, grid.image_hw)


# Property 3


@given(plans(), st.sampled_from(BLENDS), st.floats(-1e3, 1e3, width=32))
@settings(max_examples=60, deadline=None)
def test_property_3_constants_stay_constants(grid: CropGrid, blend: Blend, value: float) -> None:
    constants = np.array([value, -value, 1], np.float32)[:, None, None]
    crops = (np.broadcast_to(constants, (3, *grid.crop_hw)).copy() for _ in grid.corners)
    for _, _, block in merge_logits(grid, crops, blend=blend):
        np.testing.assert_allclose(block, np.broadcast_to(constants, block.shape), 1e-6, 1e-30)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 640, 8192, 100_000])
def test_property_3_weights_are_positive_up_to_the_border(size: int) -> None:
    for blend in BLENDS:
        window = blend_window(blend, size)
        assert window.dtype == np.float32
        assert (np.outer(window[:3], window[-3:]) > 0).all()
        assert window.min() > 0
        np.testing.assert_allclose(window, window[::-1], rtol=1e-5)
    gaussian = blend_window("gaussian", 640).astype(np.float64)
    place = np.arange(640) - 319.5
    np.testing.assert_allclose(gaussian, np.exp(-(place**2) / (2 * 80**2)), rtol=1e-5)


# Property 4


@given(plans(), SEEDS, st.sampled_from([8, 16, 32]), st.sampled_from([0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_property_4_cells_of_their_own_give_the_whole_images_answer(
    grid: CropGrid, seed: int, stride: int, learned: float
) -> None:
    # Cells that see only themselves are the same in all crops; a halo of one of them makes up for
    # the zeros beyond the borders of crops.
    tile = (3 * STEP, 4 * STEP)
    grid = plan_crops(grid.image_hw, tile, step=STEP, halo=STEP)
    network = Coded(seed, 4, stride, learned)
    random = np.random.default_rng(seed)
    cells = random.standard_normal((4, *(size // stride for size in grid.padded_hw)))
    scores = [
        cells[
            :,
            top // stride : (top + grid.crop_hw[0]) // stride,
            left // stride : (left + grid.crop_hw[1]) // stride,
        ].astype(np.float32)
        for top, left in grid.corners
    ]
    want = Wanted(confidence=True, probabilities=True)
    bands = merge_scores(grid, scores, network.upsampling, wanted=want)
    check(stack(bands, grid.image_hw), network.logits(cells.astype(np.float32)), grid.image_hw)


# Property 6


@pytest.mark.parametrize("in_scores", [True, False])
@pytest.mark.parametrize("hw", [(1, 1), (31, 64), (64, 33), (96, 96)])
def test_property_6_an_image_within_the_tile_is_one_inference(
    hw: tuple[int, int], in_scores: bool
) -> None:
    backend = CodedBackend(Coded(0, 3, 16, 0.1), in_scores=in_scores)
    Segmenter(backend).segment(photo(0, hw), tile=(96, 96))
    padded = tuple(-(-size // STEP) * STEP for size in hw)
    assert backend.shapes == [(1, *padded, 3)]


@pytest.mark.parametrize("in_scores", [True, False])
@pytest.mark.parametrize("hw", [(33, 40), (100, 70), (130, 97)])
def test_property_6_padding_never_leaks_into_the_image(
    hw: tuple[int, int], in_scores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Coded):
        """Cells that see only themselves, so that only a leak could show the padding."""

        def scores(self, crop: NDArray[np.uint8]) -> FloatArray:
            s = self.stride
            cells = crop[s // 2 :: s, s // 2 :: s].astype(np.float32) / 64
            return np.ascontiguousarray(cells.transpose(2, 0, 1))

        def logits(self, scores: FloatArray) -> NDArray[np.float64]:
            return scores.repeat(self.stride, 1).repeat(self.stride, 2).astype(np.float64)

    network = Own(1, 3, 2)
    nearest = np.zeros((3, 3, 4, 4), np.float32)
    for label in range(3):
        nearest[label, label, 1:3, 1:3] = 1
    network.upsampling = Upsampling(window_matrix(nearest, np.zeros(3, np.float32)), 3)
    model = Segmenter(CodedBackend(network, in_scores=in_scores))
    even = (hw[0] // 2 * 2, hw[1] // 2 * 2)
    got = [model.segment(photo(3, even), tile=(64, 64), overlap=32)]
    monkeypatch.setattr(
        tiling, "_mirror", lambda index, size: np.where(index < size, index, index % 2)
    )
    got.append(model.segment(photo(3, even), tile=(64, 64), overlap=32))
    np.testing.assert_array_equal(got[0], got[1])


# Property 7


@given(st.integers(1, 5), st.integers(0, 4), SEEDS, st.booleans())
@settings(max_examples=30, deadline=None)
def test_property_7_translating_the_image_by_the_step_translates_the_labels(
    down: int, across: int, seed: int, in_scores: bool
) -> None:
    # Overlap 32 of 64: crops begin at all multiples of 32, so that image and grid move together.
    image = photo(seed, (32 * down + 160, 32 * across + 128))
    model = Segmenter(CodedBackend(Coded(seed, 3, 16, 0.2), in_scores=in_scores))
    whole = model.predict(image, Tiling((64, 64), 32), confidence=True)
    moved = model.predict(image[32 * down :, 32 * across :], Tiling((64, 64), 32), confidence=True)
    # The first 32 rows and columns have lost crops that covered them; where none were cut off, not.
    top, left = 32 * (down > 0), 32 * (across > 0)
    want = whole.labels[32 * down :, 32 * across :]
    np.testing.assert_array_equal(moved.labels[top:, left:], want[top:, left:])
    assert whole.confidence is not None
    assert moved.confidence is not None
    want = whole.confidence[32 * down :, 32 * across :]
    difference = moved.confidence[top:, left:].astype(int) - want[top:, left:]
    assert np.abs(difference).max() <= 1


# Property 8


@given(
    plans(largest=200),
    SEEDS,
    st.sampled_from([8, 16, 32]),
    st.sampled_from([0, 1e-3, 0.3]),
    st.sampled_from(BLENDS),
    st.booleans(),
    st.integers(1, 1 << 14),
    st.integers(1, 1 << 13),
)
@settings(max_examples=60, deadline=None)
def test_property_8_cut_points_change_nothing(
    grid: CropGrid,
    seed: int,
    stride: int,
    learned: float,
    blend: Blend,
    everything: bool,
    band_bytes: int,
    pixels: int,
) -> None:
    network = Coded(seed, 3, stride, learned)
    scores = [network.scores(crop) for crop in cut_crops(photo(seed, grid.image_hw), grid)]
    logits = [network.logits(part) for part in scores]
    want = Wanted(everything, everything)
    slow = decide_logits(
        grid,
        merge_logits(grid, (part.astype(np.float32) for part in logits), blend=blend),
        want,
    )
    fast = merge_scores(grid, scores, network.upsampling, wanted=want, blend=blend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_BAND_BYTES", band_bytes)
        patch.setattr(upsample, "_PIXELS_AT_ONCE", pixels)
        bands = list(merge_scores(grid, scores, network.upsampling, wanted=want, blend=blend))
    rows = band_bytes // (grid.padded_hw[1] * (3 if everything else 1))
    assert max(band.rows for band in bands) <= max(rows, stride)
    wanted = brute_force(grid, logits, blend)
    paths = [stack(path, grid.image_hw) for path in (bands, fast, slow)]
    for path in paths:
        check(path, wanted, grid.image_hw)
    for part in zip(*paths[:2], strict=True):
        assert np.abs(part[0].astype(int) - part[1]).max() <= (len(part) > 1)


@given(SEEDS, st.sampled_from([8, 16]), st.integers(1, 3))
@settings(max_examples=6, deadline=None)
def test_a_halo_of_what_the_network_sees_is_exact_and_a_smaller_one_is_not(
    seed: int, stride: int, cells: int
) -> None:
    # A score sees the cells around its own; a pixel the scores of two cells in each direction.
    network = Coded(seed, 4, stride, 0.2, placed=False)
    for in_scores in (True, False):
        model = Segmenter(CodedBackend(network, in_scores=in_scores))
        image = photo(seed, (200 + cells, 240))
        whole = model.predict(image, Tiling(None), probabilities=True)
        exact = model.predict(image, Tiling((32 * cells + 64, 96), halo=32), probabilities=True)
        assert whole.probabilities is not None
        assert exact.probabilities is not None
        np.testing.assert_allclose(
            exact.probabilities.astype(int), whole.probabilities.astype(int), atol=1
        )
        assert (exact.labels == whole.labels).mean() > 0.9999
        cut = model.segment(image, tile=(32 * cells + 64, 96), halo=0)
        assert (cut != whole.labels).any()


# Property 9


@given(
    SEEDS,
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.sampled_from([0, 0, 1, 4]), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_property_9_workers_prefetching_and_completion_order_change_no_bit(
    seed: int, workers: int, depth: int, delays_ms: list[float], by_rows: bool
) -> None:
    class Rows:
        """An image that is read by rows, which must be asked for in order."""

        def __init__(self, image: NDArray[np.uint8]) -> None:
            self.image, self.next = image, 0

        @property
        def image_hw(self) -> tuple[int, int]:
            return self.image.shape[0], self.image.shape[1]

        def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
            assert start == self.next
            self.next = stop
            return self.image[start:stop].copy()

    network, image, want = Coded(seed, 5, 16, 0.01), photo(seed, (230, 190)), Wanted(True, True)
    plain = Segmenter(CodedBackend(network))
    grid = plain.plan((230, 190), Tiling((64, 96), 32))
    wanted = stack(plain.bands(image, grid, wanted=want), grid.image_hw)
    model = Segmenter(CodedBackend(network, workers=workers, delays_ms=tuple(delays_ms)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "ahead", lambda items, **_: ahead(items, depth))
        source = Rows(image) if by_rows else image
        got = stack(model.bands(source, grid, wanted=want), grid.image_hw)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_property_9_batches_change_no_bit(batch: int) -> None:
    network, image = Coded(7, 5, 16, 0.1), photo(7, (230, 190))
    tiling_ = Tiling((64, 96), 32)
    plain = Segmenter(CodedBackend(network, in_scores=False))
    batched = CodedBackend(network, in_scores=False, limits=ShapeLimits(max_batch=batch))
    got = Segmenter(batched).predict(image, tiling_, confidence=True)
    wanted = plain.predict(image, tiling_, confidence=True)
    np.testing.assert_array_equal(got.labels, wanted.labels)
    assert got.confidence is not None
    np.testing.assert_array_equal(got.confidence, wanted.confidence)
    assert max(shape[0] for shape in batched.shapes) == min(batch, len(batched_plan(image)))


def batched_plan(image: NDArray[np.uint8]) -> CropGrid:
    return plan_crops((image.shape[0], image.shape[1]), (64, 96), 32)


# Property 12


@pytest.mark.parametrize("classes", [1, 2, 21, 255])
@pytest.mark.parametrize("learned", [0, 1e-3])
@pytest.mark.parametrize("in_scores", [True, False])
def test_property_12_every_number_of_classes(classes: int, learned: float, in_scores: bool) -> None:
    network = Coded(classes, classes, 4, learned)
    model, image = Segmenter(CodedBackend(network, in_scores=in_scores)), photo(0, (30, 40))
    grid = plan_crops((30, 40), (32, 32), 0)
    got = model.predict(image, Tiling((32, 32), 0), confidence=True, probabilities=True)
    assert got.labels.dtype == np.uint8
    assert got.probabilities is not None
    assert got.probabilities.shape == (classes, 30, 40)
    wanted = brute_force(grid, [network.logits(network.scores(c)) for c in cut_crops(image, grid)])
    assert got.confidence is not None
    check([got.labels, got.confidence, got.probabilities], wanted, (30, 40))
    labels = model.segment(image, tile=(32, 32), overlap=0)
    check([labels], wanted, (30, 40))
    if classes > 21 and not learned:
        assert labels.max() > 127


def test_property_12_more_classes_than_labels_are_refused() -> None:
    with pytest.raises(ModelError, match="256 classes, where 1 to 255"):
        ModelSpec(tuple(str(label) for label in range(256)), voc_palette(256))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_scores", [True, False])
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_property_12_what_is_not_finite_is_rejected(
    value: float, in_scores: bool, tile: tuple[int, int] | None
) -> None:
    class Broken(Coded):
        def scores(self, crop: NDArray[np.uint8]) -> FloatArray:
            scores = super().scores(crop)
            if not crop[-1, -1].any():
                scores[0, -1, -1] = value
            return scores

    image = np.maximum(photo(0, (128, 128)), 1)
    model = Segmenter(CodedBackend(Broken(0, 3, 16), in_scores=in_scores))
    model.segment(image, tile=tile, overlap=32)
    image[-1, -1] = 0
    with pytest.raises(CheckFailedError, match="not finite") as caught:
        model.segment(image, tile=tile, overlap=32)
    assert caught.value.exit_code == 6


def test_scores_are_asked_for_no_earlier_than_they_are_needed() -> None:
    # What is held is two rows of crops, and not the image: bands come while crops still follow.
    grid = plan_crops((640, 96), (64, 64), 32)
    network = Coded(0, 3, 32)
    asked = 0

    def scores() -> Iterator[FloatArray]:
        nonlocal asked
        for crop in cut_crops(photo(0, grid.image_hw), grid):
            asked += 1
            yield network.scores(crop)

    for band in merge_scores(grid, scores(), network.upsampling):
        rows_asked = asked // len(grid.lefts)
        assert asked == rows_asked * len(grid.lefts)
        assert grid.tops[rows_asked - 1] < band.top + band.rows
    assert asked == len(grid)


def test_one_crop_of_bilinear_cells_is_plain_interpolation() -> None:
    # By hand: between two cells of 0 and 1 the logit rises by 1/s a pixel, from a half pixel on.
    upsampling = Upsampling(
        window_matrix(bilinear(2, 4).astype(np.float32), np.zeros(2, np.float32)), 2
    )
    scores = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    grid = plan_crops((4, 8), None, step=4)
    (labels,) = stack(merge_scores(grid, [scores], upsampling), (4, 8))
    np.testing.assert_array_equal(labels, np.repeat([[0] * 4 + [1] * 4], 4, 0))
