"""Image files: what viewers show is what the network gets, and nothing broken gets through."""

from __future__ import annotations

import gc
import io
import os
import random
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.errors import DataError, EnvironmentFault, FcnDeployError, InputError
from fcn_deploy.image import (
    colorize,
    image_hw,
    open_image,
    overlay,
    read_image,
    read_mask,
    write_gray,
    write_mask,
    write_photo,
)
from fcn_deploy.spec import IGNORE, Color, voc_palette

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpg": {"quality": 95, "subsampling": 0},
    "bmp": {},
    "tif": {},
    "webp": {"lossless": True},
    "ppm": {},
    "gif": {},
}
PALETTE: tuple[Color, ...] = ((10, 20, 30), (200, 0, 0), (0, 0, 200))
ORIENTATIONS = range(1, 9)

# How a picture is stored so that a viewer, obeying the EXIF orientation, shows it upright.
TURN_BACK: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: np.rot90(shown, 1),  # shown after a quarter turn clockwise
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: np.rot90(shown, -1),
}


def picture(height: int, width: int, *, seed: int = 0) -> Pixels:
    """RGB noise in blocks of 8x8, so that even JPEG keeps it almost as it is."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


def encoded(pixels: Pixels, suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, Image.registered_extensions()[f".{suffix}"])
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int, *data: bytes, kind: bytes = b"IDAT") -> bytes:
    """A PNG by hand, 8-bit gray, whatever its header claims; ``kind`` names its last data chunk."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IDAT", part) for part in data[:-1]] + [chunk(kind, data[-1])]
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def save_turned(path: Path, shown: NDArray[Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURN_BACK[orientation](shown))
    Image.fromarray(stored).save(path, exif=exif, **FORMATS[path.suffix[1:]])


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("png", "RGB"),
        ("png", "L"),
        ("png", "I;16"),
        ("jpg", "RGB"),
        ("webp", "RGB"),
        ("tif", "RGB"),
        ("tif", "L"),
        ("tif", "I;16"),
    ],
)
def test_every_orientation_reads_as_viewers_show_it(tmp_path: Path, suffix: str, kind: str) -> None:
    upright = picture(24, 40)
    if kind != "RGB":
        upright = np.repeat(upright[:, :, :1], 3, axis=2)
    shown: NDArray[Any] = upright if kind == "RGB" else upright[:, :, 0]
    if kind == "I;16":
        shown = shown.astype(np.uint16) * 256 + 77
    for orientation in ORIENTATIONS:
        path = tmp_path / f"{orientation}.{suffix}"
        save_turned(path, shown, orientation)
        found = read_image(path)
        assert found.shape == upright.shape, orientation
        tolerance = 8 if suffix == "jpg" else 0
        np.testing.assert_allclose(found.astype(int), upright, atol=tolerance, err_msg=path.name)


@pytest.mark.parametrize(
    "suffix",
    [
        "png",
        "jpg",
        "webp",
        "tif",
    ],
)
def test_the_size_from_the_header_is_that_of_the_array(tmp_path: Path, suffix: str) -> None:
    for orientation in ORIENTATIONS:
        path = tmp_path / f"{orientation}.{suffix}"
        save_turned(path, picture(24, 40), orientation)
        assert image_hw(path) == (24, 40) == read_image(path).shape[:2], orientation


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    stored = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    for name, values in (("little", stored), ("big", stored.astype(">u2"))):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(values).save(path)
        assert read_image(path)[0, :, 1].tolist() == [0, 0, 1, 0x7F, 0x80, 0xFF]


