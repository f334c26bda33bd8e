"""Image files to RGB arrays, and labels to files: masks, overlays, confidence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.errors import DataError, InputError
from fcn_deploy.png_rows import rows_are_missing
from fcn_deploy.quiet import quiet
from fcn_deploy.spec import IGNORE, Color

# An allow-list: Pillow knows formats that run other programs (EPS) or expand without bound (FITS).
# "JPEG" covers the MPO files of phones.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pnm", ".gif"}
)
MAX_PIXELS = 200_000_000
"""Images beyond this are refused from their header: a small file can claim any size."""

IGNORE_COLOR = (255, 255, 255)


_PILLOWS_LIMIT = threading.RLock()


@contextmanager
def _our_own_limit() -> Iterator[None]:
    """Set aside Pillow's limit (an error from 179 MP), which is one for the whole process.

    Ours is checked against the same header, before anything is decoded.
    """
    with _PILLOWS_LIMIT, quiet:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file and check its header; pixels are not decoded yet.

    Raises:
        InputError: Not a readable image of an allowed format, or larger than ``max_pixels``.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("a pipe or device, not a file")  # Pillow would wait for it
        with _our_own_limit():
            image = Image.open(path, formats=FORMATS)
        # Pillow maps uncompressed gray files, and TIFF with the width after turning: scrambled.
        image.filename = ""
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image that can be read.",
            f"Readable formats: {', '.join(FORMATS)}.",
        ) from error
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError and more
        raise _unreadable(path, error) from error
    if image.width * image.height > max_pixels:
        image.close()
        raise InputError(
            f"{path} has {image.width}x{image.height} pixels, the limit is {max_pixels:,}.",
            "If you trust the file, raise the limit: --max-pixels N",
        )
    return image


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as RGB uint8 (H, W, 3), in the orientation in which viewers show it.

    Of animated and multi-page files the first frame is read; alpha and colour profiles are
    ignored; 16-bit gray is scaled to 8 bits, not clipped. The caller owns the array.

    Raises:
        InputError: Not readable, damaged, too large, or of a pixel type without a defined range.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        try:
            _refuse_misread(image, path)
            # Exceptions of exif_transpose, too: EXIF blocks are as breakable as pixels.
            upright = _decode(image, path)
            if image.format == "PPM" and upright.mode == "I":  # 16 bits; Pillow has scaled it
                gray = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if upright.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
                # convert("RGB") would clip at 255 and give an almost white picture.
                gray = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if upright.mode in ("I", "F"):
                raise InputError(
                    f"{path} has {(upright.mode == 'F' and 'float') or '32-bit'} pixels, "
                    "whose black and white are not defined.",
                    "Convert it to 8 or 16 bits a channel.",
                )
            with quiet:  # transparency is ignored on purpose
                return np.array(upright.convert("RGB"))
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error


def _refuse_misread(image: Image.Image, path: Path) -> None:
    # Of TIFF with 16 bits and a plane for each channel, uncompressed, Pillow 13 takes every other
    # byte for a pixel, without a word.
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(284) == 2 and 16 in tuple(tags.get(258, ())) and len(image.getbands()) > 1:
        raise InputError(
            f"{path} is a TIFF with planes of 16 bits, which Pillow reads wrongly.",
            'Convert it to 8 bits, or: pip install "fcn-deploy[large]"',
        )


def _decode(image: Image.Image, path: Path) -> Image.Image:
    with _our_own_limit():
        ImageOps.exif_transpose(image, in_place=True)
    _refuse_missing_rows(image, path)
    return image


def _refuse_missing_rows(image: Image.Image, path: Path) -> None:
    # Of a PNG with fewer rows than declared, Pillow leaves the rest black without a word. Only
    # black rows make it worth counting what the file holds.
    if image.format != "PNG":
        return
    pixels = np.asarray(image)
    black = not pixels.reshape(pixels.shape[0], -1).any(1).all()
    if black and rows_are_missing(path):
        raise InputError(f"{path} holds fewer rows of pixels than it declares.")


def image_hw(path: Path, *, decode: bool = False) -> tuple[int, int]:
    """Height and width of an image as viewers show it.

    Args:
        path: The file.
        decode: Also decode the pixels, as coarsely as the format allows, so that damage shows.

    Raises:
        InputError: As :func:`open_image`; with ``decode`` also for damaged pixels.
    """
    with open_image(path) as image:
        try:
            with quiet:
                orientation = image.getexif().get(0x0112, 1)
            # Of TIFF, Pillow gives the size after turning.
            turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
            hw = (image.width, image.height) if turned else (image.height, image.width)
            if decode:
                image.draft("RGB", (1, 1))  # JPEG: an eighth of the size, a third of the time
                with _our_own_limit():
                    image.load()
                _refuse_missing_rows(image, path)
        except InputError:
            raise
        except Exception as error:  # of PNG, reading EXIF decodes the pixels
            raise _unreadable(path, error) from error
        return hw


def read_mask(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a mask file as stored: ids (H, W) of a palette or gray file, or colours (H, W, 3).

    Raises:
        DataError: Not readable, or neither palette, gray nor RGB.
    """
    try:
        with open_image(path) as image:
            with _our_own_limit():
                image.load()
            _refuse_missing_rows(image, path)
            if image.mode in ("P", "L"):
                return np.array(image)
            if image.mode == "I" and not _fits_16_bits(np.asarray(image)):
                raise DataError(f"{path} has ids beyond 16 bits.")
            if image.mode in ("I;16", "I;16B", "I"):
                return np.array(image).astype(np.uint16)
            if image.mode == "1":
                return np.array(image).astype(np.uint8)
            if image.mode in ("RGB", "RGBA"):
                return np.array(image.convert("RGB"))
            raise DataError(f"{path} has pixels of mode {image.mode}, not palette, gray or RGB.")
    except InputError as error:
        raise DataError(error.problem, error.remedy) from error
    except DataError:
        raise
    except Exception as error:  # Pillow raises ValueError, SyntaxError and more
        raise DataError(f"{path} is damaged: {error}.") from error


