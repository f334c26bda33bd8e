"""Files made of one segmented image, written band by band while it is segmented."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import InputError, MissingExtraError
from fcn_deploy.image import MAX_PIXELS, open_image, overlay, read_image, write_photo
from fcn_deploy.merging import Band
from fcn_deploy.row_files import PngWriter, RowWriter, is_georeferenced, open_rows
from fcn_deploy.segment import RowSource
from fcn_deploy.spec import IGNORE, ModelSpec
from fcn_deploy.upsample import Wanted

if TYPE_CHECKING:
    from fcn_deploy.raster import Georeference

STREAM_PIXELS = 8 * 1024 * 1024
"""Larger images are read by rows where their format allows it; 24 MB of pixels are no burden."""

JPEG_SIDE = 65_500

Kind = Literal["mask", "overlay", "confidence", "probabilities", "polygons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be saved of an image; each kind has a folder of its name.

Not `masks`: that is where data sets keep their ground truth, which nobody wants overwritten.
"""

MaskFormat = Literal["auto", "png", "tiff"]
MASK_FORMATS: tuple[MaskFormat, ...] = get_args(MaskFormat)


class Source(RowSource, Protocol):
    """An image to segment: read from the top down, in a thread of its own."""

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True)
class _Whole:
    """An image that is in memory."""

    image: NDArray[np.uint8]

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.image[start:stop]

    def close(self) -> None:
        pass


@contextmanager
def open_source(
    path: Path, *, max_pixels: int = MAX_PIXELS, image: NDArray[np.uint8] | None = None
) -> Iterator[Source]:
    """Open an image: by rows if it is large and its format allows it, else whole.

    TIFF that Pillow does not read, such as multispectral ones, is read by GDAL where the extra
    ``large`` is installed.

    Args:
        path: The file.
        max_pixels: Larger images are refused, judged from their header.
        image: Its pixels, where they were read already.

    Raises:
        InputError: Not readable, damaged, too large, or its pixels have no defined range.
    """
    source = _open(path, max_pixels) if image is None else _Whole(image)
    try:
        yield source
    finally:
        source.close()


