"""The worst image of a rung, side by side with what was wanted, and the pixel that is worst."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.image import colorize
from fcn_deploy.parity import margins_of
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec
from fcn_deploy.tiling import CropGrid
from fcn_deploy.verify.result import Picture, WorstPixel

Pixels = NDArray[np.uint8]

_GAP = 8
_WIDEST = 480  # of one panel: four of them fit a screen
_FLIP = (255, 0, 80)


def worst_picture(
    name: str, image: Pixels, wanted: Pixels, got: Pixels, spec: ModelSpec, agreement: float
) -> Picture:
    """Image, the reference's labels, the rung's, and where they differ, from left to right.

    Args:
        name: Of the image.
        image: uint8 (H, W, 3).
        wanted: Labels of the reference, uint8 (H, W).
        got: Labels of the rung.
        spec: Its colours.
        agreement: Share of pixels with the same label.
    """
    faded = (image // 3 + 160).astype(np.uint8)
    faded[_widened(wanted != got)] = _FLIP
    panels = [
        (image, Image.Resampling.LANCZOS),
        (colorize(wanted, spec.palette), Image.Resampling.NEAREST),
        (colorize(got, spec.palette), Image.Resampling.NEAREST),
        (faded, Image.Resampling.LANCZOS),
    ]
    scale = min(1.0, _WIDEST / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    sheet = Image.new("RGB", (4 * size[0] + 3 * _GAP, size[1]), (255, 255, 255))
    for number, (panel, smooth) in enumerate(panels):
        picture = Image.fromarray(panel).resize(size, smooth)
        sheet.paste(picture, (number * (size[0] + _GAP), 0))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    caption = (
        f"{name}, {agreement:.3%} equal: image, labels of the reference, labels of this, and in "
        "red where they differ"
    )
    return Picture(caption, file.getvalue())


def _widened(differs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A pixel more to all sides, so that single pixels are seen in a smaller picture."""
    wide = np.pad(differs, 1)
    height, width = differs.shape
    moved = [wide[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.asarray(np.logical_or.reduce(moved), np.bool_)


def worst_pixel(
    name: str, image: Pixels, wanted: Pixels, got: Pixels, grid: CropGrid, reference: Segmenter
) -> WorstPixel | None:
    """The pixel of an image whose label flipped although the reference was surest of it.

    Args:
        name: Of the image.
        image: uint8 (H, W, 3).
        wanted: Labels of the reference, uint8 (H, W).
        got: Labels of the rung.
        grid: The crops that both were made by.
        reference: What is believed.
    """
    classes = reference.spec.classes
    best: tuple[float, int, int] = (-1.0, 0, 0)
    low, high = np.inf, -np.inf
    for top, logits in reference.logit_bands(image, grid):
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
        rows = slice(top, top + logits.shape[1])
        margins = np.where(wanted[rows] != got[rows], margins_of(logits[None])[0], -1)
        place = int(margins.argmax())
        row, column = divmod(place, margins.shape[1])
        best = max(best, (float(margins[row, column]), top + row, column))
    margin, row, column = best
    if margin < 0:
        return None
    return WorstPixel(
        name,
        row,
        column,
        classes[int(wanted[row, column])],
        classes[int(got[row, column])],
        margin / (high - low) if high > low else 0.0,
    )
