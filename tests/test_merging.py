"""Merging in score space and pixel by pixel, against a float64 average by brute force."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.merging import (
    BLENDS,
    Band,
    Blend,
    blend_window,
    decide_logits,
    merge_logits,
    merge_scores,
)
from fcn_deploy.tiling import CropGrid, cut_crops, plan_crops
from fcn_deploy.upsample import FloatArray, Upsampling, Wanted, window_matrix

STEP = 32


@st.composite
def plans(draw: st.DrawFn, largest: int = 300) -> CropGrid:
    """Any image from 1x1 up, any tile, any overlap or halo that leaves a stride."""
    image_hw = (draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    tile_hw = (STEP * draw(st.integers(1, 5)), STEP * draw(st.integers(1, 5)))
    if draw(st.booleans()):
        most = (min(tile_hw) - STEP) // 2 // STEP * STEP
        return plan_crops(image_hw, tile_hw, step=STEP, halo=draw(st.integers(0, most)))
    return plan_crops(image_hw, tile_hw, draw(st.integers(0, min(tile_hw) - STEP)), step=STEP)


def transposed_convolution(scores: NDArray[np.floating], kernel: FloatArray) -> NDArray[np.float64]:
    """By the definition: every cell adds its kernel, in float64; then s/2 pixels are cut off."""
    _, classes, size, _ = kernel.shape
    s, (_, rows, columns) = size // 2, scores.shape
    whole = np.zeros((classes, (rows + 1) * s, (columns + 1) * s))
    stamps = np.einsum("ihw,icab->chwab", scores.astype(np.float64), kernel.astype(np.float64))
    for row in range(rows):
        for column in range(columns):
            part = (slice(row * s, row * s + size), slice(column * s, column * s + size))
            whole[(slice(None), *part)] += stamps[:, row, column]
    return whole[:, s // 2 : rows * s + s // 2, s // 2 : columns * s + s // 2]


class Network:
    """Scores that depend on pixels, their neighbours and their place in the crop.

    A pointwise network could not tell a misplaced crop, a constant one not a wrong weight.
    """

    def __init__(self, seed: int, classes: int, stride: int, learned: float) -> None:
        random = np.random.default_rng(seed)
        self.stride, self.classes = stride, classes
        ramp = 1 - np.abs(np.arange(2 * stride) - stride + 0.5) / stride
        self.kernel = np.zeros((classes, classes, 2 * stride, 2 * stride), np.float32)
        for label in range(classes):
            self.kernel[label, label] = np.outer(ramp, ramp)
        self.kernel += np.float32(learned) * random.standard_normal(self.kernel.shape)
        self.kernel = self.kernel.astype(np.float32)
        self.bias = random.standard_normal(classes).astype(np.float32)
        self.upsampling = Upsampling(window_matrix(self.kernel, self.bias), classes)

    def scores(self, crop: NDArray[np.uint8]) -> FloatArray:
        s = self.stride
        height, width = crop.shape[0] // s, crop.shape[1] // s
        cells = crop.reshape(height, s, width, s, 3).mean((1, 3, 4))
        rows, columns = np.mgrid[:height, :width]
        context = cells + np.roll(cells, 1, 0) - np.roll(cells, 1, 1)
        channels = [
            np.sin(context * (c + 1) / 20 + rows / (3 + c) - columns / 5)
            for c in range(self.classes)
        ]
        return np.stack(channels).astype(np.float32)

    def logits(self, scores: FloatArray) -> NDArray[np.float64]:
        return transposed_convolution(scores, self.kernel) + self.bias[:, None, None]


def weight(grid: CropGrid, top: int, left: int, blend: Blend) -> NDArray[np.float64]:
    """How much each pixel of a crop counts, by the definition."""
    height, width = grid.crop_hw
    if grid.halo is None:
        y, x = (blend_window(blend, size).astype(np.float64) for size in grid.crop_hw)
        return y[:, None] * x
    inside = []
    for start, size, starts, whole in (
        (top, height, grid.tops, grid.padded_hw[0]),
        (left, width, grid.lefts, grid.padded_hw[1]),
    ):
        # A pixel belongs to the crop whose borders are farthest from it; ties on the grid's step.
        place = np.arange(start, start + size)
        least = [
            np.minimum(
                np.where(other == 0, whole, place - other),
                np.where(other + size == whole, whole, other + size - 1 - place),
            )
            for other in starts
        ]
        mine = least[starts.index(start)]
        assert (mine >= grid.halo).any()
        inside.append((place, mine))
    raise AssertionError(inside)


def brute_force(
    grid: CropGrid, crops: list[NDArray[np.float64]], blend: Blend
) -> NDArray[np.float64]:
    total = np.zeros((crops[0].shape[0], *grid.padded_hw), np.float64)
    weights = np.zeros(grid.padded_hw, np.float64)
    height, width = grid.crop_hw
    for (top, left), crop in zip(grid.corners, crops, strict=True):
        part = (slice(top, top + height), slice(left, left + width))
        here = weight(grid, top, left, blend)
        total[(slice(None), *part)] += crop * here
        weights[part] += here
    return total / weights


def halo_by_definition(grid: CropGrid, crops: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Every pixel from the crop that the spans name, which another test holds to the halo."""
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


def photo(seed: int, hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def stack(bands: Iterator[Band], hw: tuple[int, int]) -> list[NDArray[np.uint8]]:
    parts, top = [], 0
    for band in bands:
        assert band.top == top
        top += band.rows
        parts.append(band.fields.arrays())
    assert top == hw[0]
    return [np.concatenate(part, -2) for part in zip(*parts, strict=True)]


def check(got: list[NDArray[np.uint8]], wanted: NDArray[np.float64], hw: tuple[int, int]) -> None:
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


@given(
    plans(),
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.sampled_from([2, 4, 8, 16, 32]),
    st.sampled_from([0, 1e-4, 1e-2, 1]),
    st.sampled_from(BLENDS),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_merged_scores_are_the_average_of_all_crops_logits(
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
    network = Network(seed, classes, stride, learned)
    scores = [network.scores(crop) for crop in cut_crops(photo(seed, grid.image_hw), grid)]
    logits = [network.logits(part) for part in scores]
    if grid.halo is None:
        wanted = brute_force(grid, logits, blend)
    else:
        wanted = halo_by_definition(grid, logits)
    want = Wanted(everything, everything)
    bands = merge_scores(grid, iter(scores), network.upsampling, wanted=want, blend=blend)
    check(stack(bands, grid.image_hw), wanted, grid.image_hw)
    plain = merge_logits(grid, (part.astype(np.float32) for part in logits), blend=blend)
    check(stack(decide_logits(grid, plain, want), grid.image_hw), wanted, grid.image_hw)
