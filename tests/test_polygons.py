"""Polygons drawn back are the mask; what lies on earth lies where GDAL says."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.warp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fcn_deploy.errors import EnvironmentFault, InputError
from fcn_deploy.image import write_mask
from fcn_deploy.polygons import write_polygons

CLASSES = ("ground", "fountain ⛲", "road")
PALETTE = ((40, 120, 40), (200, 30, 30), (0, 10, 255))
UTM = "EPSG:32632"


def write_tiff(path: Path, labels: NDArray[Any], **options: Any) -> Path:
    """A mask as tiled TIFF: with ``crs`` and ``transform``, georeferenced."""
    height, width = labels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it lies nowhere on earth
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype="uint8",
            tiled=True,
            blockxsize=128,
            blockysize=128,
            compress="deflate",
            nodata=255,
            **options,
        ) as dataset:
            dataset.write(labels, 1)
            dataset.write_colormap(1, dict(enumerate(PALETTE)))
    return path


def polygons_of(mask: Path, path: Path | None = None) -> Any:
    path = path or mask.with_suffix(".geojson")
    count = write_polygons(mask, path, CLASSES, PALETTE)
    collection = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == count
    return collection


def drawn_back(features: list[Any], hw: tuple[int, int]) -> NDArray[np.uint8]:
    labels = np.full(hw, 255, np.uint8)
    shapes = [(item["geometry"], item["properties"]["label"]) for item in features]
    if shapes:
        rasterio.features.rasterize(shapes, out=labels)
    return labels


def signed_area(ring: list[list[float]]) -> float:
    return sum(x * v - u * y for (x, y), (u, v) in pairwise(ring)) / 2


def nested() -> NDArray[np.uint8]:
    """Rings in rings, with islands that touch at corners alone."""
    rows, columns = np.mgrid[:40, :50]
    labels: NDArray[np.uint8] = (np.maximum(abs(rows - 20), abs(columns - 25)) // 3 % 3).astype(
        np.uint8
    )
    labels[10:20, 10:20] = np.indices((10, 10)).sum(0) % 2
    labels[30:33, 2:9] = 255
    return labels


label_images = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda hw: arrays(np.uint8, hw, elements=st.sampled_from([0, 1, 2, 255]))
)


@settings(max_examples=60, deadline=None)
@given(label_images, st.booleans())
def test_polygons_drawn_back_are_the_mask(
    tmp_path_factory: pytest.TempPathFactory, labels: NDArray[np.uint8], as_tiff: bool
) -> None:
    check_drawn_back(tmp_path_factory.mktemp("drawn"), labels, as_tiff)


@pytest.mark.parametrize("as_tiff", [False, True])
def test_holes_and_islands(tmp_path: Path, as_tiff: bool) -> None:
    check_drawn_back(tmp_path, nested(), as_tiff)


def check_drawn_back(folder: Path, labels: NDArray[np.uint8], as_tiff: bool) -> None:
    mask = folder / ("mask.tif" if as_tiff else "mask.png")
    if as_tiff:
        write_tiff(mask, labels)
    else:
        write_mask(mask, labels, PALETTE)
    collection = polygons_of(mask)
    features = collection["features"]
    np.testing.assert_array_equal(drawn_back(features, labels.shape), labels)
    assert collection["coordinate_space"] == "pixels"
    assert collection["image_hw"] == list(labels.shape)
    assert "crs" not in collection
    assert sum(item["properties"]["area"] for item in features) == (labels != 255).sum()
    for item in features:
        outer, *holes = item["geometry"]["coordinates"]
        assert signed_area(outer) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
        area = sum(signed_area(ring) for ring in (outer, *holes))
        assert item["properties"]["area"] == area
        for ring in (outer, *holes):
            assert ring[0] == ring[-1]
            assert len(set(map(tuple, ring))) == len(ring) - 1  # no ring touches itself
    assert {path.name for path in folder.iterdir()} == {mask.name, "mask.geojson"}


def test_what_a_feature_says(tmp_path: Path) -> None:
    labels = np.full((5, 7), 255, np.uint8)
    labels[1:3, 2:5] = 1
    write_mask(tmp_path / "mask.png", labels, PALETTE)
    (feature,) = polygons_of(tmp_path / "mask.png")["features"]
    assert feature == {
        "type": "Feature",
        "properties": {"label": 1, "class": "fountain ⛲", "color": "#c81e1e", "area": 6},
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[2, 1], [5, 1], [5, 3], [2, 3], [2, 1]]],
        },
    }


def test_a_mask_of_ignored_pixels_has_no_features(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", np.full((9, 9), 255, np.uint8), PALETTE)
    assert polygons_of(tmp_path / "mask.png")["features"] == []


@pytest.mark.parametrize("size_m", [10.0, 0.02])
def test_a_georeferenced_mask_lies_where_it_should(tmp_path: Path, size_m: float) -> None:
    """Drawn back from degrees on the map of the mask: the mask, also where a pixel is 2 cm."""
    labels = np.tile(nested(), (4, 5))
    transform = rasterio.Affine(size_m, 0, 600_000, 0, -size_m, 5_300_000)
    mask = write_tiff(tmp_path / "mask.tif", labels, crs=UTM, transform=transform)
    collection = polygons_of(mask)
    assert set(collection) == {"type", "features"}
    shapes = []
    for item in collection["features"]:
        assert item["properties"]["area_m2"] == pytest.approx(
            item["properties"]["area"] * size_m**2
        )
        rings = item["geometry"]["coordinates"]
        assert signed_area_at_origin(rings[0]) > 0
        assert all(signed_area_at_origin(hole) < 0 for hole in rings[1:])
        back = rasterio.warp.transform_geom("EPSG:4326", UTM, item["geometry"])
        shapes.append((back, item["properties"]["label"]))
    redrawn = np.full(labels.shape, 255, np.uint8)
    rasterio.features.rasterize(shapes, out=redrawn, transform=transform)
    np.testing.assert_array_equal(redrawn, labels)
    xs, ys = rasterio.warp.transform(UTM, "EPSG:4326", [600_000], [5_300_000])
    longitude, latitude = collection["features"][0]["geometry"]["coordinates"][0][0]
    assert abs(longitude - xs[0]) < 0.05
    assert abs(latitude - ys[0]) < 0.05


def signed_area_at_origin(ring: list[list[float]]) -> float:
    x, y = ring[0]
    return signed_area([[u - x, v - y] for u, v in ring])


def test_long_edges_follow_the_curve(tmp_path: Path) -> None:
    """A straight edge of 60 km in UTM leaves the straight line in degrees by more than a pixel."""
    labels = np.zeros((8, 2000), np.uint8)
    labels[4:] = 1
    transform = rasterio.Affine(30, 0, 300_000, 0, -30, 7_000_000)
    mask = write_tiff(tmp_path / "mask.tif", labels, crs=UTM, transform=transform)
    for item in polygons_of(mask)["features"]:
        ring = item["geometry"]["coordinates"][0]
        middles = [[(x + u) / 2, (y + v) / 2] for (x, y), (u, v) in pairwise(ring)]
        for points, close in ((ring, 0.1), (middles, 0.5)):  # in metres
            xs, ys = rasterio.warp.transform("EPSG:4326", UTM, *zip(*points, strict=True))
            across = (np.subtract(7_000_000, ys)) / 30
            along = np.subtract(xs, 300_000) / 30
            off = np.minimum(abs(across - np.rint(across)), abs(along - np.rint(along) % 2000))
            assert off.max() * 30 < close


def test_the_antimeridian_cuts(tmp_path: Path) -> None:
    labels = np.ones((20, 20), np.uint8)
    transform = rasterio.Affine(1000, 0, 156_000, 0, -1000, 1_000)
    mask = write_tiff(tmp_path / "mask.tif", labels, crs="EPSG:32601", transform=transform)
    (feature,) = polygons_of(mask)["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    longitudes = [x for rings in feature["geometry"]["coordinates"] for x, _ in rings[0]]
    assert min(longitudes) == -180
    assert max(longitudes) == 180
    assert all(abs(longitude) > 179 for longitude in longitudes)
    assert all(signed_area(rings[0]) > 0 for rings in feature["geometry"]["coordinates"])


@pytest.mark.parametrize(
    ("crs", "metres"),
    [(UTM, True), ("EPSG:3857", False), ("EPSG:4326", False), ("EPSG:2263", False)],
)
def test_square_metres_only_where_the_map_has_them(tmp_path: Path, crs: str, metres: bool) -> None:
    small = 1e-5 if crs == "EPSG:4326" else 1.0
    transform = rasterio.Affine(small, 0, 10, 0, -small, 20)
    mask = write_tiff(tmp_path / "m.tif", np.ones((4, 4), np.uint8), crs=crs, transform=transform)
    (feature,) = polygons_of(mask)["features"]
    assert ("area_m2" in feature["properties"]) == metres


def test_a_mask_that_lies_nowhere_is_in_pixels(tmp_path: Path) -> None:
    mask = write_tiff(tmp_path / "mask.tif", nested(), crs=UTM)
    assert polygons_of(mask)["coordinate_space"] == "pixels"


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_a_damaged_mask_is_refused_and_the_old_file_stays(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (300, 300), np.uint8)
    mask, path = tmp_path / name, tmp_path / "out.geojson"
    if mask.suffix == ".tif":
        write_tiff(mask, labels)
    else:
        write_mask(mask, labels, PALETTE)
    content = mask.read_bytes()
    path.write_text("old")
    damaged = (
        content[: len(content) * 2 // 3],
        content[: len(content) // 3] + bytes(99),
        b"",
        b"?",
    )
    for number, part in enumerate(damaged):
        mask.write_bytes(part if number != 1 else part + content[len(part) :])
        with pytest.raises(InputError, match=name):
            write_polygons(mask, path, CLASSES, PALETTE)
    assert path.read_text() == "old"
    assert {item.name for item in tmp_path.iterdir()} == {name, "out.geojson"}
    assert capfd.readouterr() == ("", "")


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.geojson"
    with pytest.raises(InputError, match="There is no mask"):
        write_polygons(tmp_path / "missing.png", path, CLASSES, PALETTE)
    mask = tmp_path / "mask.png"
    write_mask(mask, np.full((3, 3), 3, np.uint8), PALETTE)
    with pytest.raises(InputError, match="has the label 3, and there are 3 classes"):
        write_polygons(mask, path, CLASSES, PALETTE)
    # Another format that GDAL knows; it would read what it points to.
    mask.write_text(f"<VRTDataset rasterXSize='3' rasterYSize='3'>{mask}</VRTDataset>")
    with pytest.raises(InputError, match="cannot be turned into polygons"):
        write_polygons(mask, path, CLASSES, PALETTE)
    assert list(tmp_path.iterdir()) == [mask]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", np.zeros((3, 3), np.uint8), PALETTE)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="Cannot write"):
        write_polygons(tmp_path / "mask.png", tmp_path / "file" / "out", CLASSES, PALETTE)


def test_memory_does_not_grow_with_the_pixels(tmp_path: Path) -> None:
    """The masks have the same regions; one of them is 14 million pixels larger."""
    peaks = []
    for scale in (2, 28):
        labels = np.kron(np.tile(nested(), (3, 3)), np.ones((scale, scale), np.uint8))
        mask = write_tiff(tmp_path / f"{scale}.tif", labels)
        code = (
            "from pathlib import Path; from fcn_deploy.polygons import write_polygons; "
            f"write_polygons(Path({str(mask)!r}), Path({str(mask)!r} + '.geojson'), "
            f"{CLASSES!r}, {PALETTE!r}); "
            # Not getrusage: its peak is that of this process where that one is larger.
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peaks.append(int(run.stdout) / 1024)
    small, large = peaks
    assert large - small < 24  # MiB; of which 14 lie in GDAL's cache, which ends at 64
