"""Crop plans and merging, against a float64 average over all crops by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.errors import UsageError
from fcn_deploy.tiling import CropGrid, cut_crops, merge_logits, plan_crops

STEP = 32
TILE = st.integers(1, 5).map(lambda n: n * STEP)


@st.composite
def plans(draw: st.DrawFn, largest: int = 420) -> CropGrid:
    """Any image from 1x1 up, any tile, any overlap that leaves a stride."""
    image_hw = (draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    tile_hw = (draw(TILE), draw(TILE))
    overlap = draw(st.integers(0, min(tile_hw) - STEP))
    return plan_crops(image_hw, tile_hw, overlap, step=STEP)


def coverage(grid: CropGrid) -> NDArray[np.int64]:
    count = np.zeros(grid.padded_hw, np.int64)
    for top, left in grid.corners:
        count[top : top + grid.crop_hw[0], left : left + grid.crop_hw[1]] += 1
    return count


@given(plans(largest=2000))
@settings(max_examples=200)
def test_crops_are_aligned_inside_unique_and_cover_the_image(grid: CropGrid) -> None:
    for padded, size in zip(grid.padded_hw, grid.image_hw, strict=True):
        assert padded % STEP == 0
        assert 0 <= padded - size < STEP
    assert all(size % STEP == 0 for size in grid.crop_hw)
    corners = grid.corners
    assert corners == sorted(set(corners))
    assert len(corners) == len(grid)
    for top, left in corners:
        assert top % STEP == left % STEP == 0
        assert top + grid.crop_hw[0] <= grid.padded_hw[0]
        assert left + grid.crop_hw[1] <= grid.padded_hw[1]
    assert coverage(grid).min() >= 1


@given(
    st.integers(1, 6000), st.integers(1, 8).map(lambda n: n * 64), st.sampled_from([0, 32, 50, 63])
)
def test_number_of_crops_is_the_closed_form(size: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - STEP)
    grid = plan_crops((size, size), (tile, tile), overlap, step=STEP)
    stride = (tile - overlap) // STEP * STEP
    padded = grid.padded_hw[0]
    expected = 1 if padded <= tile else -(-(padded - tile) // stride) + 1
    assert len(grid.tops) == expected
    shared = [a + tile - b for a, b in zip(grid.tops, grid.tops[1:], strict=False)]
    assert all(pixels >= overlap for pixels in shared)


@given(plans())
def test_no_tile_means_one_crop(grid: CropGrid) -> None:
    whole = plan_crops(grid.image_hw, None, step=STEP)
    assert whole.corners == [(0, 0)]
    assert whole.crop_hw == whole.padded_hw == grid.padded_hw


def position_coded(crop: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Logits that depend on pixels, their neighbours and their place in the crop.

    A pointwise model could not tell a wrongly placed crop, a constant one not a wrong weight.
    """
    height, width = crop.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    gray = crop.astype(np.float32).mean(2)
    context = gray + np.roll(gray, 3, 0) - np.roll(gray, 5, 1)
    channels = [
        np.sin(context * (c + 1) / 40 + rows / (7 + c) - columns / 11) for c in range(classes)
    ]
    return np.stack(channels).astype(np.float32)


def brute_force(grid: CropGrid, crops: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    total = np.zeros((crops[0].shape[0], *grid.padded_hw), np.float64)
    height, width = grid.crop_hw
    for (top, left), crop in zip(grid.corners, crops, strict=True):
        total[:, top : top + height, left : left + width] += crop
    return total / coverage(grid)


@given(plans(), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_merged_logits_are_the_average_of_all_crops(
    grid: CropGrid, classes: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*grid.image_hw, 3), np.uint8)
    logits = [position_coded(crop, classes) for crop in cut_crops(image, grid)]
    wanted = brute_force(grid, logits)
    bands = list(merge_logits(grid, iter(logits)))
    merged = np.concatenate(bands, axis=1)
    assert merged.shape == wanted.shape
    np.testing.assert_allclose(merged, wanted, atol=1e-5)
    ordered = np.sort(wanted, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4 if classes > 1 else np.ones(grid.padded_hw, bool)
    assert (merged.argmax(0) == wanted.argmax(0))[clear].all()


@given(plans(largest=700))
@settings(max_examples=50)
def test_merging_holds_no_more_than_a_crops_height(grid: CropGrid) -> None:
    crops = (np.ones((2, *grid.crop_hw), np.float32) for _ in range(len(grid)))
    for band in merge_logits(grid, crops):
        assert band.shape[1] <= grid.crop_hw[0]
        assert (band == 1).all()


@given(plans(largest=300), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_crops_show_the_image_and_mirror_it_beyond_the_edge(grid: CropGrid, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*grid.image_hw, 3), np.uint8)
    pad = [(0, p - s) for p, s in zip(grid.padded_hw, grid.image_hw, strict=True)]
    padded = np.pad(image, (*pad, (0, 0)), mode="symmetric")
    height, width = grid.crop_hw
    for (top, left), crop in zip(grid.corners, cut_crops(image, grid), strict=True):
        np.testing.assert_array_equal(crop, padded[top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [
        ((500, 512), 64, "multiple of the output stride"),
        ((0, 32), 0, "multiple of the output stride"),
        ((512, 512), 481, "must lie between 0 and 480"),
        ((512, 64), 64, "must lie between 0 and 32"),
        ((512, 512), -1, "must lie between 0 and 480"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tile: tuple[int, int], overlap: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_crops((1000, 1000), tile, overlap)


def test_small_images_are_padded_to_what_a_fixed_engine_takes() -> None:
    grid = plan_crops((100, 700), (512, 512), 64, min_hw=(512, 512))
    assert grid.padded_hw == (512, 704)
    assert grid.crop_hw == (512, 512)
