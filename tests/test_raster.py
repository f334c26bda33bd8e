"""GeoTIFF: read by rows what Pillow cannot read, written by rows, and where it lies is kept."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("rasterio")

import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from fcn_deploy import raster, tiff_source
from fcn_deploy.errors import EnvironmentFault, InputError
from fcn_deploy.geotiff import TiffWriter
from fcn_deploy.image import read_image, read_mask
from fcn_deploy.raster import Georeference, open_raster
from fcn_deploy.row_files import PngWriter, is_georeferenced
from fcn_deploy.spec import voc_palette
from test_row_files import full_disk, peak_mib, picture

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 150, 90
TRANSFORM = Affine(0.3, 0.0, 500_000.5, 0.0, -0.3, 4_200_000.25)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows, so that small images have many."""
    monkeypatch.setattr(raster, "PIECE_PIXELS", 23 * WIDTH)
    monkeypatch.setattr(tiff_source, "PIECE_PIXELS", 23 * WIDTH)


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Any:
    """GDAL does not write to stderr; but libtiff does, of a disk that is full."""
    yield
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("_tiff")] == []


def bands_of(count: int, dtype: str) -> NDArray[Any]:
    """(count, H, W): the colours of a picture again and again."""
    rgb = np.moveaxis(picture(HEIGHT, WIDTH), 2, 0)
    values = np.stack([np.roll(rgb[band % 3], band, 0) for band in range(count)])
    return values.astype(np.uint16) * 200 if dtype == "uint16" else values.astype(dtype)


def opened(path: Path, mode: str = "r", **creation: Any) -> Any:
    with warnings.catch_warnings():  # most of these images lie nowhere on earth
        warnings.simplefilter("ignore")
        return rasterio.open(path, mode, **creation)


