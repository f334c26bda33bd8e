"""May the exported file be used instead of the checkpoint? Ask for the figures.

python samples/compare_backends.py runs/road/best.safetensors runs/road/model.onnx photos/
"""

from __future__ import annotations

import sys
from pathlib import Path

from fcn_deploy.backends import open_backend
from fcn_deploy.items import list_items
from fcn_deploy.parity import compare, crops_of_images


def main(reference: str, candidate: str, photos: str) -> None:
    """Compare logits and labels of two model files on crops of real photographs."""
    images = [item.source for item in list_items([photos])]
    with open_backend(Path(reference)) as trusted, open_backend(Path(candidate)) as doubted:
        report = compare(trusted, doubted, crops_of_images(images))
    print(report.summary())
    report.require()


if __name__ == "__main__":
    main(*sys.argv[1:4])
