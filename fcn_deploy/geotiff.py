"""GeoTIFF written from the top, by way of GDAL."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.image import colorize
from fcn_deploy.raster import (
    GDAL_ERRORS,
    Georeference,
    Resampling,
    cause_of,
    gdal,
    open_dataset,
)
from fcn_deploy.spec import Color
from fcn_deploy.tiff_blocks import read_blocks, read_tags

_TILE = 512
_STACK_TILE = 256  # a row of blocks is held of every band
_LARGE = 4096
"""Masks with a longer side get overviews."""
_FULL_BYTES = 1 << 20
"""Less free space than this, and it is why GDAL could not write; it does not say."""


class TiffWriter:
    """A tiled GeoTIFF of one or more bands; a :class:`~fcn_deploy.row_files.RowWriter`.

    One row of tiles is held. Readable by whatever reads TIFF: DEFLATE, or JPEG for photos, and
    BigTIFF only where it may be needed. A file without one of the three below is one gray band.

    Args:
        path: The file.
        image_hw: Size in pixels.
        palette: One band of class ids, and the colour of each class.
        names: Bands, each with its name.
        photo: Three bands, red, green and blue, stored with the losses of JPEG.
        nodata: The value that means nothing is known, such as 255 for masks.
        georeference: Where the pixels lie on earth.
    """

    def __init__(
        self,
        path: Path,
        image_hw: tuple[int, int],
        *,
        palette: Sequence[Color] | None = None,
        names: Sequence[str] = (),
        photo: bool = False,
        nodata: int | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        if (palette is not None) + bool(names) + photo > 1:
            raise ValueError("of palette, names and photo one at most")
        self._path = path
        self._image_hw = image_hw
        self._palette = palette
        self._names = tuple(names)
        self._photo = photo
        self._nodata = nodata
        self._georeference = georeference or Georeference()
        self._bands = 3 if photo else len(names) or 1
        self._tile = min(_STACK_TILE if names else _TILE, -(-max(image_hw) // 16) * 16)
        self._held = np.empty((self._bands, min(self._tile, image_hw[0]), image_hw[1]), np.uint8)
        self._filled = 0
        self._written = 0

    def __enter__(self) -> TiffWriter:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self._path))
            with self._writing():
                self._dataset = self._created()
            self._stack = stack.pop_all()
        return self

    def _created(self) -> Any:
        height, width = self._image_hw
        place = self._georeference
        creation: dict[str, Any] = {
            "height": height,
            "width": width,
            "count": self._bands,
            "dtype": "uint8",
            "tiled": True,
            "blockxsize": self._tile,
            "blockysize": self._tile,
            "bigtiff": "IF_SAFER",
            "nodata": self._nodata,
            "transform": place.transform,
            "crs": place.gcp_crs if place.gcps else place.crs,
            "rpcs": place.rpcs,
            **self._storage(),
        }
        if place.gcps:
            creation["gcps"] = list(place.gcps)
        dataset = open_dataset(self._temporary, "w", **creation)
        if place.area_or_point == "Point":
            dataset.update_tags(AREA_OR_POINT="Point")
        if self._palette is not None:
            table = colorize(np.arange(256, dtype=np.uint8)[None], tuple(self._palette))[0]
            dataset.write_colormap(1, {i: (*color, 255) for i, color in enumerate(table.tolist())})
        for band, name in enumerate(self._names, 1):
            dataset.set_band_description(band, name)
        return dataset

    def _storage(self) -> dict[str, Any]:
        """Measured on 100 MP: of labels, predictors make files larger; of gray, smaller."""
        if self._photo:
            return {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 90}
        if self._palette is not None:
            return {"compress": "deflate"}
        return {"compress": "deflate", "predictor": 2, "zlevel": 4, "interleave": "band"}

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Append rows, (n, W) of one band or (bands, n, W); see RowWriter."""
        height, width = self._image_hw
        bands = rows[None] if rows.ndim == 2 else rows
        if rows.dtype != np.uint8 or bands.ndim != 3 or bands.shape[::2] != (self._bands, width):
            raise ValueError(f"{rows.dtype} rows {rows.shape} of {self._bands} bands {width} wide")
        count = bands.shape[1]
        if self._written + self._filled + count > height:
            raise ValueError(f"{self._written + self._filled + count} rows of {height}")
        while bands.shape[1]:
            taken = min(self._held.shape[1] - self._filled, bands.shape[1])
            self._held[:, self._filled : self._filled + taken] = bands[:, :taken]
            self._filled += taken
            bands = bands[:, taken:]
            if self._filled == self._held.shape[1]:
                self._flush()

    def _flush(self) -> None:
        window = ((self._written, self._written + self._filled), (0, self._image_hw[1]))
        with self._writing():
            self._dataset.write(self._held[:, : self._filled], window=window)
        self._written += self._filled
        self._filled = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with self._stack:
                self._finish()
            return
        try:
            with gdal():  # what it has to say about the end of a file that goes away is not needed
                self._dataset.close()
        finally:
            self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        try:
            if self._filled:
                self._flush()
        finally:
            with self._writing():
                self._dataset.close()
        if self._written != self._image_hw[0]:
            raise ValueError(f"{self._path} got {self._written} of {self._image_hw[0]} rows")
        self._check()
        if self._palette is not None and max(self._image_hw) > _LARGE:
            self._add_overviews()
            self._check()

    def _add_overviews(self) -> None:
        """Smaller versions inside the file, without which viewers read all of a large one.

        Measured on 100 MP: 1 s for a mask, but four with ``mode`` instead of ``nearest``, and ten
        for a photo with ``average``, which is why that has none.
        """
        factors = [2**power for power in range(1, 16) if max(self._image_hw) >> power >= _TILE]
        with self._writing():
            dataset = open_dataset(self._temporary, "r+")
            try:
                dataset.build_overviews(factors, Resampling.nearest)
            finally:
                dataset.close()

    def _check(self) -> None:
        """GDAL closes files without a word about what it could not write: look."""
        tags = read_tags(self._temporary)
        size = self._temporary.stat().st_size
        try:
            blocks = read_blocks(tags)
        except (KeyError, TypeError, ValueError) as error:
            raise self._failure("its directory is missing") from error
        ends = (offset + size for offset, size in zip(blocks.offsets, blocks.sizes, strict=True))
        if not all(blocks.sizes) or max(ends) > size:
            raise self._failure("blocks are missing")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with gdal():
                yield
        except GDAL_ERRORS as error:
            raise self._failure(cause_of(error)) from error

    def _failure(self, cause: str) -> OSError:
        if shutil.disk_usage(self._path.parent).free < _FULL_BYTES:
            return OSError(errno.ENOSPC, "No space left on device")
        return OSError(errno.EIO, cause)
