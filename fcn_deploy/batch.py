"""Many images: in what order they go through the network, and what became of each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import EnvironmentFault, InputError, UsageError
from fcn_deploy.image import MAX_PIXELS
from fcn_deploy.items import Item
from fcn_deploy.merging import Band
from fcn_deploy.outputs import (
    KINDS,
    MASK_FORMATS,
    MaskFormat,
    Outputs,
    georeference_of,
    open_source,
    read_small,
)
from fcn_deploy.read_ahead import mapped
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling import CropGrid
from fcn_deploy.tiling_options import Tiling

OnRows = Callable[["Item", CropGrid, int], None]
"""Called with the image, its plan, and how many of its rows are done."""


@dataclass(frozen=True)
class ItemReport:
    """What became of one image.

    Attributes:
        source: The image file.
        status: ``done`` or ``failed``.
        error: Why it failed.
        outputs: What was written, by kind.
        height: In pixels, after EXIF orientation; 0 if it failed.
        width: The same.
        crops: Number of crops that it was segmented by.
        crop_height: Of each of them, in pixels.
        crop_width: The same.
    """

    source: str
    status: str
    error: str = ""
    outputs: dict[str, str] | None = None
    height: int = 0
    width: int = 0
    crops: int = 0
    crop_height: int = 0
    crop_width: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


def segment_items(
    model: Segmenter,
    items: Iterable[Item],
    out: Path,
    *,
    save: tuple[str, ...] = ("mask",),
    tiling: Tiling = Tiling(),
    mask_format: MaskFormat = "auto",
    max_pixels: int = MAX_PIXELS,
    on_rows: OnRows | None = None,
    on_item: Callable[[ItemReport], None] | None = None,
) -> list[ItemReport]:
    """Segment images one after the other; one that cannot be read does not stop the others.

    Args:
        model: What segments.
        items: Which images.
        out: Output folder; every file in it is written whole or not at all.
        save: Some of :data:`~fcn_deploy.outputs.KINDS`.
        tiling: How images are cut into crops.
        mask_format: ``auto`` writes PNG, and GeoTIFF for images that are one.
        max_pixels: Larger images fail, judged from their header.
        on_rows: Told of each image as it gets on.
        on_item: Told of each image when it is finished.

    Raises:
        UsageError: Unknown kind of output, or tile and overlap do not go together.
        EnvironmentFault: An output cannot be written, or needs a package that is missing.
        CheckFailedError: The network returned values that are not finite.
    """
    if unknown := [kind for kind in save if kind not in KINDS]:
        raise UsageError(f"There is no output {unknown[0]!r}.", f"Outputs: {', '.join(KINDS)}.")
    if mask_format not in MASK_FORMATS:
        raise UsageError(
            f"There is no mask format {mask_format!r}.", f"Formats: {', '.join(MASK_FORMATS)}."
        )
    _require_packages(save, mask_format)
    job = _Job(model, out, save, tiling, mask_format, max_pixels, on_rows)
    reports = []
    # Three stages that overlap: images are decoded in advance, the network runs in this thread
    # alone, and masks are encoded while the next image is under way.
    with ExitStack() as stages:
        listed, read = tee(items)
        images = stages.enter_context(closing(mapped(job.read, read, _io_threads())))
        computed = (_computed(job, item, image) for item, image in zip(listed, images, strict=True))
        written = stages.enter_context(closing(mapped(_written, computed, _io_threads())))
        for report in written:
            reports.append(report)
            if on_item is not None:
                on_item(report)
    return reports


def _io_threads() -> int:
    """Half of the cores, and no more than memory should hold images of."""
    return max(min((os.cpu_count() or 1) // 2, 4), 1)


@dataclass(frozen=True)
class _Job:
    """What is the same for all images."""

    model: Segmenter
    out: Path
    save: tuple[str, ...]
    tiling: Tiling
    mask_format: MaskFormat
    max_pixels: int
    on_rows: OnRows | None

    def read(self, item: Item) -> NDArray[np.uint8] | None:
        """The pixels of an image that is small enough to be read in advance."""
        return read_small(item.source, max_pixels=self.max_pixels)


def _require_packages(save: tuple[str, ...], mask_format: MaskFormat) -> None:
    """Find out before the work that rasterio is missing."""
    if mask_format == "tiff" or {"probabilities", "polygons"} & set(save):
        import fcn_deploy.raster  # noqa: F401 - raises MissingExtraError


@dataclass(frozen=True)
class _Computed:
    """An image whose files may not be written yet.

    Attributes:
        report: What became of it, once ``outputs`` are written.
        outputs: Its files; ``None`` where nothing is left to write.
        bands: What to write into them.
    """

    report: ItemReport
    outputs: Outputs | None = None
    bands: tuple[Band, ...] = ()


def _computed(job: _Job, item: Item, image: NDArray[np.uint8] | None) -> _Computed:
    try:
        return _segment_item(job, item, image)
    except (EnvironmentFault, InputError) as error:
        return _Computed(_failed(item.source, error))


def _failed(source: Path | str, error: EnvironmentFault | InputError) -> ItemReport:
    """The report of an image that failed; what concerns all images is raised again."""
    cause = error.__cause__
    too_long = isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG
    if isinstance(error, EnvironmentFault) and not too_long:
        raise error
    return ItemReport(str(source), "failed", error.problem)


def _written(computed: _Computed) -> ItemReport:
    if computed.outputs is None:
        return computed.report
    try:
        computed.outputs.write(iter(computed.bands))
    except (EnvironmentFault, InputError) as error:
        return _failed(computed.report.source, error)
    return computed.report


def _segment_item(job: _Job, item: Item, image: NDArray[np.uint8] | None) -> _Computed:
    place = None if job.mask_format == "png" else georeference_of(item.source)
    with open_source(item.source, max_pixels=job.max_pixels, image=image) as source:
        grid = job.model.plan(source.image_hw, job.tiling)
        whole = getattr(source, "image", None)
        outputs = Outputs(
            job.out,
            item.name,
            job.save,
            job.model.spec,
            source.image_hw,
            whole=whole,
            source=item.source,
            georeference=place,
            mask_format=job.mask_format,
            max_pixels=job.max_pixels,
        )
        report = ItemReport(
            str(item.source), "done", "", outputs.paths, *grid.image_hw, len(grid), *grid.crop_hw
        )
        bands = job.model.bands(
            source if whole is None else whole,
            grid,
            blend=job.tiling.blend,
            wanted=outputs.wanted,
        )
        with closing(bands):
            told = _told(bands, item, grid, job.on_rows)
            if image is not None and not outputs.wanted.probabilities:
                return _Computed(report, outputs, tuple(told))
            outputs.write(told)
    return _Computed(report)


def _told(
    bands: Iterator[Band], item: Item, grid: CropGrid, on_rows: OnRows | None
) -> Iterator[Band]:
    if on_rows is not None:
        on_rows(item, grid, 0)
    for band in bands:
        yield band
        if on_rows is not None:
            on_rows(item, grid, band.top + band.rows)