def _fits_16_bits(ids: NDArray[np.int32]) -> bool:
    return int(ids.min()) >= 0 and int(ids.max()) <= 0xFFFF


def write_mask(path: Path, labels: NDArray[np.uint8], palette: tuple[Color, ...]) -> None:
    """Write labels (H, W) uint8 as a palette PNG that reads back equal in mode ``P``.

    The palette has 256 entries, so that :data:`~fcn_deploy.spec.IGNORE` shows as white.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    mask = Image.fromarray(labels).convert("L")
    mask.putpalette(_palette_bytes(palette))
    with atomic_path(path) as temporary:
        mask.save(temporary, format="PNG")


def write_gray(path: Path, values: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8 as a gray PNG.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


def write_photo(path: Path, image: NDArray[np.uint8]) -> None:
    """Write RGB (H, W, 3) uint8 as JPEG; for pictures to look at, where losses do not matter.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=90)


def colorize(labels: NDArray[np.uint8], palette: tuple[Color, ...]) -> NDArray[np.uint8]:
    """Colours of labels: (H, W) to RGB (H, W, 3), both uint8; ignored pixels are white."""
    table = np.frombuffer(_palette_bytes(palette), np.uint8).reshape(256, 3)
    colors: NDArray[np.uint8] = table[labels]
    return colors


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    palette: tuple[Color, ...],
    *,
    alpha: float = 0.55,
) -> NDArray[np.uint8]:
    """Lay the colours of labels (H, W) over an RGB image (H, W, 3); all uint8.

    Args:
        image: The picture below.
        labels: Class ids; ignored pixels stay as they are.
        palette: One colour per class.
        alpha: Weight of the colour in [0, 1].
    """
    # Fixed point with 8 fractional bits: a third of the time and an eighth of the memory of float.
    weight = np.where(labels == IGNORE, 0, round(alpha * 256)).astype(np.uint16)[:, :, None]
    mixed = image * (np.uint16(256) - weight) + colorize(labels, palette) * weight
    shifted: NDArray[np.uint8] = ((mixed + 128) >> 8).astype(np.uint8)
    return shifted


def _palette_bytes(palette: tuple[Color, ...]) -> bytes:
    unused = [(0, 0, 0)] * (IGNORE - len(palette))
    return bytes(c for color in (*palette, *unused, IGNORE_COLOR) for c in color)


def _unreadable(path: Path, error: Exception) -> InputError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    cause = cause.replace(str(path), "").replace(repr(str(path)), "").strip(" :'\"")
    return InputError(f"{path} cannot be read: {cause}.")
