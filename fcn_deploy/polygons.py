"""The regions of a mask file as polygons in GeoJSON, for maps and databases.

Source: GDALPolygonize, by way of rasterio, finds the regions; the file follows RFC 7946.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.errors import InputError, MissingExtraError
from fcn_deploy.quiet import quiet
from fcn_deploy.spec import IGNORE, Color

try:
    import rasterio
    import rasterio.features

    from fcn_deploy.ground import Ground, Polygon, on_earth, read_ground, signed_area, wound
    from fcn_deploy.raster import GDAL_ERRORS, cause_of, gdal
except ImportError as error:
    raise MissingExtraError("rasterio", "large") from error

_PNG = b"\x89PNG\r\n\x1a\n"
_BATCH = 20_000
"""Points that are transformed at once: every call sets up a projection, which takes a while."""


def write_polygons(
    mask: Path, path: Path, classes: tuple[str, ...], palette: tuple[Color, ...]
) -> int:
    """Write each region of equal labels in a mask as one feature of a GeoJSON file.

    Pixels belong together that share an edge. Ignored ones (255) are left out. A feature has the
    properties ``label``, ``class``, ``color`` (``#rrggbb``), ``area`` in pixels, and ``area_m2`` on
    the map if its projection has metres (and is not Mercator's, where they mean nothing).

    The coordinates of a mask with transform and CRS are WGS 84, longitude before latitude. Those of
    any other mask are pixels, x to the right and y down from the upper left corner of the image;
    the collection then has the members ``"coordinate_space": "pixels"`` and ``"image_hw"``, which
    are none of RFC 7946. Outer rings run counterclockwise if y is drawn upwards, holes clockwise.

    Memory grows with the outlines, which GDAL holds, and not with the pixels.

    Args:
        mask: A palette PNG, or a TIFF of one band of labels.
        path: The GeoJSON file, written whole or not at all.
        classes: Names of the labels from 0.
        palette: Their colours.

    Returns:
        The number of features.

    Raises:
        InputError: The mask is not readable or damaged, or has a label without a class; or its
            pixels have no place in WGS 84.
        EnvironmentFault: The file cannot be written.
    """
    if not mask.is_file():
        raise InputError(f"There is no mask {mask}.")
    # GDAL's errors are OSErrors, too: atomic_path would take them for its own.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
        _opened(mask) as dataset,
    ):
        ground = None if _is_png(mask) else read_ground(mask, dataset.shape)
        regions = _regions(mask, dataset, len(classes))
        features = _features(regions, ground, classes, palette)
        return _write(file, features, {} if ground else _in_pixels(dataset))


def _in_pixels(dataset: Any) -> dict[str, Any]:
    # RFC 7946, section 7.1, keeps the name "coordinates" for itself.
    return {"coordinate_space": "pixels", "image_hw": dataset.shape}


def _write(file: TextIO, features: Iterator[dict[str, Any]], members: dict[str, Any]) -> int:
    head = json.dumps({"type": "FeatureCollection", **members}, separators=(",", ":"))
    file.write(head[:-1] + ',"features":[')
    count = 0
    for feature in features:
        file.write(",\n" if count else "\n")
        # Without NaN: RFC 7946 is JSON, which has none.
        file.write(json.dumps(feature, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
        count += 1
    file.write("\n]}\n")
    return count


@contextmanager
def _opened(mask: Path) -> Iterator[Any]:
    """The dataset of a mask without its georeference, and GDAL's errors as ours.

    With it, GDALPolygonize gives map coordinates, whatever transform rasterio is asked for.
    """
    name = str(mask.absolute())
    if name.startswith("/vsi"):  # GDAL's names for archives, memory and the network
        name = "/." + name
    # One of two drivers, and no other of GDAL's many: some read what a file points to.
    options = {"driver": "PNG"} if _is_png(mask) else {"driver": "GTiff", "GEOREF_SOURCES": "NONE"}
    try:
        with gdal():
            with quiet:  # that the mask lies nowhere on earth
                dataset = rasterio.open(name, **options)
            with dataset:
                if dataset.count != 1 or dataset.dtypes[0] != "uint8":
                    raise InputError(f"{mask} is not a mask: one band of uint8 labels.")
                yield dataset
    except GDAL_ERRORS as error:
        raise InputError(f"{mask} cannot be turned into polygons: {cause_of(error)}.") from error


def _is_png(mask: Path) -> bool:
    try:
        with mask.open("rb") as file:
            return file.read(len(_PNG)) == _PNG
    except OSError as error:
        raise InputError(f"{mask} cannot be read: {error.strerror}.") from error


def _features(
    regions: Iterator[_Region],
    ground: Ground | None,
    classes: tuple[str, ...],
    palette: tuple[Color, ...],
) -> Iterator[dict[str, Any]]:
    pixel_m2 = ground.pixel_m2 if ground else None
    for region, geometry in _placed(regions, ground):
        red, green, blue = palette[region.label]
        properties = {
            "label": region.label,
            "class": classes[region.label],
            "color": f"#{red:02x}{green:02x}{blue:02x}",
            "area": region.area,
        }
        if pixel_m2 is not None:
            properties["area_m2"] = float(f"{region.area * pixel_m2:.9g}")
        yield {"type": "Feature", "properties": properties, "geometry": geometry}


@dataclass(frozen=True)
class _Region:
    """A label, the number of pixels that have it, and their outline in pixels."""

    label: int
    area: int
    polygon: Polygon


def _regions(mask: Path, dataset: Any, num_classes: int) -> Iterator[_Region]:
    missing = dataset.width * dataset.height
    for geometry, value in rasterio.features.shapes(rasterio.band(dataset, 1), connectivity=4):
        label, polygon = int(value), wound(geometry["coordinates"])
        area = round(math.fsum(signed_area(ring) for ring in polygon))
        missing -= area
        if label == IGNORE:
            continue
        if label >= num_classes:
            raise InputError(
                f"{mask} has the label {label}, and there are {num_classes} classes.",
                "Name the model that the mask was made with.",
            )
        yield _Region(label, area, polygon)
    if missing:  # rasterio does not look at what GDALPolygonize returns
        raise InputError(f"{mask} cannot be turned into polygons: its pixels cannot be read.")


def _placed(
    regions: Iterator[_Region], ground: Ground | None
) -> Iterator[tuple[_Region, dict[str, Any]]]:
    """Each region and its geometry in the coordinates of the file."""
    if ground is None:
        for region in regions:
            rings = [[(round(x), round(y)) for x, y in ring] for ring in region.polygon]
            yield region, {"type": "Polygon", "coordinates": rings}
        return
    batch: list[_Region] = []
    points = 0
    for region in regions:
        batch.append(region)
        points += sum(len(ring) for ring in region.polygon)
        if points >= _BATCH:
            yield from zip(batch, on_earth([item.polygon for item in batch], ground), strict=True)
            batch, points = [], 0
    if batch:
        yield from zip(batch, on_earth([item.polygon for item in batch], ground), strict=True)
