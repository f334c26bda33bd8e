"""GeoTIFF by way of GDAL: where an image lies on earth, and the TIFF that Pillow cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import InputError, MissingExtraError
from fcn_deploy.image import MAX_PIXELS
from fcn_deploy.quiet import quiet
from fcn_deploy.row_files import is_georeferenced, open_rows
from fcn_deploy.row_reader import PIECE_PIXELS, RowReader
from fcn_deploy.tiff_blocks import MOST_PIXELS, read_blocks, read_tags, refuse_missing_blocks

try:
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.enums import Resampling as Resampling
    from rasterio.errors import RasterioError
except ImportError as error:
    raise MissingExtraError("rasterio", "large") from error

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
_OPTIONS = {
    "GDAL_CACHEMAX": 32 << 20,  # bytes for rasterio; by default 5 % of the memory
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no .ovr, .tfw or .aux.xml gets a say
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_PAM_ENABLED": False,  # no .aux.xml is written beside the user's files
}


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of an image lie on earth: by a transform, by GCPs or by RPCs.

    Attributes:
        crs: A ``rasterio.crs.CRS``, or ``None``.
        transform: An ``affine.Affine`` from (column, row) to (x, y), or ``None``.
        gcps: Ground control points, ``rasterio.control.GroundControlPoint``.
        gcp_crs: The CRS of these.
        rpcs: A ``rasterio.rpc.RPC``, or ``None``.
        area_or_point: What the file says that a pixel is, ``Area`` or ``Point``. The transform is
            that of areas in either case.
    """

    crs: Any = None
    transform: Any = None
    gcps: tuple[Any, ...] = ()
    gcp_crs: Any = None
    rpcs: Any = None
    area_or_point: str = "Area"


class RasterSource:
    """An open image: windows of rows from the top to the bottom, and where it lies on earth.

    May be opened in one thread and read in another, though not in two at once.
    """

    def __init__(self, source: RowReader, georeference: Georeference | None) -> None:
        self._source = source
        self.image_hw = source.image_hw
        self.georeference = georeference

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows as :meth:`~fcn_deploy.row_reader.RowReader.rows` does."""
        return self._source.rows(start, stop)

    def close(self) -> None:
        """Close the file; reading is over."""
        self._source.close()

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_raster(path: Path, *, max_pixels: int = MAX_PIXELS) -> RasterSource | None:
    """Open an image to be read in windows; see :func:`~fcn_deploy.row_files.open_rows`.

    TIFF that Pillow cannot read but GDAL can is read, too: of images with three bands or more those
    that are red, green and blue, or else the first three; 16 bits are scaled to 8, not clipped.

    Raises:
        InputError: Not a readable image, damaged, too large, or of a pixel type without a defined
            range.
    """
    try:
        source = open_rows(path, max_pixels=max_pixels)
    except InputError:
        source = _open_gdal(path, max_pixels)
        if source is None:
            raise
    if source is None:
        return None
    try:
        georeference = read_georeference(path) if is_georeferenced(path) else None
        return RasterSource(source, georeference)
    except BaseException:
        source.close()
        raise


def read_georeference(path: Path) -> Georeference | None:
    """Where a TIFF lies on earth, or ``None`` if it does not say so.

    Raises:
        InputError: It says so in a way that cannot be read.
    """
    try:
        with gdal(), open_dataset(path) as dataset:
            gcps, gcp_crs = dataset.gcps
            known = not dataset.transform.is_identity
            point = dataset.tags().get("AREA_OR_POINT") == "Point"
            found = Georeference(
                crs=dataset.crs,
                transform=dataset.transform if known else None,
                gcps=tuple(gcps),
                gcp_crs=gcp_crs,
                rpcs=dataset.rpcs,
                area_or_point="Point" if point else "Area",
            )
    except (*GDAL_ERRORS, ValueError) as error:  # CRSError is a ValueError
        raise InputError(
            f"The georeference of {path} cannot be read: {cause_of(error)}.",
            "Repair it, or convert the file to one without.",
        ) from error
    return found if known or gcps or found.rpcs or found.crs else None


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL as we want it, and its messages as exceptions; for the calling thread alone.

    Needed around every call: in a thread without it GDAL writes its errors to stderr.
    """
    with rasterio.Env(**_OPTIONS):
        yield


