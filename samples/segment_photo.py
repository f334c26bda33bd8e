"""Segment one photograph and save the overlay; needs no torch.

python samples/segment_photo.py runs/road/model.onnx photo.jpg overlay.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fcn_deploy
from fcn_deploy.image import overlay, read_image, write_photo


def main(model_file: str, photo: str, picture: str) -> None:
    """Print how much of the photograph each class covers, and draw the classes over it."""
    image = read_image(Path(photo))
    with fcn_deploy.load(model_file) as model:
        labels = model.segment(image, tile=(512, 512), overlap=64)
        shares = np.bincount(labels.ravel(), minlength=model.spec.num_classes) / labels.size
        for name, share in zip(model.spec.classes, shares, strict=True):
            print(f"{name:<12} {share:6.1%}")
        write_photo(Path(picture), overlay(image, labels, model.spec.palette))


if __name__ == "__main__":
    main(*sys.argv[1:4])
