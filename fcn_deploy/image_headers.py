"""Sizes of the images of a folder, from their headers: no pixel is decoded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fcn_deploy.errors import DataError, InputError
from fcn_deploy.image import open_image
from fcn_deploy.items import list_items
from fcn_deploy.quiet import quiet
from fcn_deploy.tiff_blocks import HEIGHT, WIDTH, read_tags

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
_ANY_SIZE = 1 << 62


def read_sizes(folder: Path) -> tuple[list[tuple[int, int]], int]:
    """Heights and widths of the images of a folder, searched recursively.

    Returns:
        Sizes in pixels as viewers show them, and how many files cannot be read.

    Raises:
        DataError: There is none, or none that can be read.
    """
    items = list_items([folder])
    sizes = []
    for item in items:
        with suppress(InputError):
            sizes.append(header_hw(item.source))
    if not sizes:
        raise DataError(f"None of the {len(items)} images in {folder} can be read.")
    return sizes, len(items) - len(sizes)


def header_hw(path: Path) -> tuple[int, int]:
    """Height and width in pixels as viewers show an image, however large it is.

    Raises:
        InputError: Its header cannot be read.
    """
    try:
        height, width, orientation = _of_tiff(path) or _of_others(path)
    except InputError:
        raise
    except Exception as error:  # EXIF blocks and tags are as breakable as pixels
        raise InputError(f"{path} has a damaged header.") from error
    if min(height, width) < 1:
        raise InputError(f"{path} has {width}x{height} pixels.")
    return (width, height) if orientation in _TURNED else (height, width)


def _of_tiff(path: Path) -> tuple[int, int, int] | None:
    """Of a TIFF, also of one that only GDAL reads."""
    tags = read_tags(path)
    if tags is None:
        return None
    return int(tags[HEIGHT]), int(tags[WIDTH]), int(tags.get(_ORIENTATION, 1))


def _of_others(path: Path) -> tuple[int, int, int]:
    with open_image(path, max_pixels=_ANY_SIZE) as image, quiet:  # of EXIF that is cut short
        # Of a PNG that has none before its pixels, Pillow would decode them to look behind.
        looked_for = image.format != "PNG" or "exif" in image.info
        orientation = int(image.getexif().get(_ORIENTATION, 1)) if looked_for else 1
        return image.height, image.width, orientation