def open_dataset(path: Path, mode: str = "r", **creation: Any) -> Any:
    """Open a TIFF, and nothing but a TIFF, with GDAL."""
    name = str(path.absolute())
    if name.startswith("/vsi"):  # GDAL's names for archives, memory and the network
        name = "/." + name
    with quiet:  # images that lie nowhere on earth are none of a warning's business
        return rasterio.open(name, mode, driver="GTiff", **creation)


def cause_of(error: BaseException) -> str:
    """What GDAL said first; rasterio's own message often is that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _open_gdal(path: Path, max_pixels: int) -> RowReader | None:
    """Open a TIFF with GDAL, or ``None`` where it cannot read it either."""
    if not path.is_file():
        return None
    try:
        with gdal():
            dataset = open_dataset(path)
    except GDAL_ERRORS:
        return None
    try:
        _refuse_pixels(path, dataset, max_pixels)
        bands = _bands_of(dataset)
        high, wide = dataset.block_shapes[0]
        if bands is None or high * wide > MOST_PIXELS:
            _close(dataset)
            return None
        if tags := read_tags(path):
            refuse_missing_blocks(path, read_blocks(tags))
        reader = _Bands(path, dataset, bands)
        down = max(1, PIECE_PIXELS // (high * dataset.width))
        reader.decode(0, min(high, dataset.height))
    except BaseException:
        _close(dataset)
        raise
    return RowReader(path, dataset.shape, down * high, reader.decode, lambda: _close(dataset))


def _close(dataset: Any) -> None:
    with gdal():
        dataset.close()


def _refuse_pixels(path: Path, dataset: Any, max_pixels: int) -> None:
    if dataset.width * dataset.height > max_pixels:
        raise InputError(
            f"{path} has {dataset.width}x{dataset.height} pixels, the limit is {max_pixels:,}.",
            "If you trust the file, raise the limit: --max-pixels N",
        )
    kind = dataset.dtypes[0]
    if kind not in ("uint8", "uint16"):
        raise InputError(
            f"{path} has {kind} pixels, whose black and white are not defined.",
            "Convert it to 8 or 16 bits a channel.",
        )


def _bands_of(dataset: Any) -> list[int] | None:
    """The bands that are red, green and blue; ``None`` where colours are stored as others."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    meanings = [meaning.name for meaning in dataset.colorinterp]
    if "palette" in meanings or "cyan" in meanings or "MINISWHITE" in structure or bits:
        return None
    if "SOURCE_COLOR_SPACE" in structure:
        return None
    if {"red", "green", "blue"} <= set(meanings):
        return [meanings.index(name) + 1 for name in ("red", "green", "blue")]
    return [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]


class _Bands:
    """Three bands of a dataset of GDAL's, as RGB."""

    def __init__(self, path: Path, dataset: Any, bands: list[int]) -> None:
        self._path = path
        self._dataset = dataset
        self._bands = bands

    def decode(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) as RGB."""
        high, wide = self._dataset.block_shapes[0]
        width = self._dataset.width
        across = wide * max(1, PIECE_PIXELS // (wide * max(high, stop - start)))
        rows = np.empty((stop - start, width, 3), np.uint8)
        for left in range(0, width, across):
            right = min(left + across, width)
            try:
                with gdal():
                    window = ((start, stop), (left, right))
                    pixels = self._dataset.read(self._bands, window=window)
            except GDAL_ERRORS as error:
                raise InputError(f"{self._path} cannot be read: {cause_of(error)}.") from error
            bands = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
            rows[:, left:right] = np.moveaxis(bands, 0, 2)
        return rows
