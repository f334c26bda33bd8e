"""Export a network of your own: here a small one that ends with a bilinear resize.

python samples/export_own_network.py own.onnx
"""

from __future__ import annotations

import sys

import torchvision
from torch import nn

import fcn_deploy


def main(path: str) -> None:
    """Write the ONNX file, and say how near to PyTorch it is."""
    resnet = torchvision.models.resnet18(weights=None)
    network = nn.Sequential(  # normalised images (N, 3, H, W) to logits (N, 2, H, W)
        *list(resnet.children())[:6],
        nn.Conv2d(128, 2, 1),
        nn.Upsample(scale_factor=8, mode="bilinear"),
    )
    spec = fcn_deploy.ModelSpec.custom(["ground", "road"], output_stride=8)
    print(fcn_deploy.export(network, spec, path).summary())


if __name__ == "__main__":
    main(sys.argv[1])