def read_small(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | None:
    """An image that :func:`open_source` would read whole and without GDAL; ``None`` otherwise.

    For reading in advance: whatever is wrong with it, :func:`open_source` will say.
    """
    try:
        with open_image(path, max_pixels=max_pixels) as image:
            small = image.width * image.height <= STREAM_PIXELS
        return read_image(path, max_pixels=max_pixels) if small else None
    except InputError:
        return None


def _open(path: Path, max_pixels: int) -> Source:
    try:
        with open_image(path, max_pixels=max_pixels) as image:
            pixels = image.width * image.height
    except InputError:
        # Only GDAL may be able to read it; it has its own look at the size.
        source = _open_with_gdal(path, max_pixels)
        if source is None:
            raise
        return source
    if pixels > STREAM_PIXELS and (source := open_rows(path, max_pixels=max_pixels)):
        return source
    try:
        return _Whole(read_image(path, max_pixels=max_pixels))
    except InputError:
        source = _open_with_gdal(path, max_pixels)
        if source is None:
            raise
        return source


def _has_gdal() -> bool:
    try:
        import fcn_deploy.raster  # noqa: F401 - whether it can be
    except MissingExtraError:
        return False
    return True


def _open_with_gdal(path: Path, max_pixels: int) -> Source | None:
    if not _has_gdal():
        return None
    from fcn_deploy.raster import open_raster

    return open_raster(path, max_pixels=max_pixels)


def georeference_of(path: Path) -> Georeference | None:
    """Where a GeoTIFF lies on earth; ``None`` for all other images.

    Raises:
        InputError: It is one, and rasterio is not there, or cannot make sense of it.
    """
    if not is_georeferenced(path):
        return None
    try:
        from fcn_deploy.raster import read_georeference
    except MissingExtraError as error:
        raise InputError(
            f'{path} is a GeoTIFF; to keep its place on earth: pip install "fcn-deploy[large]".',
            "Or pass --mask-format png for masks without it.",
        ) from error
    return read_georeference(path)


class Outputs:
    """The files of one image; a context manager that leaves them whole, or not at all.

    Args:
        out: Folder; every kind has a folder of its own in it.
        name: Name of the image below these, without a suffix.
        kinds: What to save.
        spec: Of the model.
        image_hw: Height and width of the image.
        whole: The image, if it is in memory: then its overlay becomes a JPEG.
        source: The image file, read a second time for the overlay of what is not in memory.
        georeference: Where the image lies on earth: then all rasters are GeoTIFF.
        mask_format: ``auto`` is PNG, and GeoTIFF for what is georeferenced.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        kinds: Sequence[str],
        spec: ModelSpec,
        image_hw: tuple[int, int],
        *,
        whole: NDArray[np.uint8] | None,
        source: Path,
        georeference: Georeference | None = None,
        mask_format: MaskFormat = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._out, self._name, self._kinds = out, name, kinds
        self._spec, self._hw, self._whole, self._source = spec, image_hw, whole, source
        self._georeference = georeference
        self._max_pixels = max_pixels
        self._tiff = mask_format == "tiff" or (mask_format == "auto" and georeference is not None)
        self.paths = {kind: str(self._path(kind)) for kind in kinds}
        if "overlay" in kinds and self._photo_is_jpeg() and max(image_hw) > JPEG_SIDE:
            raise InputError(
                f"{source} is larger than the {JPEG_SIDE:,} pixels a side that a JPEG holds.",
                "Leave the overlay out of --save, or pass --mask-format tiff.",
            )
        if "overlay" in kinds and not self._photo_is_jpeg() and not _has_gdal():
            raise InputError(
                f'The overlay of {source} is written by rows: pip install "fcn-deploy[large]".',
                "Or leave the overlay out of --save.",
            )

    @property
    def wanted(self) -> Wanted:
        """What has to be computed beside labels."""
        return Wanted("confidence" in self._kinds, "probabilities" in self._kinds)

    def _photo_is_jpeg(self) -> bool:
        return self._whole is not None and not self._tiff

    def _path(self, kind: str) -> Path:
        raster = ".tif" if self._tiff else ".png"
        suffix = {
            "overlay": ".jpg" if self._photo_is_jpeg() else ".tif",
            "probabilities": ".tif",
            "polygons": ".geojson",
        }.get(kind, raster)
        return self._out / kind / f"{self._name}{suffix}"

    def write(self, bands: Iterator[Band]) -> None:
        """Write all of it.

        Raises:
            InputError: The image turns out to be damaged further down.
            EnvironmentFault: A file cannot be written.
        """
        with ExitStack() as stack:
            mask = self._path("mask")
            if "polygons" in self._kinds and "mask" not in self._kinds:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fcn-deploy-"))
                mask = Path(folder) / mask.name
            self._write_rasters(bands, mask)
            if "polygons" in self._kinds:
                from fcn_deploy.polygons import write_polygons

                write_polygons(mask, self._path("polygons"), self._spec.classes, self._spec.palette)

    def _write_rasters(self, bands: Iterator[Band], mask: Path) -> None:
        picture = None
        with ExitStack() as stack:
            writers: dict[str, RowWriter] = {}
            if {"mask", "polygons"} & set(self._kinds):
                writers["mask"] = stack.enter_context(self._raster(mask, palette=True))
            if "confidence" in self._kinds:
                writers["confidence"] = stack.enter_context(self._raster(self._path("confidence")))
            if "probabilities" in self._kinds:
                writers["probabilities"] = stack.enter_context(self._stack())
            below: Source | None = None
            if "overlay" in self._kinds and self._photo_is_jpeg():
                picture = np.empty((*self._hw, 3), np.uint8)
            elif "overlay" in self._kinds:
                writers["overlay"] = stack.enter_context(self._photo())
            if "overlay" in self._kinds:
                below = self._below(stack)
            for band in bands:
                fields, rows = band.fields, (band.top, band.top + band.rows)
                for kind, values in (
                    ("mask", fields.labels),
                    ("confidence", fields.confidence),
                    ("probabilities", fields.probabilities),
                ):
                    if kind in writers and values is not None:
                        writers[kind].write(values)
                if below is not None:
                    mixed = overlay(below.rows(*rows), fields.labels, self._spec.palette)
                    if picture is not None:
                        picture[slice(*rows)] = mixed
                    else:
                        writers["overlay"].write(np.moveaxis(mixed, 2, 0))
        if picture is not None:
            write_photo(self._path("overlay"), picture)

    def _below(self, stack: ExitStack) -> Source:
        """The image again, under its overlay: bands are done long after their rows were read."""
        if self._whole is not None:
            return _Whole(self._whole)
        return stack.enter_context(open_source(self._source, max_pixels=self._max_pixels))

    def _raster(self, path: Path, *, palette: bool = False) -> RowWriter:
        colors = self._spec.palette if palette else None
        if not self._tiff:
            return PngWriter(path, self._hw, palette=colors)
        from fcn_deploy.geotiff import TiffWriter

        return TiffWriter(
            path,
            self._hw,
            palette=colors,
            nodata=IGNORE if palette else None,
            georeference=self._georeference,
        )

    def _stack(self) -> RowWriter:
        from fcn_deploy.geotiff import TiffWriter

        path = self._path("probabilities")
        return TiffWriter(path, self._hw, names=self._spec.classes, georeference=self._georeference)

    def _photo(self) -> RowWriter:
        from fcn_deploy.geotiff import TiffWriter

        return TiffWriter(
            self._path("overlay"), self._hw, photo=True, georeference=self._georeference
        )
