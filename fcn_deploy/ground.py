"""Where polygons of pixels lie on earth: longitude and latitude, as RFC 7946 wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fcn_deploy.errors import InputError, MissingExtraError

try:
    import rasterio.warp

    from fcn_deploy.raster import read_georeference
except ImportError as error:
    raise MissingExtraError("rasterio", "large") from error

Point = tuple[float, float]
Ring = list[Point]
Polygon = list[Ring]
"""An outer ring and its holes; the last point of each is the first."""

_WGS84 = "EPSG:4326"
_LONGEST_EDGE = 64
"""Pixels. A straight line on one map is a curve on another: at 64 it leaves by 1/100 of a pixel."""


@dataclass(frozen=True)
class Ground:
    """Where pixels lie on earth.

    Attributes:
        mask: The file that says so.
        crs: A ``rasterio.crs.CRS``.
        transform: From (column, row) to (x, y) in it: a, b and c of x, then of y.
        decimals: Of degrees, so that a pixel has at least ten steps; 7 are 1 cm.
    """

    mask: Path
    crs: Any
    transform: tuple[float, ...]
    decimals: int

    @property
    def pixel_m2(self) -> float | None:
        """Area of a pixel on the map, or ``None`` where the map does not measure square metres."""
        # Mercator's metres are those of the equator: at 60 degrees, areas are four times too large.
        if not self.crs.is_projected or "+proj=merc" in self.crs.to_proj4():
            return None
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d) if self.crs.linear_units_factor[1] == 1 else None

    def place(self, point: Point) -> Point:
        """Where (column, row) lies in the CRS."""
        a, b, c, d, e, f = self.transform  # affine's own operator has changed between releases
        return a * point[0] + b * point[1] + c, d * point[0] + e * point[1] + f


def read_ground(mask: Path, image_hw: tuple[int, int]) -> Ground | None:
    """Where the pixels of a TIFF lie on earth, or ``None`` without a transform to a known map.

    Raises:
        InputError: The file says it in a way that cannot be read.
    """
    place = read_georeference(mask)
    if place is None or place.transform is None or not place.crs:
        return None
    if not (place.crs.is_projected or place.crs.is_geographic):  # a building's own, for example
        return None
    ground = Ground(mask, place.crs, tuple(place.transform)[:6], 7)
    row, column = image_hw[0] / 2, image_hw[1] / 2
    corners = [ground.place((column + x, row + y)) for x, y in ((0, 0), (1, 0), (0, 1))]
    xs, ys = rasterio.warp.transform(place.crs, _WGS84, *zip(*corners, strict=True))
    sides = [math.hypot(x - xs[0], y - ys[0]) for x, y in zip(xs[1:], ys[1:], strict=True)]
    degrees = min(sides)
    fine = 0 < degrees < 1  # not so where the middle of the image has no place on earth
    decimals = 1 - math.floor(math.log10(degrees)) if fine else 0
    return replace(ground, decimals=min(max(7, decimals), 12))


def on_earth(polygons: Sequence[Polygon], ground: Ground) -> list[dict[str, Any]]:
    """GeoJSON geometries in WGS 84 of polygons in pixels; those across the antimeridian are cut.

    Raises:
        InputError: A pixel has no place in WGS 84.
    """
    outlines = [
        {"type": "Polygon", "coordinates": [_mapped(ring, ground) for ring in polygon]}
        for polygon in polygons
    ]
    geometries = rasterio.warp.transform_geom(ground.crs, _WGS84, outlines)
    return [_rounded(geometry, ground) for geometry in geometries]


def _mapped(ring: Ring, ground: Ground) -> Ring:
    """Points in the CRS, some added so that no edge is long; neighbours add the same ones."""
    points = [ring[0]]
    for (x, y), (u, v) in pairwise(ring):
        if ground.crs.is_projected:
            points += [(place, y) for place in _between(x, u)]
            points += [(x, place) for place in _between(y, v)]
        points.append((u, v))
    return [ground.place(point) for point in points]


def _between(start: float, end: float) -> list[float]:
    """Multiples of the longest edge strictly between two places, in order."""
    low, high = sorted((start, end))
    first = math.floor(low / _LONGEST_EDGE) + 1
    places = [float(n * _LONGEST_EDGE) for n in range(first, math.ceil(high / _LONGEST_EDGE))]
    return places if start < end else places[::-1]


def _rounded(geometry: dict[str, Any], ground: Ground) -> dict[str, Any]:
    several = geometry["type"] == "MultiPolygon"
    polygons = geometry["coordinates"] if several else [geometry["coordinates"]]
    if not all(math.isfinite(z) for rings in polygons for ring in rings for p in ring for z in p):
        raise InputError(
            f"{ground.mask} has pixels that have no place in WGS 84.", "Correct its CRS."
        )
    decimals = ground.decimals
    rounded = [
        wound([[(round(x, decimals), round(y, decimals)) for x, y in ring] for ring in rings])
        for rings in polygons
    ]
    return {"type": geometry["type"], "coordinates": rounded if several else rounded[0]}


def wound(polygon: Polygon) -> Polygon:
    """The outer ring counterclockwise, with y upwards, and the holes clockwise."""
    return [
        ring if (signed_area(ring) > 0) == (number == 0) else ring[::-1]
        for number, ring in enumerate(polygon)
    ]


def signed_area(ring: Ring) -> float:
    """Positive if it runs counterclockwise, with y upwards."""
    # From the first point: far from 0 the products would cost the digits that matter.
    x0, y0 = ring[0]
    terms = ((x - x0) * (v - y0) - (u - x0) * (y - y0) for (x, y), (u, v) in pairwise(ring))
    return math.fsum(terms) / 2
