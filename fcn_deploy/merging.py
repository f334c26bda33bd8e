"""Crops of scores or of logits to decided pixels, band by band: NumPy only, no files, no vendor.

Averaging and transposed convolution are both linear, so that the crops that cover a pixel can be
averaged *before* the last transposed convolution, at 1/s of the height and width: that is
:func:`merge_scores`. The image falls into regions between the edges of crops. All pixels of a
region are covered by the same crops, and so are made of the average of their cells, with one cell
around: zeros outside of each crop, where the network's own upsampling sees zeros, too, or its
outermost cells once more, where that is a bilinear resize. Every pixel is upsampled once, and no
logits of more than a few rows of cells are ever held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.tiling import CropGrid, Span
from fcn_deploy.upsample import (
    Fields,
    FloatArray,
    Upsampler,
    Wanted,
    as_pixels,
    fields_of,
    with_border,
)

Blend = Literal["mean", "gaussian", "hann"]
BLENDS: tuple[Blend, ...] = get_args(Blend)

_BAND_BYTES = 1 << 20
"""About as many labels are decided at once."""


def blend_window(blend: Blend, size: int) -> FloatArray:
    """Weight of each pixel along one side of a crop: float32 (size,), positive up to the border.

    ``gaussian`` has a standard deviation of an eighth of the crop, as in MONAI and nnU-Net.
    ``hann`` is taken at pixel centres: at the usual places its ends are 0, and a pixel that only
    one crop covers would be 0 / 0.
    """
    place = (np.arange(size) + 0.5) / size
    if blend == "gaussian":
        return np.exp(-0.5 * ((place - 0.5) * 8) ** 2).astype(np.float32)
    if blend == "hann":
        return (np.sin(np.pi * place) ** 2).astype(np.float32)
    return np.ones(size, np.float32)


@dataclass(frozen=True)
class Band:
    """Decided rows of an image, the image's padding cut away.

    Attributes:
        top: First row in the image.
        fields: Of (rows, W) pixels.
    """

    top: int
    fields: Fields

    @classmethod
    def inside(cls, top: int, fields: Fields, image_hw: tuple[int, int]) -> Band:
        """Rows of the padded image, cut to the image itself."""
        rows, columns = image_hw[0] - top, image_hw[1]
        return cls(top, fields.map(lambda part: part[..., :rows, :columns]))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.fields.labels.shape[0])


def merge_scores(
    grid: CropGrid,
    scores: Iterable[FloatArray],
    upsampling: Upsampler,
    *,
    wanted: Wanted = Wanted(),
    blend: Blend = "mean",
) -> Iterator[Band]:
    """Merge scores, upsample once, and decide.

    Args:
        grid: The plan that the crops were cut by.
        scores: One float32 (C, h / s, w / s) per crop, in the order of the plan.
        upsampling: The last transposed convolution, of stride s, which divides ``grid.step``.
        wanted: What to compute beside labels.
        blend: Weights of the pixels of a crop in the average.

    Yields:
        Bands from the top without gaps.
    """
    crops = iter(scores)
    merge = _Merge(grid, upsampling, wanted, blend if grid.halo is None else "mean")
    spans = deque(grid.row_spans)
    alive: dict[int, list[FloatArray]] = {}  # rows of crops that undecided pixels need
    for row in range(len(grid.tops)):
        alive[row] = [with_border(next(crops), upsampling.border) for _ in grid.lefts]
        while spans and spans[0].crops.stop == row + 1:
            span = spans.popleft()
            yield from merge.decide(span, alive)
            for done in [r for r in alive if not spans or r < spans[0].crops.start]:
                del alive[done]


Alive = dict[int, list[FloatArray]]
"""Scores of rows of crops, by the number of the row; each (h + 2, w + 2, C)."""


@dataclass(frozen=True)
class _Merge:
    """One merging of scores: what stays the same from span to span."""

    grid: CropGrid
    upsampling: Upsampler
    wanted: Wanted
    blend: Blend

    @cached_property
    def columns(self) -> list[Span]:
        return self.grid.column_spans

    @cached_property
    def weights(self) -> tuple[FloatArray, FloatArray]:
        rows, columns = (blend_window(self.blend, size) for size in self.grid.crop_hw)
        return rows, columns

    def decide(self, span: Span, alive: Alive) -> Iterator[Band]:
        """Decide the rows of a span across the image, in pieces that bound what is held."""
        s, height = self.upsampling.stride, self.grid.image_hw[0]
        windows = span.size // s + 1
        pixel_bytes = self.upsampling.num_classes if self.wanted.probabilities else 1
        step = max(_BAND_BYTES // (self.grid.padded_hw[1] * s * pixel_bytes), 1)
        for first in range(0, windows, step):
            last = min(first + step, windows)
            # Windows lie between cells: the first and the last of a span reach half out of it.
            top = max(span.start + first * s - s // 2, span.start)
            bottom = min(span.start + last * s - s // 2, span.stop)
            if top >= min(bottom, height):
                continue  # nothing but padding
            band = self.wanted.empty(
                (bottom - top, self.grid.padded_hw[1]), self.upsampling.num_classes
            )
            alone, blended = self._sorted(span)
            if alone:
                self._average(band, span, (first, last), alone, alive)
            for column in blended:
                self._blend(band, (top, bottom), span, (first, last), column, alive)
            yield Band.inside(top, band, self.grid.image_hw)

    def _sorted(self, span: Span) -> tuple[list[Span], list[Span]]:
        """Columns whose cells can be averaged, and those whose pixels have weights of their own."""
        if self.blend == "mean":
            return self.columns, []
        alone = [c for c in self.columns if len(span.crops) * len(c.crops) == 1]
        return alone, [c for c in self.columns if len(span.crops) * len(c.crops) > 1]

    def _cells(
        self, span: Span, column: Span, alive: Alive, crop: tuple[int, int], rows: tuple[int, int]
    ) -> FloatArray:
        """A crop's cells around windows ``rows`` of a region: a view (rows + 1, K + 2, C)."""
        s, (row, col) = self.upsampling.stride, crop
        top = (span.start - self.grid.tops[row]) // s
        left = (column.start - self.grid.lefts[col]) // s
        part = slice(top + rows[0], top + rows[1] + 1)
        return alive[row][col][part, left : left + column.size // s + 2]

    def _average(
        self, band: Fields, span: Span, rows: tuple[int, int], columns: list[Span], alive: Alive
    ) -> None:
        """Decide regions by the average of their crops' cells, side by side in one go."""
        s, offset = self.upsampling.stride, 0
        cells, left = [], []
        for column in columns:
            crops = [(r, c) for r in span.crops for c in column.crops]
            region = self._cells(span, column, alive, crops[0], rows)
            for crop in crops[1:]:
                region = region + self._cells(span, column, alive, crop, rows)
            cells.append(region if len(crops) == 1 else region * np.float32(1 / len(crops)))
            left.append(np.arange(offset, offset + column.size // s + 1))
            offset += column.size // s + 2
        pixels, places = self._decided(np.concatenate(cells, 1), np.concatenate(left))
        window = 0
        for column in columns:
            start = (s // 2 if rows[0] == 0 else 0, int(places[window]) + s // 2)
            _copy(pixels, start, band, column)
            window += column.size // s + 1

    def _decided(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> tuple[Fields, NDArray[np.intp]]:
        """Fields of all windows, laid out as pixels, and at which column each window begins."""
        if not self.wanted:
            labels, places = self.upsampling.pixels(cells, left)
            return Fields(labels), places
        pieces = [
            fields_of(logits, self.wanted).map(as_pixels).arrays()
            for _, logits in self.upsampling.logits(cells, left)
        ]
        joined = iter([np.concatenate(parts, -2) for parts in zip(*pieces, strict=True)])
        fields = self.wanted.empty((0, 0), 0).map(lambda _: next(joined))
        return fields, np.arange(len(left)) * self.upsampling.stride

    def _blend(
        self,
        band: Fields,
        extent: tuple[int, int],
        span: Span,
        rows: tuple[int, int],
        column: Span,
        alive: Alive,
    ) -> None:
        """Decide the rows ``extent`` of a region by the weighted average of its crops' logits."""
        s, (top, bottom) = self.upsampling.stride, extent
        skip = s // 2 if rows[0] == 0 else 0
        left = np.arange(column.size // s + 1)
        total, weight = np.zeros((), np.float32), np.zeros((), np.float32)
        for row in span.crops:
            for col in column.crops:
                cells = self._cells(span, column, alive, (row, col), rows)
                parts = [as_pixels(part) for _, part in self.upsampling.logits(cells, left)]
                logits = np.concatenate(parts, 1)[
                    :, skip : skip + bottom - top, s // 2 : s // 2 + column.size
                ]
                y = self.weights[0][top - self.grid.tops[row] : bottom - self.grid.tops[row]]
                start = column.start - self.grid.lefts[col]
                x = self.weights[1][start : start + column.size]
                here = y[:, None] * x
                total, weight = total + logits * here, weight + here
        _copy(fields_of(total / weight, self.wanted), (0, 0), band, column)


def _copy(source: Fields, start: tuple[int, int], band: Fields, column: Span) -> None:
    """Fill columns of a band from the pixel ``start`` of ``source``."""
    for part, whole in zip(source.arrays(), band.arrays(), strict=True):
        rows, columns = (
            slice(start[0], start[0] + whole.shape[-2]),
            slice(start[1], start[1] + column.size),
        )
        whole[..., column.start : column.stop] = part[..., rows, columns]
