"""Files of one image, written by bands: the same as of the whole, or not there at all."""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fakes import Coded, CodedBackend
from fcn_deploy import outputs, png_source, raster, row_files, tiff_source
from fcn_deploy.batch import ItemReport, segment_items
from fcn_deploy.errors import EnvironmentFault, InputError
from fcn_deploy.geotiff import TiffWriter
from fcn_deploy.image import MAX_PIXELS
from fcn_deploy.items import Item, list_items
from fcn_deploy.outputs import KINDS, MaskFormat, open_source
from fcn_deploy.png_source import SIGNATURE, chunk
from fcn_deploy.row_files import PngWriter
from fcn_deploy.row_reader import RowReader
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling import CropGrid
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.upsample import FloatArray

rasterio = pytest.importorskip("rasterio")

from affine import Affine  # noqa: E402 - rasterio brings it

Pixels = NDArray[np.uint8]
HW = (230, 150)
TILING = Tiling((96, 64), 32)
NETWORK = Coded(3, 4, 8, 0.02, placed=False)
TRANSFORM = Affine(0.3, 0.0, 500_000.5, 0.0, -0.3, 4_200_000.25)


@pytest.fixture(autouse=True)
def no_deadlock_and_no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    assert {t.name for t in set(threading.enumerate()) - before} == set()


def model(*, in_scores: bool = True) -> Segmenter:
    return Segmenter(CodedBackend(NETWORK, workers=2, in_scores=in_scores))


def picture(seed: int = 0, hw: tuple[int, int] = HW) -> Pixels:
    """Blocks of 24 x 24 pixels: the network answers them with regions, and JPEG keeps them."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-hw[0] // 24), -(-hw[1] // 24), 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(24, 0).repeat(24, 1)[: hw[0], : hw[1]])


def save(path: Path, pixels: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        options = {"compression": "tiff_adobe_deflate", "strip_size": 8000} | options
    Image.fromarray(pixels).save(path, **options)
    return path


def create(path: Path, bands: NDArray[Any], **options: Any) -> Path:
    """A tiled TIFF by way of GDAL; with ``crs`` and ``transform`` a GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    options |= {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 32}
    with opened(path, "w", driver="GTiff", compress="deflate", **blocks, **options) as dataset:
        dataset.write(bands)
    return path


@contextmanager
def opened(path: Path, mode: str = "r", **options: Any) -> Iterator[Any]:
    with warnings.catch_warnings():  # some of these images lie nowhere on earth
        warnings.simplefilter("ignore")
        with rasterio.open(path, mode, **options) as dataset:
            yield dataset


def read(path: Path) -> NDArray[Any]:
    """Stored values: (H, W) or (bands, H, W)."""
    with opened(path) as dataset:
        values: NDArray[Any] = dataset.read()
    return values[0] if len(values) == 1 else values


