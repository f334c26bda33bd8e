"""The chosen crop: the whole image where it fits, or else nothing that fits computes less."""

from __future__ import annotations

import re
import time
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.auto_tile import LEAST_SIDE, Footprint, choose_grid
from fcn_deploy.errors import UsageError
from fcn_deploy.read_ahead import ahead
from fcn_deploy.segment import _blocks
from fcn_deploy.tiling import cut_crops, plan_crops

STEP = 32
SIZES = st.one_of(st.integers(129, 400), st.integers(400, 3000))
FOOTPRINTS = st.builds(Footprint, st.sampled_from([20.0, 100.0, 317.5, 900.0]), st.integers(1, 4))


SPARE_MIB = (Footprint(0.0).of(plan_crops((1, 1), None)) >> 20) + 1
"""What is reserved whatever the plan, rounded up."""


def least_area(
    image_hw: tuple[int, int], footprint: Footprint, memory_mib: int, overlap: int, halo: int | None
) -> float:
    """Computed pixels of the best of all crops that are allowed, one by one."""
    best = float("inf")
    shared = overlap if halo is None else 2 * halo
    padded = plan_crops(image_hw, None).padded_hw
    least = -(-max(LEAST_SIDE, shared + STEP) // STEP) * STEP
    ranges = [range(min(least, size), size + 1, STEP) for size in padded]
    for height in ranges[0]:
        for width in ranges[1]:
            grid = plan_crops(image_hw, (height, width), overlap, halo=halo)
            if footprint.of(grid) <= memory_mib * 2**20:
                best = min(best, grid.computed_pixels)
    return best


@given(st.tuples(SIZES, SIZES), FOOTPRINTS)
def test_a_footprint_is_at_least_what_is_held_by_definition(
    image_hw: tuple[int, int], footprint: Footprint
) -> None:
    grid = plan_crops(image_hw, (256, 320), 64)
    height, width = grid.crop_hw
    crops = footprint.bytes_per_pixel * height * width * min(footprint.workers, len(grid))
    # Two rows of crops (the last one and its successor), what was read for that, and twice as much
    # ahead; labels; two rows of the file's tiles, one read and one being decoded.
    several = 16 * height + 2 * 3 * min(512, grid.padded_hw[0])
    # The image, what it was decoded to, and labels.
    alone = 7 * height
    rows = several if len(grid.tops) > 1 else alone
    held = crops + rows * grid.padded_hw[1]
    assert held <= footprint.of(grid) <= held + SPARE_MIB * 2**20


class Rows:
    """An image of which rows are made when they are read."""

    image_hw = (6 * 1024, 2048)

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.zeros((stop - start, self.image_hw[1], 3), np.uint8)


@pytest.mark.parametrize("height", [512, 1024])
def test_rows_that_are_read_ahead_are_reckoned_with(height: int) -> None:
    # NumPy tells tracemalloc of its arrays, so that this counts bytes, not pages.
    grid = plan_crops(Rows.image_hw, (height, 256), 64)
    tracemalloc.start()
    try:
        with closing(ahead(_blocks(Rows(), grid))) as blocks:
            for number, _crop in enumerate(cut_crops(blocks, grid)):
                if number % len(grid.lefts) == 0:
                    time.sleep(0.05)  # crops take longer than reading: it gets as far as it may
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    reckoned = Footprint(0.0).of(grid) - Footprint(0.0).of(plan_crops((1, 1), None))
    assert 0.4 * reckoned < peak <= reckoned


@given(
    st.tuples(SIZES, SIZES),
    FOOTPRINTS,
    st.integers(1, 400),
    st.sampled_from([0, 32, 50, 64, 128]),
)
@settings(max_examples=150, deadline=None)
def test_whole_images_where_they_fit(
    image_hw: tuple[int, int], footprint: Footprint, memory_mib: int, overlap: int
) -> None:
    whole = plan_crops(image_hw, None)
    memory_mib += SPARE_MIB
    fits = footprint.of(whole) <= memory_mib * 2**20
    try:
        grid = choose_grid(image_hw, footprint, max_memory_mib=memory_mib, overlap=overlap)
    except UsageError as error:
        assert not fits
        assert "MiB are too little" in str(error)  # noqa: PT017 - most draws raise nothing
        return
    assert footprint.of(grid) <= memory_mib * 2**20
    assert all(size % STEP == 0 for size in grid.crop_hw)
    if fits:
        assert len(grid) == 1
        assert grid.crop_hw == whole.padded_hw
    else:
        assert len(grid) > 1


@given(
    st.tuples(st.integers(97, 900), st.integers(97, 900)),
    FOOTPRINTS,
    st.integers(10, 120),
    st.sampled_from([0, 33, 64, 65]),
    st.sampled_from([None, None, 32]),
)
@settings(max_examples=40, deadline=None)
def test_nothing_that_fits_computes_less(
    image_hw: tuple[int, int], footprint: Footprint, memory_mib: int, overlap: int, halo: int | None
) -> None:
    memory_mib += SPARE_MIB
    best = least_area(image_hw, footprint, memory_mib, overlap, halo)
    try:
        grid = choose_grid(
            image_hw, footprint, max_memory_mib=memory_mib, overlap=overlap, halo=halo
        )
    except UsageError:
        assert best == float("inf")
        return
    assert grid.computed_pixels == best
    if halo is not None:
        assert grid.halo == halo


@pytest.mark.parametrize("overlap", [33, 65, 95])
@pytest.mark.parametrize("memory_mib", [60, 150])
def test_overlaps_off_the_grid_are_rounded_as_in_the_plan(overlap: int, memory_mib: int) -> None:
    image_hw, footprint, memory_mib = (1230, 1870), Footprint(317, 2), memory_mib + SPARE_MIB
    grid = choose_grid(image_hw, footprint, max_memory_mib=memory_mib, overlap=overlap)
    assert grid.computed_pixels == least_area(image_hw, footprint, memory_mib, overlap, None)


@given(st.tuples(st.integers(97, 3000), st.integers(97, 3000)), FOOTPRINTS, st.integers(5, 200))
@settings(max_examples=60, deadline=None)
def test_more_memory_never_computes_more(
    image_hw: tuple[int, int], footprint: Footprint, memory_mib: int
) -> None:
    computed = []
    for memory in (memory_mib, 2 * memory_mib, 8 * memory_mib):
        try:
            grid = choose_grid(image_hw, footprint, max_memory_mib=SPARE_MIB + memory, overlap=64)
            computed.append(float(grid.computed_pixels))
        except UsageError:
            computed.append(float("inf"))
    assert computed == sorted(computed, reverse=True)


@given(
    st.tuples(st.integers(97, 6000), st.integers(97, 6000)),
    st.floats(100, 5000),
    st.sampled_from([(0, None), (64, None), (64, 32), (64, 224)]),
)
@settings(max_examples=60, deadline=None)
def test_too_little_memory_is_refused_with_what_would_do(
    image_hw: tuple[int, int], bytes_per_pixel: float, border: tuple[int, int | None]
) -> None:
    footprint, (overlap, halo) = Footprint(bytes_per_pixel, 2), border
    if halo == 224:
        image_hw = (image_hw[0] + 480, image_hw[1] + 480)
    try:
        choose_grid(image_hw, footprint, max_memory_mib=4, overlap=overlap, halo=halo)
    except UsageError as error:
        said = re.search(r"of (\d+)x(\d+) of an image .* need (\d+) MiB", error.problem)
        assert said is not None
        assert str(error).startswith("4 MiB are too little")  # noqa: PT017 - as above
        assert "--max-memory" in error.remedy  # noqa: PT017
        enough = int(said[3])
        assert enough > 4
        grid = choose_grid(image_hw, footprint, max_memory_mib=enough, overlap=overlap, halo=halo)
        assert footprint.of(grid) <= enough * 2**20
        with pytest.raises(UsageError):
            choose_grid(
                image_hw, footprint, max_memory_mib=max(enough - 2, 1), overlap=overlap, halo=halo
            )


@pytest.mark.parametrize("image_hw", [(97, 100_000), (100_000, 97), (120, 200_000)])
def test_ribbons(image_hw: tuple[int, int]) -> None:
    memory_mib = SPARE_MIB + 250
    grid = choose_grid(image_hw, Footprint(300, 2), max_memory_mib=memory_mib, overlap=64)
    assert len(grid) > 1
    assert min(grid.crop_hw) == min(grid.padded_hw)
    assert Footprint(300, 2).of(grid) <= memory_mib * 2**20
    assert grid.computed_pixels < 1.1 * grid.padded_hw[0] * grid.padded_hw[1]


def test_one_pixel_is_one_crop() -> None:
    for halo in (None, 0, 224):
        grid = choose_grid(
            (1, 1), Footprint(300, 2), max_memory_mib=SPARE_MIB + 1, overlap=64, halo=halo
        )
        assert grid.corners == [(0, 0)]
        assert grid.crop_hw == (32, 32)


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from([(32, 32), (64, 96), (256, 256)]),
    st.sampled_from([(320, 480), (512, 512), (1024, 640)]),
)
@settings(max_examples=60, deadline=None)
def test_what_an_engine_takes_is_kept_to(
    image_hw: tuple[int, int], min_hw: tuple[int, int], max_hw: tuple[int, int]
) -> None:
    grid = choose_grid(
        image_hw,
        Footprint(100, 1),
        overlap=0,
        min_hw=min_hw,
        max_hw=max_hw,
        max_memory_mib=SPARE_MIB + 200,
    )
    for size, low, high in zip(grid.crop_hw, min_hw, max_hw, strict=True):
        assert low <= size <= high


@pytest.mark.parametrize(
    ("hw", "halo"), [((1, 100_000), None), ((60, 100_000), None), ((128, 90_000), 224)]
)
def test_narrow_ribbons_are_cut_along_their_length(hw: tuple[int, int], halo: int | None) -> None:
    grid = choose_grid(hw, Footprint(300, 2), max_memory_mib=400, overlap=64, halo=halo)
    assert len(grid) > 1