@pytest.mark.parametrize("most", [4095, 65535])
def test_16_bit_pgm_is_scaled_too(tmp_path: Path, most: int) -> None:
    levels = np.array([0, most // 2, most], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 %d\n" % most + levels.tobytes())
    assert read_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize(("dtype", "word"), [(np.float32, "float"), (np.int32, "32-bit")])
def test_pixels_without_black_and_white_are_refused(
    tmp_path: Path, dtype: type[np.float32] | type[np.int32], word: str
) -> None:
    Image.fromarray(np.ones((4, 5), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a.tif has {word} pixels"):
        read_image(tmp_path / "a.tif")


def test_every_pixel_type_reads_as_rgb(tmp_path: Path) -> None:
    rgb = picture(16, 24)
    gray = np.repeat(rgb[:, :, :1], 3, axis=2)
    alpha = np.arange(16 * 24, dtype=np.uint8).reshape(16, 24, 1)
    bits = rgb[:, :, 0] > 127
    indexed = Image.fromarray(rgb).quantize(16)
    cases: dict[str, tuple[Image.Image, Pixels]] = {
        "gray.png": (Image.fromarray(rgb[:, :, 0]), gray),
        "alpha.png": (Image.fromarray(np.concatenate([rgb, alpha], 2)), rgb),
        "gray-alpha.png": (Image.fromarray(np.concatenate([gray[:, :, :1], alpha], 2)), gray),
        "bits.png": (Image.fromarray(bits), np.repeat(bits[:, :, None], 3, 2) * np.uint8(255)),
        "bits.tif": (Image.fromarray(bits), np.repeat(bits[:, :, None], 3, 2) * np.uint8(255)),
        "palette.png": (indexed, np.array(indexed.convert("RGB"))),
        "palette.gif": (indexed, np.array(indexed.convert("RGB"))),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=name)
        found[:] = 0  # the caller owns it
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red.save(tmp_path / "cmyk.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "cmyk.jpg").mean((0, 1)), (255, 0, 0), atol=6)


def test_of_animations_the_first_frame_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 0, 255)))
    for name in ("a.gif", "a.tif", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert (read_image(tmp_path / name) == (255, 0, 0)).all(), name


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(picture(8, 8), "png"))
    np.testing.assert_array_equal(read_image(tmp_path / "photo.jpg"), picture(8, 8))


def test_palettes_with_transparency_read_without_a_warning(tmp_path: Path) -> None:
    indexed = Image.fromarray(picture(16, 16)).quantize(8)
    indexed.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(indexed.convert("RGB")))


def test_a_broken_exif_block_does_not_spoil_the_picture(tmp_path: Path) -> None:
    Image.fromarray(picture(16, 16)).save(
        tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture(16, 16))


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = encoded(picture(64, 48), suffix)
    path = tmp_path / f"a.{suffix}"
    for size in (4, 12, len(whole) // 3, len(whole) * 2 // 3, len(whole) * 9 // 10):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"a.{suffix}"):
            read_image(path)
        with pytest.raises(DataError, match=f"a.{suffix}"):
            read_mask(path)


def test_a_png_with_fewer_rows_than_declared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(8, 8, zlib.compress((b"\0" + b"\xff" * 8) * 3)))
    with pytest.raises(InputError):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"no image at all\n" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, image_hw, open_image):
        with pytest.raises(InputError, match=r"a\.png"):
            read(path)
    with pytest.raises(DataError, match=r"a\.png"):
        read_mask(path)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for name in ("folder.png", "dangling.png", "missing.png"):
        with pytest.raises(InputError, match=name) as caught:
            read_image(tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 3
        with pytest.raises(DataError, match=name):
            read_mask(tmp_path / name)


class _HangError(BaseException):
    """Not an Exception, so that nothing takes it for a broken image."""


@contextmanager
def hangs_are_failures(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _HangError:
        pytest.fail(f"nothing came back in {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with hangs_are_failures(0.5), pytest.raises(InputError):
        read_image(tmp_path / "a.png")


# Both are whole images to Pillow: it is the allow-list that keeps them out.
def fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 4", "END")
    return "".join(f"{card:80}" for card in cards).ljust(2880).encode() + bytes(2880)


def eps() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "EPS")
    return file.getvalue()


@pytest.mark.parametrize(("kind", "content"), [("FITS", fits()), ("EPS", eps())])
def test_formats_outside_the_allow_list_are_refused(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with Image.open(path) as image:
        assert image.format == kind
    with pytest.raises(InputError, match="not an image") as caught:
        read_image(path)
    assert "JPEG, PNG" in caught.value.remedy


# The refused file stays open; reported by the test below that says so.
def test_the_pixel_limit_is_judged_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60_000, 60_000, b""))
    for read in (read_image, image_hw, open_image):
        with pytest.raises(InputError, match=r"a\.png"):
            read(path)
    with pytest.raises(DataError, match=r"a\.png"):
        read_mask(path)
    path.write_bytes(png_of(10, 10, zlib.compress(bytes(110))))
    assert read_image(path, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(InputError, match=r"10x10 pixels, the limit is 99") as caught:
        read_image(path, max_pixels=99)
    assert "--max-pixels" in caught.value.remedy


def test_a_refused_image_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(10, 10, zlib.compress(bytes(110))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(InputError):
            open_image(tmp_path / "a.png", max_pixels=99)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_the_limit_is_ours_and_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60_000, 60_000, b""))
    with open_image(path, max_pixels=60_000**2) as image:
        assert image.size == (60_000, 60_000)
    with pytest.raises(InputError, match="60000x60000 pixels, the limit is 200,000,000") as caught:
        open_image(path)
    assert "--max-pixels" in caught.value.remedy
    path.write_bytes(png_of(19_000, 10_000, b""))
    open_image(path).close()


def test_large_images_below_the_limit_decode_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.tif", compression="group4")
    assert read_mask(tmp_path / "a.tif").shape == (9_000, 10_000)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A small image of any format with a few bytes changed."""
    pixels = picture(24, 16)
    content = bytearray(encoded(pixels, draw(st.sampled_from(["png", "jpg", "gif", "webp"]))))
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.sampled_from([1, 4]))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


# The second half of the pixels lies in a chunk without a valid name: a SyntaxError, while decoding.
ROWS = zlib.compress(np.random.default_rng(0).integers(0, 9, (8, 9), np.uint8).tobytes())
BAD_CHUNK = png_of(8, 8, ROWS[:20], ROWS[20:], kind=b"\0?\0\0")

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def result_or_refusal(
    read: Callable[[Path], Result], path: Path, refusal: type[FcnDeployError]
) -> Result | FcnDeployError:
    try:
        return read(path)
    except refusal as error:
        seen = error
    assert str(path) in seen.problem
    assert len(str(seen).splitlines()) <= 3
    return seen


@given(content=damaged())
@example(content=BAD_CHUNK)
@FUZZ
def test_damage_gives_an_image_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = result_or_refusal(read_image, path, InputError)
    if not isinstance(found, FcnDeployError):
        assert found.dtype == np.uint8
        assert found.shape[2] == 3


@given(content=damaged())
@example(content=BAD_CHUNK)
@FUZZ
def test_damage_gives_a_mask_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = result_or_refusal(read_mask, path, DataError)
    if not isinstance(found, FcnDeployError):
        assert found.ndim in (2, 3)


@given(content=damaged())
@example(content=BAD_CHUNK)
@FUZZ
def test_damage_gives_a_size_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    found = result_or_refusal(image_hw, path, InputError)
    if not isinstance(found, FcnDeployError):
        assert min(found) > 0


LABELS = arrays.arrays(
    np.uint8,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.integers(0, 2) | st.just(IGNORE),
)


@given(labels=LABELS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_masks_read_back_equal_with_their_colors(tmp_path: Path, labels: Pixels) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, labels, PALETTE)
    with Image.open(path) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), labels)
        np.testing.assert_array_equal(np.array(mask.convert("RGB")), colorize(labels, PALETTE))
    np.testing.assert_array_equal(read_mask(path), labels)


@pytest.mark.parametrize("count", [1, 2, 3, 254, 255])
def test_all_256_ids_survive_whatever_the_palette(tmp_path: Path, count: int) -> None:
    # Pillow packs palettes of few colours into few bits; ids beyond must not be cut.
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "mask.png", labels[:, ::-1], voc_palette(count))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), labels[:, ::-1])
    colors = colorize(labels, voc_palette(count)).reshape(256, 3).tolist()
    assert colors[:count] == [list(color) for color in voc_palette(count)]
    assert colors[255] == [255, 255, 255]
    assert colors[count:255] == [[0, 0, 0]] * (255 - count)


def test_masks_are_read_as_stored(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    colors = colorize(ids, PALETTE)
    opaque = np.concatenate([colors, np.full((2, 3, 1), 9, np.uint8)], 2)
    wide = np.array([[0, 255, 300], [65535, 1, 2]], np.uint16)
    cases: dict[str, tuple[Image.Image, NDArray[Any]]] = {
        "gray.png": (Image.fromarray(ids), ids),
        "bits.png": (Image.fromarray(ids.astype(bool)), ids),
        "wide.png": (Image.fromarray(wide), wide),
        "wide.tif": (Image.fromarray(wide), wide),
        "colors.png": (Image.fromarray(colors), colors),
        "opaque.png": (Image.fromarray(opaque), colors),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        found = read_mask(tmp_path / name)
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert found.dtype in (np.uint8, np.uint16)
    Image.new("CMYK", (2, 2)).save(tmp_path / "cmyk.tif")
    with pytest.raises(DataError, match="CMYK"):
        read_mask(tmp_path / "cmyk.tif")


def test_ids_beyond_16_bits_do_not_become_classes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[65537, -65535]], np.int32)).save(tmp_path / "mask.tif")
    try:
        found = read_mask(tmp_path / "mask.tif")
    except DataError:
        return
    assert not (found == 1).any()


@given(
    labels=LABELS, alpha=st.sampled_from([0.0, 0.25, 0.55, 1.0]) | st.floats(0, 1), data=st.data()
)
@settings(max_examples=80, deadline=None)
def test_overlays_mix_exactly_and_leave_ignored_pixels(
    labels: Pixels, alpha: float, data: st.DataObject
) -> None:
    image = data.draw(arrays.arrays(np.uint8, (*labels.shape, 3)))
    before = image.copy()
    found = overlay(image, labels, PALETTE, alpha=alpha)
    np.testing.assert_array_equal(image, before)
    ignored = labels == IGNORE
    np.testing.assert_array_equal(found[ignored], image[ignored])
    colors = colorize(labels, PALETTE).astype(float)
    mixed = image * (1 - alpha) + colors * alpha
    # The weight has 8 fractional bits: half a step of it, and half a level of rounding.
    assert (np.abs(found - mixed)[~ignored] <= 0.5 + 255 / 512 + 1e-9).all()
    if alpha == 0:
        np.testing.assert_array_equal(found, image)
    if alpha == 1:
        np.testing.assert_array_equal(found[~ignored], colors[~ignored])


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_pixel_is_an_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (1, 1), (255, 255, 255)).save(path)
    assert read_image(path).tolist() == [[[255, 255, 255]]]
    assert image_hw(path) == (1, 1)
    write_mask(path.with_suffix(".mask"), np.full((1, 1), IGNORE, np.uint8), PALETTE)
    assert read_mask(path.with_suffix(".mask")).tolist() == [[IGNORE]]


def test_grays_read_back_equal_and_photos_almost(tmp_path: Path) -> None:
    values = picture(20, 33)
    write_gray(tmp_path / "gray.png", values[:, :, 0])
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png")[:, :, 2], values[:, :, 0])
    smooth = np.repeat(np.linspace(0, 255, 33 * 20).reshape(20, 33, 1), 3, 2).astype(np.uint8)
    write_photo(tmp_path / "photo.jpg", smooth)
    assert np.abs(read_image(tmp_path / "photo.jpg") - smooth.astype(int)).max() <= 8
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert photo.format == "JPEG"


def test_a_place_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    labels = np.zeros((2, 2), np.uint8)
    with pytest.raises(EnvironmentFault):
        write_mask(tmp_path / "file" / "mask.png", labels, PALETTE)
    with pytest.raises(EnvironmentFault):
        write_gray(tmp_path / "file" / "gray.png", labels)
    with pytest.raises(EnvironmentFault):
        write_photo(tmp_path / "file" / "photo.jpg", picture(2, 2))