def create(path: Path, bands: NDArray[Any], *, tiled: bool = True, **options: Any) -> None:
    blocks = {"blockxsize": 32, "blockysize": 48} if tiled else {"blockysize": 16}
    count, height, width = bands.shape
    options |= {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with opened(path, "w", driver="GTiff", tiled=tiled, **blocks, **options) as dataset:
        dataset.write(bands)


def read_by_rows(path: Path, heights: tuple[int, ...] = (1, 50, 13)) -> Pixels:
    source = open_raster(path)
    assert source is not None
    windows: list[Pixels] = []
    start = 0
    with source:
        while start < source.image_hw[0]:
            stop = min(start + heights[len(windows) % len(heights)], source.image_hw[0])
            windows.append(source.rows(start, stop))
            start = stop
    return np.concatenate(windows)


def whole_or_by_rows(path: Path) -> Pixels:
    source = open_raster(path)
    if source is None:
        return read_image(path)
    source.close()
    return read_by_rows(path)


def expected_of(bands: NDArray[Any]) -> Pixels:
    """What is to be read of bands that are stored without losses."""
    eight = (bands >> 8).astype(np.uint8) if bands.dtype.itemsize == 2 else bands
    chosen = eight[:3] if len(eight) >= 3 else np.stack([eight[0]] * 3)
    pixels: Pixels = np.moveaxis(chosen, 0, 2).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("compress", [None, "lzw", "deflate", "packbits", "zstd", "lzma", "lerc"])
@pytest.mark.parametrize(("count", "photometric"), [(1, None), (2, None), (3, "rgb"), (4, "rgb")])
def test_all_that_gdal_writes_is_read(
    tmp_path: Path, compress: str | None, count: int, photometric: str | None
) -> None:
    extra = {"photometric": photometric} if photometric else {}
    extra |= {"compress": compress} if compress else {}
    for dtype, tiled, interleave in product(("uint8", "uint16"), (True, False), ("pixel", "band")):
        path = tmp_path / f"{dtype}-{tiled}-{interleave}.tif"
        bands = bands_of(count, dtype)
        create(path, bands, tiled=tiled, interleave=interleave, **extra)
        np.testing.assert_array_equal(read_by_rows(path), expected_of(bands), err_msg=path.name)
        try:
            whole = read_image(path)
        except InputError:
            continue
        if (compress, dtype, interleave) == (None, "uint16", "band") and count > 1:
            continue  # Pillow gets these wrong
        np.testing.assert_array_equal(whole, expected_of(bands), err_msg=path.name)


@pytest.mark.parametrize("bigtiff", ["YES", "NO"])
@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_big_tiff_and_both_orders_of_bytes(
    tmp_path: Path, bigtiff: str, order: str, count: int
) -> None:
    for dtype in ("uint8", "uint16"):
        bands = bands_of(count, dtype)
        create(tmp_path / "a.tif", bands, bigtiff=bigtiff, ENDIANNESS=order, compress="deflate")
        np.testing.assert_array_equal(read_by_rows(tmp_path / "a.tif"), expected_of(bands))


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
@pytest.mark.parametrize("tiled", [True, False])
@given(heights=st.lists(st.integers(1, 70), min_size=1, max_size=4))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_jpeg_in_tiff_is_what_read_image_gives(
    tmp_path: Path, photometric: str, tiled: bool, heights: list[int]
) -> None:
    # GDAL's wheel has another JPEG library than Pillow: its colours differ by up to 100 levels.
    path = tmp_path / "a.tif"
    if not path.exists():
        create(path, bands_of(3, "uint8"), tiled=tiled, compress="jpeg", photometric=photometric)
    np.testing.assert_array_equal(read_by_rows(path, tuple(heights)), read_image(path))


def test_palettes_are_read_as_colors(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    labels = picture(HEIGHT, WIDTH)[:, :, 1] % 11
    with TiffWriter(path, labels.shape, palette=voc_palette(11)) as writer:
        writer.write(labels)
    np.testing.assert_array_equal(read_by_rows(path), read_image(path))


def test_named_colors_are_taken_where_they_are(tmp_path: Path) -> None:
    bands = bands_of(4, "uint16")
    path = tmp_path / "a.tif"
    create(path, bands, compress="deflate")
    with opened(path, "r+") as dataset:
        names = ("blue", "green", "red", "undefined")
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    np.testing.assert_array_equal(read_by_rows(path), expected_of(bands[[2, 1, 0]]))


@pytest.mark.parametrize(("dtype", "count"), [("float32", 3), ("int16", 3), ("uint32", 5)])
def test_pixels_without_black_and_white_are_refused(tmp_path: Path, dtype: str, count: int) -> None:
    create(tmp_path / "a.tif", bands_of(count, "uint8").astype(dtype))
    with pytest.raises(InputError, match=f"a.tif has {dtype} pixels"):
        open_raster(tmp_path / "a.tif")


def test_what_pillow_reads_but_cannot_be_cut_is_left_to_it(tmp_path: Path) -> None:
    create(tmp_path / "float.tif", bands_of(1, "uint8").astype(np.float32))
    Image.fromarray(picture(40, 30)).save(tmp_path / "photo.jpg")
    for path in tmp_path.iterdir():
        assert open_raster(path) is None


def test_the_limit_of_pixels(tmp_path: Path) -> None:
    for count in (3, 5):
        create(tmp_path / "a.tif", bands_of(count, "uint16"))
        with pytest.raises(InputError, match="90x150 pixels, the limit is 99") as caught:
            open_raster(tmp_path / "a.tif", max_pixels=99)
        assert "--max-pixels" in caught.value.remedy


@pytest.mark.parametrize(
    ("count", "compress"), [(3, "none"), (3, "lzw"), (3, "jpeg"), (5, "none"), (5, "deflate")]
)
def test_truncated_files_are_refused(tmp_path: Path, count: int, compress: str) -> None:
    path = tmp_path / "a.tif"
    create(path, bands_of(count, "uint8"), compress=compress)
    whole = path.read_bytes()
    for size in (0, 6, 60, *(len(whole) * part // 10 for part in range(1, 10))):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.tif") as caught:
            whole_or_by_rows(path)
        assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("count", [1, 5])
def test_blocks_that_were_never_written_are_refused(tmp_path: Path, count: int) -> None:
    bands = bands_of(count, "uint8")
    bands[:, 48:] = 0
    create(tmp_path / "a.tif", bands, SPARSE_OK=True, compress="deflate")
    with pytest.raises(InputError, match=r"a\.tif lacks .* blocks"):
        open_raster(tmp_path / "a.tif")


def test_names_are_files_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "a.tif", bands_of(5, "uint16"))
    virtual = tmp_path / "b.tif"
    virtual.write_text(
        f"<VRTDataset rasterXSize='90' rasterYSize='150'><VRTRasterBand dataType='Byte' band='1'>"
        f"<SimpleSource><SourceFilename>{tmp_path}/a.tif</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    os.mkfifo(tmp_path / "pipe.tif")
    names = ("b.tif", "pipe.tif", "/vsimem/a.tif", "GTIFF_DIR:1:a.tif", "http://localhost/a.tif")
    for name in (*names, f"/vsisubfile/0_9,{tmp_path}/a.tif", f"zip://{tmp_path}/a.tif"):
        with pytest.raises(InputError):
            open_raster(Path(name))


def test_nothing_is_written_beside_an_image_or_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    create(path, bands_of(5, "uint16"))
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n5\n5\n")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    before = sorted(tmp_path.iterdir())
    source = open_raster(path)
    assert source is not None
    with source:
        assert source.georeference is None
        source.rows(0, HEIGHT)
    assert sorted(tmp_path.iterdir()) == before


POINTS = [
    GroundControlPoint(row=0, col=0, x=10.0, y=50.0, z=1.0),
    GroundControlPoint(row=0, col=90, x=10.1, y=50.0, z=1.0),
    GroundControlPoint(row=150, col=0, x=10.0, y=49.9, z=1.0),
]
COEFFICIENTS = [float(number) for number in range(1, 21)]
RATIONAL = RPC(
    height_off=1.0,
    height_scale=2.0,
    lat_off=50.0,
    lat_scale=1.0,
    line_off=75.0,
    line_scale=75.0,
    long_off=10.0,
    long_scale=1.0,
    samp_off=45.0,
    samp_scale=45.0,
    err_bias=0.5,
    err_rand=0.25,
    line_num_coeff=COEFFICIENTS,
    line_den_coeff=COEFFICIENTS,
    samp_num_coeff=COEFFICIENTS,
    samp_den_coeff=COEFFICIENTS,
)
PLACES: dict[str, dict[str, Any]] = {
    "utm": {"crs": "EPSG:32633", "transform": TRANSFORM},
    "turned": {"crs": "EPSG:4326", "transform": Affine(0.25, 0.1, 12.5, 0.1, -0.25, 48.25)},
    "nameless": {"transform": TRANSFORM},
    "local": {
        "crs": "+proj=tmerc +lat_0=10 +lon_0=20 +ellps=GRS80 +units=m",
        "transform": TRANSFORM,
    },
    "points": {"crs": "EPSG:4326", "gcps": POINTS},
    "rational": {"rpcs": RATIONAL},
}


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("place", PLACES)
def test_where_an_image_lies_is_kept(tmp_path: Path, place: str, count: int) -> None:
    create(tmp_path / "in.tif", bands_of(count, "uint8"), compress="lzw", **PLACES[place])
    assert is_georeferenced(tmp_path / "in.tif")
    source = open_raster(tmp_path / "in.tif")
    assert source is not None
    with source:
        rows = source.rows(0, HEIGHT)[:, :, 0]
    kept = source.georeference
    with TiffWriter(tmp_path / "out.tif", source.image_hw, georeference=kept) as writer:
        writer.write(rows)
    with rasterio.open(tmp_path / "in.tif") as one, rasterio.open(tmp_path / "out.tif") as two:
        assert one.crs == two.crs
        assert one.transform == two.transform
        assert [point.asdict().items() - {("id", point.id)} for point in one.gcps[0]] == [
            point.asdict().items() - {("id", point.id)} for point in two.gcps[0]
        ]
        assert one.gcps[1] == two.gcps[1]
        assert one.rpcs == two.rpcs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_pixels_that_are_points_stay_points(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=9,
        width=9,
        count=1,
        dtype="uint8",
        **PLACES["utm"],
    ) as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
        dataset.write(np.ones((1, 9, 9), np.uint8))
    georeference = raster.read_georeference(path)
    assert georeference is not None
    with TiffWriter(tmp_path / "out.tif", (9, 9), georeference=georeference) as writer:
        writer.write(np.zeros((9, 9), np.uint8))
    with Image.open(path) as one, Image.open(tmp_path / "out.tif") as two:
        for tag in (33550, 33922, 34735):  # as stored, half a pixel and all
            assert one.tag_v2[tag] == two.tag_v2[tag]  # type: ignore[attr-defined]


def test_masks_have_a_palette_and_nodata(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    labels = picture(700, 600)[:, :, 1] % 11
    labels[:9] = 255
    place = Georeference(rasterio.crs.CRS.from_epsg(32633), TRANSFORM)
    with TiffWriter(
        path, labels.shape, palette=voc_palette(11), nodata=255, georeference=place
    ) as writer:
        for start in range(0, 700, 130):
            writer.write(labels[start : start + 130])
    np.testing.assert_array_equal(read_mask(path), labels)
    with opened(path) as dataset:
        assert dataset.nodata == 255
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.colormap(1)[5] == (*voc_palette(11)[5], 255)
        np.testing.assert_array_equal(dataset.read(1), labels)
    with Image.open(path) as image:
        assert image.mode == "P"


def test_large_masks_have_overviews_inside(tmp_path: Path) -> None:
    labels = np.zeros((5000, 64), np.uint8)
    labels[1000:] = 3
    with TiffWriter(tmp_path / "mask.tif", labels.shape, palette=voc_palette(5)) as writer:
        writer.write(labels)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]
    with opened(tmp_path / "mask.tif") as dataset:
        assert dataset.overviews(1) == [2, 4, 8]
        np.testing.assert_array_equal(dataset.read(1, out_shape=(2500, 32)), labels[::2, ::2])
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), labels)


def test_stacks_have_names_and_photos_their_colors(tmp_path: Path) -> None:
    values = bands_of(5, "uint8")
    names = ["sky", "road", "tree", "car", "côté"]
    with TiffWriter(tmp_path / "stack.tif", (HEIGHT, WIDTH), names=names) as writer:
        for start in range(0, HEIGHT, 40):
            writer.write(values[:, start : start + 40])
    with opened(tmp_path / "stack.tif") as dataset:
        assert list(dataset.descriptions) == names
        np.testing.assert_array_equal(dataset.read(), values)
    smooth = np.repeat(np.linspace(0, 255, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH), 3, 0)
    with TiffWriter(tmp_path / "photo.tif", (HEIGHT, WIDTH), photo=True) as writer:
        writer.write(smooth.astype(np.uint8))
    found = read_image(tmp_path / "photo.tif").astype(int)
    assert np.abs(np.moveaxis(found, 2, 0) - smooth).max() <= 8


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    heights=st.lists(st.integers(0, 20), max_size=4),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_reads_back_equal(
    tmp_path: Path, height: int, width: int, heights: list[int]
) -> None:
    values = picture(height, width)[:, :, 0]
    with TiffWriter(tmp_path / "a.tif", (height, width)) as writer:
        for part in np.split(values, np.minimum(np.cumsum(heights), height).astype(int)):
            writer.write(part)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[:, :, 2], values)


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    rows = np.zeros((5, 8), np.uint8)
    writers = [TiffWriter(tmp_path / "a.tif", hw) for hw in ((6, 8), (4, 8), (5, 9))]
    for writer, words in zip(writers, ("5 of 6 rows", "5 rows of 4", "9 wide"), strict=True):
        with pytest.raises(ValueError, match=words), writer:
            writer.write(rows)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault), TiffWriter(tmp_path / "file" / "a.tif", (5, 8)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("free", [0, 50, 5_000, 100_000, 900_000])
def test_a_full_disk_is_an_environment_fault_and_leaves_nothing(tmp_path: Path, free: int) -> None:
    # The largest is enough for all but the end of the file, which GDAL writes when it closes it.
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    writer = TiffWriter(tmp_path / "a.tif", noise.shape)
    with full_disk(free), pytest.raises(EnvironmentFault, match="Cannot write"), writer:
        writer.write(noise)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    writer = TiffWriter(tmp_path / "a.tif", noise.shape)
    refused = pytest.raises(EnvironmentFault, match="No space left")
    with full_disk(100_000), refused as caught, writer:
        writer.write(noise)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_one_thread_opens_one_reads_and_others_write(tmp_path: Path) -> None:
    bands = bands_of(5, "uint16")
    create(tmp_path / "in.tif", bands)
    source = open_raster(tmp_path / "in.tif")
    broken = tmp_path / "broken.tif"
    broken.write_bytes((tmp_path / "in.tif").read_bytes()[:-20_000])
    labels = picture(HEIGHT, WIDTH)[:, :, 1]
    found: dict[str, Any] = {}

    def read() -> None:
        assert source is not None
        found["rows"] = np.concatenate([source.rows(y, y + 10) for y in range(0, HEIGHT, 10)])

    def refuse() -> None:
        try:
            read_by_rows(broken)
        except InputError as error:
            found["error"] = error

    def write(writer: TiffWriter | PngWriter) -> None:
        for _ in range(10):
            for y in range(0, HEIGHT, 15):
                writer.write(labels[y : y + 15])

    hw = (HEIGHT * 10, WIDTH)
    with TiffWriter(tmp_path / "a.tif", hw) as tiff, PngWriter(tmp_path / "a.png", hw) as png:
        threads = [threading.Thread(target=write, args=(writer,)) for writer in (tiff, png)]
        threads += [threading.Thread(target=work) for work in (read, refuse)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert source is not None
    source.close()
    np.testing.assert_array_equal(found["rows"], expected_of(bands))
    assert "broken.tif" in found["error"].problem
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(
            read_image(tmp_path / name)[:, :, 0], np.concatenate([labels] * 10)
        )


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from fcn_deploy.geotiff import TiffWriter
from fcn_deploy.raster import open_raster
from fcn_deploy.spec import voc_palette
height, path = int(sys.argv[1]), Path(sys.argv[2]) / "a.tif"
rows = np.random.default_rng(0).integers(0, 2, (50, 200), np.uint8).repeat(10, 0).repeat(10, 1)
options = {"palette": voc_palette(3)} if sys.argv[3] == "mask" else {"names": ["a", "b", "c"]}
with TiffWriter(path, (height, 2000), **options) as writer:
    for _ in range(height // 500):
        writer.write(rows if sys.argv[3] == "mask" else np.stack([rows] * 3))
with open_raster(path) as source:
    for start in range(0, height, 500):
        source.rows(start, start + 500)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("kind", ["mask", "stack"])
def test_memory_does_not_grow_with_height(tmp_path: Path, kind: str) -> None:
    # The taller one has 60 MB more of RGB.
    low, tall = (peak_mib(MEASURE, height, tmp_path, kind) for height in (2_000, 12_000))
    assert tall < low + 40