def tree(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones included."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Read even small images by rows, some of them at a time; lists the sizes of those read so."""
    monkeypatch.setattr(outputs, "STREAM_PIXELS", 0)
    for module in (png_source, raster, tiff_source):
        monkeypatch.setattr(module, "PIECE_PIXELS", 20 * HW[1])
    streamed: list[tuple[int, int]] = []

    def told(path: Path, *, max_pixels: int = MAX_PIXELS) -> RowReader | None:
        source = row_files.open_rows(path, max_pixels=max_pixels)
        if source is not None:
            streamed.append(source.image_hw)
        return source

    monkeypatch.setattr(outputs, "open_rows", told)
    return streamed


def run(
    sources: Iterable[Path], out: Path, *, in_scores: bool = True, **options: Any
) -> list[ItemReport]:
    items = [Item(path, path.stem) for path in sources]
    options = {"tiling": TILING} | options
    return segment_items(model(in_scores=in_scores), items, out, **options)


# Streaming equals whole


SOURCES = ("png", "gray.png", "tif", "tiled.tif", "gray.tif")


def source_of(folder: Path, kind: str) -> Path:
    pixels = picture()
    if kind == "tiled.tif":
        return create(folder / "a.tif", np.moveaxis(pixels, 2, 0), photometric="rgb")
    return save(folder / f"a.{kind[-3:]}", pixels[:, :, 0] if "gray" in kind else pixels)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("in_scores", [True, False])
def test_an_image_read_by_rows_is_the_image_read_whole(
    kind: str, in_scores: bool, tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    source = source_of(tmp_path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "STREAM_PIXELS", HW[0] * HW[1])
        run([source], tmp_path / "whole", save=KINDS, in_scores=in_scores)
    assert by_rows == []
    (report,) = run([source], tmp_path / "rows", save=KINDS, in_scores=in_scores)
    assert by_rows == [HW, HW]  # once to segment it, and once more to lie under its overlay
    assert (report.status, report.height, report.width) == ("done", *HW)
    assert tree(tmp_path / "whole") == [
        "confidence/a.png",
        "mask/a.png",
        "overlay/a.jpg",
        "polygons/a.geojson",
        "probabilities/a.tif",
    ]
    assert tree(tmp_path / "rows") == [
        name.replace("jpg", "tif") for name in tree(tmp_path / "whole")
    ]
    for name in ("confidence/a.png", "mask/a.png", "probabilities/a.tif"):
        np.testing.assert_array_equal(
            read(tmp_path / "rows" / name), read(tmp_path / "whole" / name)
        )
    polygons = [(tmp_path / way / "polygons/a.geojson").read_bytes() for way in ("rows", "whole")]
    assert polygons[0] == polygons[1]
    labels = read(tmp_path / "rows/mask/a.png")
    assert len(np.unique(labels)) == 4
    pixels = np.asarray(Image.open(source).convert("RGB")).astype(float)
    mixed = 0.45 * pixels + 0.55 * np.array(NETWORK_PALETTE)[labels]
    for name in ("rows/overlay/a.tif", "whole/overlay/a.jpg"):
        got = np.moveaxis(read(tmp_path / name), 0, 2).astype(float)
        assert got.shape == mixed.shape
        assert np.median(np.abs(got - mixed)) < 6
        assert np.abs(got - mixed).mean() < 10
        with Image.open(tmp_path / name) as stored:
            assert stored.format == {"tif": "TIFF", "jpg": "JPEG"}[name[-3:]]


NETWORK_PALETTE = CodedBackend(NETWORK).spec.palette


@pytest.mark.parametrize("mask_format", ["auto", "png", "tiff"])
@pytest.mark.parametrize("streamed", [True, False])
def test_mask_formats(
    mask_format: MaskFormat, streamed: bool, tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    place = {"crs": "EPSG:32633", "transform": TRANSFORM}
    plain = save(tmp_path / "plain.png", picture())
    bands = np.moveaxis(picture(), 2, 0)
    geo = create(tmp_path / "geo.tif", bands, photometric="rgb", **place)
    with pytest.MonkeyPatch.context() as patch:
        if not streamed:
            patch.setattr(outputs, "STREAM_PIXELS", 1 << 30)
        reports = run([plain, geo], tmp_path / "out", save=KINDS, mask_format=mask_format)
    assert [report.status for report in reports] == ["done", "done"]
    expected = []
    for name, as_tiff in (("plain", mask_format == "tiff"), ("geo", mask_format != "png")):
        raster_ = "tif" if as_tiff else "png"
        photo = "tif" if as_tiff or streamed else "jpg"
        expected += [f"mask/{name}.{raster_}", f"confidence/{name}.{raster_}"]
        expected += [f"overlay/{name}.{photo}", f"probabilities/{name}.tif"]
        expected += [f"polygons/{name}.geojson"]
    assert tree(tmp_path / "out") == sorted(expected)
    for report in reports:
        assert report.outputs is not None
        assert list(report.outputs) == list(KINDS)
        assert all(Path(path).is_file() for path in report.outputs.values())
    for name in expected:
        if name.endswith("geojson"):
            collection = json.loads((tmp_path / "out" / name).read_text())
            on_earth = "geo" in Path(name).stem and mask_format != "png"
            assert ("coordinate_space" in collection) != on_earth
            continue
        with opened(tmp_path / "out" / name) as dataset:
            assert dataset.shape == HW
            placed = "geo" in Path(name).stem and mask_format != "png"
            assert (dataset.crs is not None and dataset.crs.to_epsg() == 32633) == placed
            assert (dataset.transform == TRANSFORM) == placed
            if name.startswith("mask") and name.endswith("tif"):
                assert dataset.nodata == 255
                assert dataset.colormap(1)[2][:3] == NETWORK_PALETTE[2]
            if name.startswith("probabilities"):
                assert dataset.descriptions == ("class0", "class1", "class2", "class3")
    masks = [read(tmp_path / "out" / name) for name in expected if name.startswith("mask")]
    np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("streamed", [True, False])
def test_multispectral_images_are_read_by_their_first_three_bands(
    dtype: str, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streamed:
        monkeypatch.setattr(outputs, "STREAM_PIXELS", 0)
        monkeypatch.setattr(raster, "PIECE_PIXELS", 20 * HW[1])
    bands = np.concatenate([np.moveaxis(picture(), 2, 0), np.moveaxis(picture(9), 2, 0)[:2]])
    stored = bands if dtype == "uint8" else bands.astype(np.uint16) << 8
    place = {"crs": "EPSG:32633", "transform": TRANSFORM}
    many = create(tmp_path / "many.tif", stored, photometric="minisblack", **place)
    (report,) = run([many], tmp_path / "out", save=KINDS)
    assert report.status == "done", report.error
    run([save(tmp_path / "rgb.png", picture())], tmp_path / "out")
    np.testing.assert_array_equal(
        read(tmp_path / "out/mask/many.tif"), read(tmp_path / "out/mask/rgb.png")
    )
    with opened(tmp_path / "out/mask/many.tif") as dataset:
        assert (dataset.crs.to_epsg(), dataset.transform) == (32633, TRANSFORM)
    overlay = np.moveaxis(read(tmp_path / "out/overlay/many.tif"), 0, 2)
    mixed = 0.45 * picture() + 0.55 * np.array(NETWORK_PALETTE)[read(tmp_path / "out/mask/rgb.png")]
    assert np.median(np.abs(overlay - mixed)) < 6


def test_probabilities_are_those_of_the_mask(
    tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    source = save(tmp_path / "a.png", picture())
    run([source], tmp_path / "out", save=("mask", "confidence", "probabilities"))
    found = read(tmp_path / "out/probabilities/a.tif").astype(int)
    mask = read(tmp_path / "out/mask/a.png").astype(np.intp)
    assert found.shape == (4, *HW)
    assert np.abs(found.sum(0) - 255).max() <= 2  # four roundings
    of_mask = np.take_along_axis(found, mask[None], 0)[0]
    np.testing.assert_array_equal(of_mask, found.max(0))
    np.testing.assert_array_equal(of_mask, read(tmp_path / "out/confidence/a.png"))
    assert len(np.unique(of_mask)) > 20


@pytest.mark.parametrize("kinds", [("polygons",), ("overlay",), ("confidence", "polygons")])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_what_nobody_asked_for_is_not_left_behind(
    kinds: tuple[str, ...],
    suffix: str,
    tmp_path: Path,
    by_rows: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    source = save(tmp_path / f"a.{suffix}", picture())
    (report,) = run([source], tmp_path / "out", save=kinds)
    assert report.outputs is not None
    written = sorted(Path(path).relative_to(tmp_path / "out") for path in report.outputs.values())
    assert tree(tmp_path / "out") == [path.as_posix() for path in written]
    assert {path.parts[0] for path in written} == set(kinds)
    assert tree(scratch) == []
    if "polygons" in kinds:
        run([source], tmp_path / "all", save=("mask", "polygons"))
        polygons = [(tmp_path / way / "polygons/a.geojson").read_bytes() for way in ("out", "all")]
        assert polygons[0] == polygons[1]


def test_a_jpeg_is_read_whole_whatever_its_size(
    tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    (report,) = run([save(tmp_path / "a.jpg", picture())], tmp_path / "out", save=("overlay",))
    assert report.status == "done"
    assert by_rows == []
    assert tree(tmp_path / "out") == ["overlay/a.jpg"]


# Property 11: faults surface as themselves, and leave no file, no thread, and no deadlock


class OwnError(Exception):
    """Nobody else raises it."""


@pytest.mark.parametrize("block", [0, 2, 5])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("in_scores", [True, False])
def test_an_image_that_is_damaged_further_down_fails_alone(
    block: int, suffix: str, in_scores: bool, tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    good = [save(tmp_path / f"{name}.{suffix}", picture()) for name in ("before", "later")]
    bad = damaged(tmp_path / f"bad.{suffix}", block)
    told: list[int] = []

    def on_rows(item: Item, grid: CropGrid, rows: int) -> None:
        if item.source == bad:
            told.append(rows)

    reports = run(
        [good[0], bad, good[1]],
        tmp_path / "out",
        save=KINDS,
        on_rows=on_rows,
        in_scores=in_scores,
        tiling=Tiling((64, 64), 0),
    )
    assert [report.status for report in reports] == ["done", "failed", "done"]
    assert str(bad) in reports[1].error
    assert reports[1].outputs is None
    names = {Path(name).stem for name in tree(tmp_path / "out")}
    assert names == {"before", "later"}
    if block == 5:
        assert max(told) > 0  # it was half done


def damaged(path: Path, block: int) -> Path:
    """An image of about eight blocks of rows, one of which holds other bytes."""
    random = np.random.default_rng(0)
    pixels = np.maximum(picture(), random.integers(0, 40, (*HW, 3), np.uint8))
    if path.suffix == ".tif":
        save(path, pixels, strip_size=30 * 3 * HW[1])
        with Image.open(path) as image:
            offsets, sizes = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
        content = bytearray(path.read_bytes())
        # Behind the head of its stream: a block of data of no kind that there is.
        content[offsets[block] + 2 : offsets[block] + sizes[block]] = b"\xff" * (sizes[block] - 2)
    else:
        filtered = np.zeros((HW[0], 1 + 3 * HW[1]), np.uint8)
        filtered[:, 1:] = pixels.reshape(HW[0], -1)
        pressed = zlib.compress(filtered.tobytes())
        pieces = [pressed[start : start + 8192] for start in range(0, len(pressed), 8192)]
        wrong = min(block * len(pieces) // 7, len(pieces) - 1)
        header = np.array([HW[1], HW[0]], ">u4").tobytes() + b"\x08\x02\0\0\0"
        content = bytearray(SIGNATURE + chunk(b"IHDR", header))
        for number, piece in enumerate(pieces):
            if number == wrong:
                middle = len(piece) // 2
                piece = piece[:middle] + bytes(20) + piece[middle + 20 :]
            content += chunk(b"IDAT", piece)
        content += chunk(b"IEND", b"")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("at", [0, 60, 200])
@pytest.mark.parametrize(
    "fault", [OwnError("bug"), InputError("a.png is odd."), KeyboardInterrupt(), MemoryError()]
)
def test_faults_of_the_reader(
    at: int,
    fault: BaseException,
    tmp_path: Path,
    by_rows: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = RowReader.rows

    def broken(self: RowReader, start: int, stop: int) -> Pixels:
        if stop > at:
            raise fault
        return rows(self, start, stop)

    monkeypatch.setattr(RowReader, "rows", broken)
    surfaces(fault, save(tmp_path / "a.png", picture()), tmp_path / "out")


def surfaces(
    fault: BaseException, source: Path, out: Path, *, in_scores: bool = True, **options: Any
) -> None:
    """Raised as itself, or reported where it is the input's; nothing is written."""
    try:
        (report,) = run([source], out, save=KINDS, in_scores=in_scores, **options)
    except BaseException as error:
        assert not any(t.name == "fcn-deploy-ahead" for t in threading.enumerate())
        assert error is fault  # noqa: PT017 - KeyboardInterrupt is none of pytest.raises' business
        assert not isinstance(fault, InputError)
    else:
        assert isinstance(fault, InputError)
        assert (report.status, report.error) == ("failed", fault.problem)
    assert tree(out) == []
    fault.__traceback__ = None  # its frames hold generators, which hold threads


@pytest.mark.parametrize("at", [0, 3, 11])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("in_scores", [True, False])
def test_faults_of_the_model(
    at: int,
    streamed: bool,
    in_scores: bool,
    tmp_path: Path,
    by_rows: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not streamed:
        monkeypatch.setattr(outputs, "STREAM_PIXELS", 1 << 30)
    fault, count = OwnError("the model's"), 0
    scores = Coded.scores

    def broken(self: Coded, crop: Pixels) -> FloatArray:
        nonlocal count
        count += 1
        if count > at:
            raise fault
        return scores(self, crop)

    monkeypatch.setattr(Coded, "scores", broken)
    surfaces(fault, save(tmp_path / "a.png", picture()), tmp_path / "out", in_scores=in_scores)
    assert count > at


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("in_scores", [True, False])
@pytest.mark.parametrize("writer", [PngWriter, TiffWriter])
def test_faults_of_a_writer(
    at: int,
    in_scores: bool,
    writer: type[PngWriter],
    tmp_path: Path,
    by_rows: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault: Exception = OwnError("the writer's")
    count, write = 0, writer.write

    def broken(self: PngWriter, rows: Pixels) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise fault
        write(self, rows)

    monkeypatch.setattr(writer, "write", broken)
    source = save(tmp_path / "a.png", picture())
    surfaces(fault, source, tmp_path / "out", in_scores=in_scores)
    fault, count = OSError(errno.ENOSPC, "No space left on device"), 0
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        run([source], tmp_path / "out", save=KINDS, in_scores=in_scores)
    assert tree(tmp_path / "out") == []
    fault.__traceback__ = None  # its frames hold generators, which hold threads


@pytest.mark.parametrize("fault", [OwnError("a progress bar's"), KeyboardInterrupt()])
def test_faults_of_who_is_told(
    fault: BaseException, tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    def on_rows(item: Item, grid: CropGrid, rows: int) -> None:
        if rows > 60:
            raise fault

    source = save(tmp_path / "a.png", picture())
    surfaces(fault, source, tmp_path / "out", on_rows=on_rows)


def test_a_fault_leaves_the_files_of_an_earlier_run(
    tmp_path: Path, by_rows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "a.png", picture())
    run([source], tmp_path / "out", save=KINDS)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}
    save(source, picture(7))
    monkeypatch.setattr(Coded, "scores", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run([source], tmp_path / "out", save=KINDS)
    after = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}
    assert after == before


def test_who_takes_one_band_and_leaves_ends_all_threads(
    tmp_path: Path, by_rows: list[tuple[int, int]]
) -> None:
    source, segmenter = save(tmp_path / "a.png", picture()), model()
    with open_source(source) as rows:
        bands = segmenter.bands(rows, segmenter.plan(HW, TILING))
        assert next(bands).top == 0
        assert any(thread.name == "fcn-deploy-ahead" for thread in threading.enumerate())
        bands.close()
        assert not any(thread.name == "fcn-deploy-ahead" for thread in threading.enumerate())


# Without rasterio


WITHOUT = """
import json, sys
sys.modules["rasterio"] = None
from pathlib import Path
from fakes import Coded, CodedBackend
from fcn_deploy import outputs
from fcn_deploy.batch import segment_items
from fcn_deploy.items import Item
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.segment import Segmenter
outputs.STREAM_PIXELS = int(sys.argv[3])
model = Segmenter(CodedBackend(Coded(0, 3, 8)))
items = [Item(Path(name), Path(name).stem) for name in sys.argv[5:]]
try:
    done = segment_items(
        model, items, Path(sys.argv[1]), save=tuple(sys.argv[2].split(",")), mask_format=sys.argv[4]
    )
    print(json.dumps([report.error or report.status for report in done]))
except FcnDeployError as error:
    print(json.dumps([error.exit_code, str(error)]))
"""


def without_rasterio(
    out: Path, save_: str, mask_format: str, *sources: Path, stream: int = 1 << 30
) -> list[Any]:
    command = [sys.executable, "-c", WITHOUT, out, save_, stream, mask_format, *sources]
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    result: list[Any] = json.loads(done.stdout)
    return result


def test_without_rasterio_the_install_line_is_said_where_it_is_needed(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": TRANSFORM}
    bands = np.moveaxis(picture(hw=(40, 50)), 2, 0)
    geo = create(tmp_path / "geo.tif", bands, photometric="rgb", **place)
    plain = save(tmp_path / "plain.png", picture(hw=(40, 50)))
    tiff = save(tmp_path / "tiff.tif", picture(hw=(40, 50)))
    line = 'pip install "fcn-deploy[large]"'

    errors = without_rasterio(tmp_path / "a", "mask,confidence,overlay", "auto", geo, plain, tiff)
    assert line in errors[0]
    assert str(geo) in errors[0]
    assert errors[1:] == ["done", "done"]
    assert tree(tmp_path / "a") == [
        *("confidence/plain.png", "confidence/tiff.png", "mask/plain.png", "mask/tiff.png"),
        *("overlay/plain.jpg", "overlay/tiff.jpg"),
    ]
    # Masks without a place on earth need no rasterio.
    found = without_rasterio(tmp_path / "b", "mask", "png", geo, plain, tiff, stream=0)
    assert found == ["done"] * 3

    for kinds, mask_format in (("mask", "tiff"), ("probabilities", "auto"), ("polygons", "png")):
        code, words = without_rasterio(tmp_path / "c", kinds, mask_format, plain)
        assert code == 5
        assert line in words
        assert not (tmp_path / "c").exists()


# Property 10


MEASURE = """
import sys, threading
from collections.abc import Iterator
from pathlib import Path
import numpy as np
from fakes import Coded, CodedBackend
from fcn_deploy.batch import segment_items
from fcn_deploy.items import Item
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling
class Quick(Coded):
    def scores(self, crop):
        cells = crop[16::32, 16::32].astype(np.float32) / 32
        return np.ascontiguousarray(cells.transpose(2, 0, 1))
path, out = Path(sys.argv[1]), Path(sys.argv[2])
model = Segmenter(CodedBackend(Quick(0, 3, 32), workers=2))
(report,) = segment_items(
    model, [Item(path, path.stem)], out, save=("mask", "confidence"), tiling=Tiling((512, 512))
)
assert report.status == "done", report.error
status = Path("/proc/self/status").read_text()
print(int(status[status.index("VmHWM:") + 6 :].split()[0]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory as Linux tells it")
def test_property_10_peak_memory_does_not_grow_with_height(tmp_path: Path) -> None:
    block = picture(0, (240, 2048))
    peaks = []
    for height in (4200, 14_000):  # the taller one has 60 MB more of RGB, and 20 of labels
        path = tmp_path / f"{height}.tif"
        tall = np.concatenate([block] * (height // 240 + 1))[:height]
        save(path, tall, compression="packbits", strip_size=1 << 18)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, path, tmp_path / "out"],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        peaks.append(int(done.stdout))
        with Image.open(tmp_path / "out" / "mask" / f"{height}.png") as mask:
            assert mask.size == (2048, height)
    assert peaks[1] <= peaks[0] + 15, peaks


def test_names_are_kept_below_every_kind(tmp_path: Path, by_rows: list[tuple[int, int]]) -> None:
    save(tmp_path / "in/deep/a.b.png", picture(hw=(40, 33)))
    items = list_items([tmp_path / "in"])
    segment_items(model(), items, tmp_path / "out", save=KINDS)
    assert tree(tmp_path / "out") == [
        "confidence/deep/a.b.png",
        "mask/deep/a.b.png",
        "overlay/deep/a.b.tif",
        "polygons/deep/a.b.geojson",
        "probabilities/deep/a.b.tif",
    ]


@pytest.mark.usefixtures("by_rows")
def test_an_input_that_cannot_be_read_is_not_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = save(tmp_path / "good.png", picture()), save(tmp_path / "bad.png", picture())
    original = png_source._Scanlines.decode

    def decode(self: Any, start: int, stop: int) -> NDArray[np.uint8]:
        if self._path == bad and start > 40:
            raise OSError(errno.EIO, "Input/output error")  # a failing disk, a network share
        return original(self, start, stop)

    monkeypatch.setattr(png_source._Scanlines, "decode", decode)
    reports = run([bad, good], tmp_path / "out")
    assert [report.status for report in reports] == ["failed", "done"]


def test_the_overlay_of_a_streamed_png_without_rasterio_is_refused_before_work(
    tmp_path: Path,
) -> None:
    good = save(tmp_path / "a.png", picture())
    found = without_rasterio(tmp_path / "o", "mask,overlay", "auto", good, stream=0)
    assert "is written by rows" in found[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("what", ["model", "merge"])
def test_no_file_is_closed_while_it_is_read(what: str) -> None:
    class Slow:
        image_hw, reading = (2000, 150), False

        def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
            self.reading = True
            time.sleep(0.2)
            self.reading = False
            return np.zeros((stop - start, 150, 3), np.uint8)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    source, network = Slow(), Coded(0, 3, 8)
    place = network if what == "model" else network.upsampling
    setattr(place, "scores" if what == "model" else "labels", broken)
    model = Segmenter(CodedBackend(network, workers=2))
    bands = model.bands(source, model.plan((2000, 150), Tiling((96, 64), 32)))
    with pytest.raises(ZeroDivisionError), closing(bands):
        list(bands)
    assert not source.reading
    assert not any(thread.name == "fcn-deploy-ahead" for thread in threading.enumerate())
