"""How much of a large image is each class? Counted band by band; the image is never in memory.

python samples/class_areas.py runs/road/model.onnx orthophoto.tif
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fcn_deploy
from fcn_deploy.outputs import open_source
from fcn_deploy.tiling_options import Tiling


def main(model: str, image: str) -> None:
    """Print the share of each class."""
    with fcn_deploy.load(model) as segmenter, open_source(Path(image), max_pixels=10**10) as source:
        classes = segmenter.spec.classes
        counts = np.zeros(len(classes), np.int64)
        grid = segmenter.plan(source.image_hw, Tiling(max_memory_mib=256))
        for band in segmenter.bands(source, grid):
            counts += np.bincount(band.fields.labels.ravel(), minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        print(f"{name:<20} {count / counts.sum():7.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
