"""Images by rows: the same pixels as read whole, files that read back equal, bounded memory."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy import png_source, tiff_source
from fcn_deploy.errors import EnvironmentFault, InputError
from fcn_deploy.image import read_image, write_mask
from fcn_deploy.png_source import SIGNATURE, chunk
from fcn_deploy.row_files import PngWriter, is_georeferenced, open_rows
from fcn_deploy.row_reader import RowReader
from fcn_deploy.spec import voc_palette

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 150, 90
SOME = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def picture(height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """Waves and some noise, RGB; every filter of PNG is the best one somewhere."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([rows * 3, 127 + 90 * np.sin(columns / 9), rows + columns], 2)
    noise = np.random.default_rng(0).integers(0, 40, waves.shape) * (columns > 40)[:, :, None]
    pixels: Pixels = (waves + noise).astype(np.uint8)
    return pixels


def read_by(source: RowReader, heights: list[int]) -> Pixels:
    """All rows, in windows whose heights come round and round."""
    windows: list[Pixels] = []
    start = 0
    with source:
        while start < source.image_hw[0]:
            stop = min(start + heights[len(windows) % len(heights)], source.image_hw[0])
            windows.append(source.rows(start, stop))
            start = stop
    return np.concatenate(windows)


def same_by_rows(path: Path, heights: list[int]) -> None:
    source = open_rows(path)
    assert source is not None
    np.testing.assert_array_equal(read_by(source, heights), read_image(path))


def images() -> dict[str, Image.Image]:
    rgb = picture()
    color, gray = Image.fromarray(rgb), Image.fromarray(rgb[:, :, 1])
    wide = Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 255 + rgb[:, :, 2])
    opaque = color.copy()
    opaque.putalpha(gray)
    return {
        "gray": gray,
        "gray-alpha": Image.merge("LA", (gray, gray)),
        "rgb": color,
        "rgba": opaque,
        "palette": color.quantize(200),
        "few": color.quantize(7),
        "bits": gray.convert("1"),
        "wide": wide,
        "cmyk": color.convert("CMYK"),
        "lab": Image.merge("LAB", color.split()),
        "ycbcr": color.convert("YCbCr"),
    }


