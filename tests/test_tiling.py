"""Crop plans: properties 1 and 2 of field/tiling.md, and which crops say what a pixel is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.errors import UsageError
from fcn_deploy.tiling import CropGrid, cut_crops, plan_crops, row_blocks

STEP = 32
TILE = st.integers(1, 5).map(lambda n: n * STEP)


@st.composite
def plans(draw: st.DrawFn, largest: int = 420) -> CropGrid:
    """Any image from 1x1 up, any tile, any overlap or halo that leaves a stride."""
    image_hw = (draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    tile_hw = (draw(TILE), draw(TILE))
    if draw(st.booleans()):
        most = (min(tile_hw) - STEP) // 2 // STEP * STEP
        return plan_crops(image_hw, tile_hw, step=STEP, halo=draw(st.integers(0, most)))
    return plan_crops(image_hw, tile_hw, draw(st.integers(0, min(tile_hw) - STEP)), step=STEP)


def coverage(grid: CropGrid) -> NDArray[np.int64]:
    count = np.zeros(grid.padded_hw, np.int64)
    for top, left in grid.corners:
        count[top : top + grid.crop_hw[0], left : left + grid.crop_hw[1]] += 1
    return count


@given(plans(largest=2000))
@settings(max_examples=200)
def test_property_1_crops_are_aligned_inside_unique_and_cover_the_image(grid: CropGrid) -> None:
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
def test_property_2_the_number_of_crops_is_the_closed_form(
    size: int, tile: int, overlap: int
) -> None:
    overlap = min(overlap, tile - STEP)
    grid = plan_crops((size, size), (tile, tile), overlap, step=STEP)
    stride = (tile - overlap) // STEP * STEP
    padded = grid.padded_hw[0]
    expected = 1 if padded <= tile else -(-(padded - tile) // stride) + 1
    assert len(grid.tops) == expected
    shared = [a + tile - b for a, b in zip(grid.tops, grid.tops[1:], strict=False)]
    assert all(pixels >= overlap for pixels in shared)


@given(plans())
@settings(max_examples=200)
def test_spans_name_the_crops_that_decide(grid: CropGrid) -> None:
    for spans, starts, size, whole in (
        (grid.row_spans, grid.tops, grid.crop_hw[0], grid.padded_hw[0]),
        (grid.column_spans, grid.lefts, grid.crop_hw[1], grid.padded_hw[1]),
    ):
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == whole
        for span in spans:
            assert span.start % STEP == span.stop % STEP == 0
            assert span.size == span.stop - span.start > 0
            covering = [
                crop
                for crop, start in enumerate(starts)
                if start <= span.start and span.stop <= start + size
            ]
            if grid.halo is None:
                # Nobody else has even a part of it.
                touching = [
                    crop
                    for crop, start in enumerate(starts)
                    if start < span.stop and span.start < start + size
                ]
                assert list(span.crops) == covering == touching
                continue
            (owner,) = span.crops
            assert owner in covering
            # The borders that lie inside of the image are at least the halo away.
            assert starts[owner] == 0 or span.start - starts[owner] >= grid.halo
            end = starts[owner] + size
            assert end == whole or end - span.stop >= grid.halo


@given(st.integers(1, 3000), st.integers(1, 8), st.integers(0, 200))
def test_a_halo_is_rounded_up_and_left_out_on_both_sides(size: int, tile: int, halo: int) -> None:
    rounded = -(-halo // STEP) * STEP
    tile = 2 * rounded + tile * STEP
    grid = plan_crops((size, 100), (tile, tile), 0, step=STEP, halo=halo)
    assert grid.halo == rounded
    padded = grid.padded_hw[0]
    stride = tile - 2 * rounded
    assert len(grid.tops) == (1 if padded <= tile else -(-(padded - tile) // stride) + 1)


@given(plans())
def test_no_tile_means_one_crop(grid: CropGrid) -> None:
    whole = plan_crops(grid.image_hw, None, step=STEP)
    assert whole.corners == [(0, 0)]
    assert whole.crop_hw == whole.padded_hw == grid.padded_hw


@given(plans(largest=300), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_crops_show_the_image_and_mirror_it_beyond_the_edge(grid: CropGrid, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*grid.image_hw, 3), np.uint8)
    pad = [(0, p - s) for p, s in zip(grid.padded_hw, grid.image_hw, strict=True)]
    padded = np.pad(image, (*pad, (0, 0)), mode="symmetric")
    height, width = grid.crop_hw
    blocks = [image[start:stop] for start, stop in row_blocks(grid)]
    assert sum(len(block) for block in blocks) == len(image)
    by_rows = cut_crops(iter(blocks), grid)
    for (top, left), crop, again in zip(grid.corners, cut_crops(image, grid), by_rows, strict=True):
        np.testing.assert_array_equal(crop, padded[top : top + height, left : left + width])
        np.testing.assert_array_equal(again, crop)


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


@pytest.mark.parametrize("overlap", [64, 32])
def test_a_side_that_one_crop_covers_shares_nothing(overlap: int) -> None:
    assert len(plan_crops((20, 1000), (32, 512), overlap)) > 1
