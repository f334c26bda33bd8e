"""Files that are read, segmented and written by rows: time and memory against the height."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from peak import Peak
from plain import OVERLAP, TILE, TINY
from scenes import saved_scene

import fcn_deploy
from fcn_deploy.batch import segment_items
from fcn_deploy.items import Item
from fcn_deploy.tiling_options import Tiling

TILINGS = {"tile": Tiling((TILE, TILE), OVERLAP), "auto": Tiling("auto", OVERLAP)}
_ANY_SIZE = 1 << 40


class Cost(NamedTuple):
    """Of one image file to its mask.

    Attributes:
        seconds: From opening the one to closing the other.
        extra: Peak of resident bytes beyond the loaded and warm model.
        crops: How many.
        crop_hw: Their size.
    """

    seconds: float
    extra: int
    crops: int
    crop_hw: tuple[int, int]


def saved_tiff(folder: Path, image_hw: tuple[int, int]) -> Path:
    """A TIFF of 512x512 tiles, deflated: one scene and its mirror images, side by side."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is not meant to be

    height, width = image_hw
    path = folder / f"scene-{height}x{width}.tif"
    if path.exists():
        return path
    side = 2304
    scene = np.load(saved_scene(folder, (side, side)))
    columns = _mirrored(np.arange(width), side)
    settings = {"count": 3, "dtype": "uint8", "photometric": "RGB", "interleave": "pixel"}
    settings |= {"tiled": True, "blockxsize": 512, "blockysize": 512}
    settings |= {"compress": "deflate", "zlevel": 1, "predictor": 2, "BIGTIFF": "IF_SAFER"}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **settings) as file:
        for top in range(0, height, 512):
            rows = _mirrored(np.arange(top, min(top + 512, height)), side)
            part = scene[rows[:, None], columns]
            file.write(np.moveaxis(part, 2, 0), window=Window(0, top, width, len(rows)))
    return path


def _mirrored(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    folded = index % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def cost_of(ours: Path, file: Path, tiling: str) -> Cost:
    """Segment one file to one mask, as `fcn-deploy segment` does.

    To be called in a process of its own.
    """
    with fcn_deploy.load(ours, provider="cpu") as model, tempfile.TemporaryDirectory() as out:
        model.segment(TINY, tile=(64, 64), overlap=0)
        items = [Item(file, file.stem)]
        with Peak() as peak:
            start = time.perf_counter()
            (report,) = segment_items(
                model, items, Path(out), tiling=TILINGS[tiling], max_pixels=_ANY_SIZE
            )
            seconds = time.perf_counter() - start
    if report.status != "done":
        raise RuntimeError(report.error)
    return Cost(seconds, peak.extra, report.crops, (report.crop_height, report.crop_width))