PNG_KINDS = ("gray", "gray-alpha", "rgb", "rgba", "palette", "wide")
TIFF_KINDS = ("gray", "gray-alpha", "rgb", "rgba", "palette", "bits", "wide", "cmyk")
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows, so that small images have many."""
    monkeypatch.setattr(png_source, "PIECE_PIXELS", 23 * WIDTH)
    monkeypatch.setattr(tiff_source, "PIECE_PIXELS", 23 * WIDTH)


@pytest.mark.parametrize("kind", PNG_KINDS)
@given(heights=st.lists(st.integers(1, 70), min_size=1, max_size=5))
@SOME
def test_png_by_rows_is_png_as_a_whole(tmp_path: Path, kind: str, heights: list[int]) -> None:
    path = tmp_path / f"{kind}.png"
    if not path.exists():
        images()[kind].save(path)
    same_by_rows(path, heights)


@pytest.mark.parametrize("filtering", range(5))
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_every_filter_of_png(tmp_path: Path, filtering: int, kind: int) -> None:
    # Any bytes are a valid filtered row. Split in odd places, as encoders do.
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    rows = np.random.default_rng(kind).integers(0, 256, (64, 1 + 9 * bands), np.uint8)
    rows[:, 0] = filtering
    data = zlib.compress(rows.tobytes())
    header = struct.pack(">IIBBBBB", 9, 64, 8, kind, 0, 0, 0)
    parts = [chunk(b"IDAT", data[at : at + 77]) for at in range(0, len(data), 77)]
    content = (SIGNATURE, chunk(b"IHDR", header), *parts, chunk(b"IDAT", b""), chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"".join(content))
    same_by_rows(tmp_path / "a.png", [1, 30, 7])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_tiff_by_rows_is_tiff_as_a_whole(
    tmp_path: Path, kind: str, compression: str | None
) -> None:
    path = tmp_path / "a.tif"
    try:
        images()[kind].save(path, compression=compression, tiffinfo={278: 16})
        read_image(path)
    except (OSError, ValueError, InputError) as error:
        pytest.skip(f"Pillow does not: {error}")
    same_by_rows(path, [1, 50, 13])


def test_fax_tiff_by_rows(tmp_path: Path) -> None:
    for compression in ("group3", "group4", "tiff_ccitt"):
        path = tmp_path / f"{compression}.tif"
        images()["bits"].save(path, compression=compression, strip_size=300)
        same_by_rows(path, [7, 31])


def test_what_cannot_be_cut_is_left_to_read_image(tmp_path: Path) -> None:
    color = images()["rgb"]
    color.save(tmp_path / "photo.jpg")
    color.save(tmp_path / "a.bmp")
    images()["few"].save(tmp_path / "few.png", bits=4)
    images()["bits"].save(tmp_path / "bits.png")
    color.save(tmp_path / "moving.png", save_all=True, append_images=[color.rotate(180)])
    color.save(tmp_path / "one-strip.tif", compression="tiff_lzw", strip_size=10**7)
    Image.fromarray(np.ones((4, 5), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.ones((4, 5), np.int32)).save(tmp_path / "int.tif")
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "tif"):
            color.save(tmp_path / f"turned-{orientation}.{suffix}", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        assert open_rows(path) is None, path.name


def test_the_orientation_of_a_png_may_come_after_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    images()["rgb"].save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:])
    assert read_image(path).shape == (WIDTH, HEIGHT, 3)
    assert open_rows(path) is None
    exif[0x0112] = 1
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:])
    same_by_rows(path, [40])


def read_all(path: Path) -> Pixels | None:
    source = open_rows(path)
    return None if source is None else read_by(source, [40])


@pytest.mark.parametrize("name", ["a.png", "raw.tif", "lzw.tif", "deflate.tif", "jpeg.tif"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    kind = {"raw": None, "lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate", "jpeg": "jpeg"}
    options: dict[str, Any] = {} if name == "a.png" else {"compression": kind[path.stem]}
    images()["rgb"].save(path, **options)
    whole = path.read_bytes()
    for size in (0, 4, 12, 60, *(len(whole) * part // 10 for part in range(1, 10))):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=name) as caught:
            # Where there is no reading by rows, it is read_image that refuses.
            _ = read_image(path) if read_all(path) is None else None
        assert len(str(caught.value).splitlines()) <= 3, size


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@given(data=st.data())
@SOME
def test_damage_gives_the_same_pixels_or_an_error(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    path = tmp_path / name
    images()["rgb"].save(path, **({"compression": "tiff_lzw"} if name == "a.tif" else {}))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    by_rows = None
    with suppress(InputError):
        by_rows = read_all(path)
    if by_rows is not None:
        np.testing.assert_array_equal(by_rows, read_image(path))


def test_changed_pixels_of_a_png_are_noticed(tmp_path: Path) -> None:
    # Stored, not compressed: only the checksum can tell.
    rows = np.concatenate([np.zeros((HEIGHT, 1), np.uint8), picture()[:, :, 0]], 1)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows.tobytes(), 0))
    content = bytearray(SIGNATURE + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png is damaged"):
        read_all(tmp_path / "a.png")


def test_blocks_that_were_never_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    images()["rgb"].save(path, compression="tiff_lzw", strip_size=3000)
    with Image.open(path) as image:
        sizes = image.tag_v2[279]  # type: ignore[attr-defined]
    content = path.read_bytes()
    packed = struct.pack(f"<{len(sizes)}H", *sizes)
    if packed not in content:
        packed = struct.pack(f"<{len(sizes)}I", *sizes)
    path.write_bytes(content.replace(packed, bytes(4) + packed[4:]))
    with pytest.raises(InputError, match=r"a\.tif lacks . of its"):
        open_rows(path)


def test_windows_come_in_order_and_the_limit_is_that_of_whole_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    images()["rgb"].save(path)
    source = open_rows(path)
    assert source is not None
    with source, pytest.raises(ValueError, match="after row 0"):
        source.rows(10, 20)
    with pytest.raises(InputError, match="90x150 pixels, the limit is 99"):
        open_rows(path, max_pixels=99)


def test_georeferenced_is_told_by_the_tags(tmp_path: Path) -> None:
    color = images()["rgb"]
    color.save(tmp_path / "plain.tif")
    color.save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "text.tif").write_bytes(b"II*\0 and no more")
    for path in [*tmp_path.iterdir(), tmp_path / "missing.tif"]:
        assert not is_georeferenced(path), path.name
    for tag, value in ((33550, (1.0, 1.0, 0.0)), (34264, tuple(map(float, range(16))))):
        color.save(tmp_path / "geo.tif", tiffinfo={tag: value})
        assert is_georeferenced(tmp_path / "geo.tif")


LABELS = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(labels=LABELS, colored=st.booleans(), heights=st.lists(st.integers(0, 20), max_size=5))
@settings(SOME, max_examples=40)
def test_what_is_written_reads_back_equal(
    tmp_path: Path, labels: Pixels, colored: bool, heights: list[int]
) -> None:
    palette = voc_palette(11) if colored else None
    with PngWriter(tmp_path / "a.png", labels.shape, palette=palette) as writer:
        for part in np.split(labels, np.minimum(np.cumsum(heights), len(labels)).astype(int)):
            writer.write(part)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("P" if colored else "L")
        np.testing.assert_array_equal(np.asarray(image), labels)
        found = image.getpalette()
    write_mask(tmp_path / "b.png", labels, voc_palette(11))
    with Image.open(tmp_path / "b.png") as image:
        assert found is None or found == image.getpalette()


def test_too_few_and_too_many_rows_are_bugs_and_leave_nothing(tmp_path: Path) -> None:
    rows = np.zeros((5, 8), np.uint8)
    with pytest.raises(ValueError, match="5 of 6 rows"), PngWriter(tmp_path / "a", (6, 8)) as few:
        few.write(rows)
    with pytest.raises(ValueError, match="5 rows of 4"), PngWriter(tmp_path / "a", (4, 8)) as many:
        many.write(rows)
    with pytest.raises(ValueError, match="9 wide"), PngWriter(tmp_path / "a", (5, 9)) as narrow:
        narrow.write(rows)
    with suppress(KeyError), PngWriter(tmp_path / "a", (5, 8)) as writer:
        writer.write(rows)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """As near as a test comes: no file may grow beyond ``free`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_environment_fault_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    writer = PngWriter(tmp_path / "a.png", (400, 400))
    with full_disk(50_000), pytest.raises(EnvironmentFault, match="Cannot write"), writer:
        writer.write(noise)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault), PngWriter(tmp_path / "file" / "a.png", (1, 1)):
        pass


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from fcn_deploy.row_files import PngWriter, open_rows
height, folder = int(sys.argv[1]), Path(sys.argv[2])
rows = np.random.default_rng(0).integers(0, 30, (500, 2000), np.uint8)
with PngWriter(folder / "a.png", (height, 2000)) as writer:
    for _ in range(height // 500):
        writer.write(rows)
with open_rows(folder / "a.png") as source:
    for start in range(0, height, 500):
        assert (source.rows(start, start + 500)[:, :, 1] == rows).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(code: str, *arguments: object) -> int:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stderr == ""
    return int(run.stdout)


def test_memory_does_not_grow_with_height(tmp_path: Path) -> None:
    # The taller one has 60 MB more of RGB.
    low, tall = (peak_mib(MEASURE, height, tmp_path) for height in (2_000, 12_000))
    assert tall < low + 30


Read = Callable[[Path], object]
READERS: tuple[Read, ...] = (open_rows, read_image)


@pytest.mark.parametrize("read", READERS)
def test_pipes_and_missing_files_are_refused(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "a.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
