"""The proposed profile: all images can be segmented with it, in memory; nothing computes less."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_deploy.auto_tile import LEAST_SIDE
from fcn_deploy.errors import DataError, InputError, UsageError
from fcn_deploy.image_headers import header_hw, read_sizes
from fcn_deploy.profile_planner import Proposal, plan_for_folder, plan_profile
from fcn_deploy.tiling import plan_crops

Size = tuple[int, int]

SIZE = st.tuples(*[st.one_of(st.integers(1, 300), st.integers(300, 5000))] * 2)
FOLDERS = st.lists(SIZE, min_size=1, max_size=12)
MEGA = 1 << 20


def planned(sizes: Sequence[Size], *, budget_mib: int = 1024, overlap: int = 64) -> Proposal:
    """A proposal at 100 bytes a pixel."""
    return plan_profile(sizes, 100.0, budget_mib=budget_mib, overlap=overlap)


@given(
    FOLDERS,
    st.floats(20, 600),
    st.integers(64, 2048),
    st.sampled_from([0, 16, 50, 64, 224]),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([(1, 1), (64, 64), (200, 416)]),
)
@settings(max_examples=200, deadline=None)
def test_every_image_can_be_segmented_in_memory(
    sizes: list[Size],
    bytes_per_pixel: float,
    budget_mib: int,
    overlap: int,
    step: int,
    min_hw: Size,
) -> None:
    try:
        proposal = plan_profile(
            sizes,
            bytes_per_pixel,
            step=step,
            overlap=overlap,
            budget_mib=budget_mib,
            fixed_bytes=8 * MEGA,
            min_hw=min_hw,
        )
    except UsageError as error:
        least = max(LEAST_SIDE, 2 * overlap, overlap + step, *min_hw) + 2 * step
        assert (budget_mib - 8) * MEGA < bytes_per_pixel * least**2
        assert "memory is too little" in str(error)  # noqa: PT017 - most draws raise nothing
        return
    shapes = proposal.shapes
    shapes.check(step)
    most = shapes.max_batch * shapes.max_hw[0] * shapes.max_hw[1] * bytes_per_pixel
    assert proposal.activation_mib == pytest.approx(most / MEGA + 8)
    assert proposal.activation_mib <= budget_mib
    crops, computed = 0, 0
    for hw in sizes:
        grid = plan_crops(hw, proposal.tile_hw, proposal.overlap, step=step, min_hw=shapes.min_hw)
        for low, side, high in zip(shapes.min_hw, grid.crop_hw, shapes.max_hw, strict=True):
            assert low <= side <= high
        crops += len(grid)
        computed += grid.computed_pixels
    assert proposal.images == len(sizes)
    assert proposal.crops == crops
    assert proposal.computed_ratio == pytest.approx(computed / sum(h * w for h, w in sizes))


@given(
    st.lists(st.tuples(st.integers(33, 900), st.integers(33, 900)), min_size=1, max_size=5),
    st.integers(8, 60),
    st.sampled_from([0, 33, 64]),
)
@settings(max_examples=40, deadline=None)
def test_no_crop_within_the_memory_computes_less(
    sizes: list[Size], budget_mib: int, overlap: int
) -> None:
    most = [-(-max(hw[axis] for hw in sizes) // 32) * 32 for axis in (0, 1)]
    least_area = float("inf")
    for tile in product(*(range(min(256, side), side + 1, 32) for side in most)):
        if tile[0] * tile[1] * 100 <= budget_mib * MEGA:
            grids = [plan_crops(hw, (tile[0], tile[1]), overlap) for hw in sizes]
            least_area = min(least_area, sum(grid.computed_pixels for grid in grids))
    try:
        proposal = planned(sizes, budget_mib=budget_mib, overlap=overlap)
    except UsageError:
        assert least_area == float("inf")
        return
    computed = proposal.computed_ratio * sum(h * w for h, w in sizes)
    one_size = proposal.shapes.min_hw == proposal.shapes.max_hw == (most[0], most[1])
    # For images of nearly one size, an engine of one shape is worth some pixels.
    assert computed <= least_area * (1.1 if one_size else 1) + 0.5


@pytest.mark.parametrize("sizes", [[(1080, 1920)] * 3, [(1080, 1920), (1080, 1900), (1060, 1920)]])
def test_images_of_one_size_get_an_engine_of_one_shape(sizes: list[Size]) -> None:
    proposal = planned(sizes)
    assert proposal.shapes.min_hw == proposal.shapes.opt_hw == proposal.shapes.max_hw
    assert proposal.tile_hw == proposal.shapes.max_hw == (1088, 1920)
    assert proposal.shapes.max_batch == 1
    assert proposal.crops == 3
    assert "each fits as a whole" in proposal.lines()[0]


def test_small_images_are_many_at_once() -> None:
    proposal = planned([(96, 128)] * 5)
    assert proposal.shapes.max_hw == (96, 128)
    pixels = 96 * 128 * proposal.shapes.max_batch
    assert MEGA <= pixels < MEGA + 96 * 128
    half = planned([(96, 128)] * 5, budget_mib=50)
    assert half.shapes.max_batch == 50 * MEGA // (100 * 96 * 128)


def test_one_size_beyond_the_memory_is_cut() -> None:
    proposal = planned([(4000, 6000)] * 2, budget_mib=512)
    assert proposal.crops > 2
    assert proposal.shapes.opt_hw == proposal.shapes.max_hw == proposal.tile_hw
    assert "overlap 64" in proposal.lines()[0]


def test_frequent_sizes_count_more() -> None:
    # Where either of two sizes would have to be cut badly, it is the rare one.
    wide, tall = (512, 1504), (1504, 512)
    memory = {"budget_mib": 80, "overlap": 0}
    assert planned([wide] * 20 + [tall], **memory).tile_hw[1] > 1000
    assert planned([tall] * 20 + [wide], **memory).tile_hw[0] > 1000


def test_of_whole_images_the_one_that_takes_most_work_is_fastest() -> None:
    proposal = planned([(480, 640)] * 100 + [(1080, 1920)] * 2)
    assert proposal.shapes.min_hw == (480, 640)
    assert proposal.shapes.opt_hw == (480, 640)
    assert proposal.shapes.max_hw == (1088, 1920)


def test_nothing_to_plan_for() -> None:
    with pytest.raises(UsageError, match="no images"):
        planned([])


def test_too_little_memory_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="the smallest crop is 256x256") as caught:
        planned([(2000, 3000), (300, 300)], budget_mib=4)
    assert "--max-shape" in caught.value.remedy


def cut_png(path: Path, height: int, width: int) -> None:
    """A PNG of which nothing but the header and the first bytes of its pixels have arrived."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))


