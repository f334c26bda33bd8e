"""Images and masks as they lie inside a page: small, and as text."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.segment import RowSource
from fcn_deploy.spec import IGNORE, Color

LONGEST_SIDE = 960
"""Of a picture in a page, in pixels."""

JPEG_QUALITY = 80
_ROWS_AT_ONCE = 4 * 1024 * 1024
RIGHT, WRONG, UNKNOWN = 0, 1, 2
_ERRORS: tuple[Color, ...] = ((0, 0, 0), (225, 29, 72), (148, 148, 148))


def fitted_hw(image_hw: tuple[int, int], side: int = LONGEST_SIDE) -> tuple[int, int]:
    """Height and width of a picture of an image that is no longer than ``side``."""
    scale = min(1.0, side / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def shrunk(source: RowSource, side: int = LONGEST_SIDE) -> NDArray[np.uint8]:
    """A small picture, RGB uint8 (h, w, 3), of an image that is read by rows and never whole.

    Raises:
        InputError: The image is damaged.
    """
    height, width = source.image_hw
    factor = max(1, max(height, width) // side)
    rows = max(1, _ROWS_AT_ONCE // (width * factor)) * factor
    parts = []
    for top in range(0, height, rows):
        block = Image.fromarray(source.rows(top, min(top + rows, height)))
        parts.append(np.asarray(block.reduce(factor)))
    hw = fitted_hw((height, width), side)
    small = Image.fromarray(np.concatenate(parts))
    return np.asarray(small.resize(hw[::-1], Image.Resampling.LANCZOS))


def shrunk_labels(labels: NDArray[np.uint8], side: int = LONGEST_SIDE) -> NDArray[np.uint8]:
    """Labels (H, W) at the size of their picture; they are picked, for there is no average."""
    hw = fitted_hw((labels.shape[0], labels.shape[1]), side)
    return np.asarray(Image.fromarray(labels).resize(hw[::-1], Image.Resampling.NEAREST))


def photo_uri(image: NDArray[np.uint8]) -> str:
    """RGB (H, W, 3) uint8 as the address of a JPEG that is its own content."""
    return _uri("jpeg", Image.fromarray(image), quality=JPEG_QUALITY, optimize=True)


def mask_uri(labels: NDArray[np.uint8], palette: Sequence[Color]) -> str:
    """Labels (H, W) in their colours, as a PNG like :func:`photo_uri`; what is ignored is clear."""
    # One entry beyond the classes is for what is ignored: up to 15 classes take 4 bits a pixel.
    ids = np.where(labels == IGNORE, len(palette), labels).astype(np.uint8)
    return _palette_uri(ids, (*palette, (0, 0, 0)), clear=len(palette))


def errors_uri(prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> str:
    """Where two masks (H, W) differ: red, gray where the truth is unknown, clear elsewhere."""
    kinds = np.where(prediction == truth, RIGHT, WRONG).astype(np.uint8)
    kinds[truth == IGNORE] = UNKNOWN
    return _palette_uri(kinds, _ERRORS, clear=RIGHT)


def _palette_uri(ids: NDArray[np.uint8], palette: Sequence[Color], *, clear: int) -> str:
    picture = Image.fromarray(ids).convert("L")
    picture.putpalette(bytes(channel for color in palette for channel in color))
    return _uri("png", picture, optimize=True, transparency=clear)


def _uri(kind: str, picture: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode('ascii')}"