def test_headers_are_all_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "orthophoto.png"
    cut_png(path, 30_000, 40_000)
    assert header_hw(path) == (30_000, 40_000)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "hw"), [(None, (20, 30)), (3, (20, 30)), (6, (30, 20))])
def test_sizes_are_those_that_viewers_show(
    tmp_path: Path, suffix: str, orientation: int | None, hw: Size
) -> None:
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert header_hw(path) == hw


def test_tiff_that_only_gdal_reads_has_a_size(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "bands.tif"
    transform = rasterio.Affine(2, 0, 500, 0, -2, 700)
    shape = {"height": 40, "width": 50, "count": 7, "dtype": "uint8", "transform": transform}
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.write(np.zeros((7, 40, 50), np.uint8))
    assert header_hw(path) == (40, 50)


def test_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "below" / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either, and not meant to be one")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        header_hw(tmp_path / "broken.jpg")
    assert read_sizes(tmp_path) == ([(20, 30)], 1)
    (tmp_path / "below" / "photo.png").unlink()
    with pytest.raises(DataError, match="None of the 1 images"):
        read_sizes(tmp_path)


def test_a_model_and_a_folder(toy_onnx: Path, toy_data: Path, tmp_path: Path) -> None:
    folder = toy_data / "train" / "images"
    half, single = (plan_for_folder(toy_onnx, folder, fp16=fp16) for fp16 in (True, False))
    assert half.images == 10
    assert half.shapes.max_hw == (96, 128)
    assert half.unreadable == 0
    assert half.shapes == single.shapes
    # Half the bytes, but for what does not depend on crops.
    assert half.activation_mib - 8 == pytest.approx((single.activation_mib - 8) / 2, rel=0.01)
    (tmp_path / "broken.png").write_bytes(b"")
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.png")
    assert "1 more cannot be read" in plan_for_folder(toy_onnx, tmp_path, fp16=True).lines()[0]


@pytest.mark.parametrize("budget_mib", [24, 64])
def test_a_smaller_budget_is_kept(toy_onnx: Path, tmp_path: Path, budget_mib: int) -> None:
    Image.new("RGB", (1600, 1200)).save(tmp_path / "photo.png")
    proposal = plan_for_folder(toy_onnx, tmp_path, fp16=True, budget_mib=budget_mib)
    assert 0.5 * budget_mib < proposal.activation_mib <= budget_mib
    assert proposal.crops > 1
