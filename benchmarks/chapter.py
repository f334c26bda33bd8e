"""The training loop of "Dive into Deep Learning", chapter 14.11, as plain PyTorch.

What it computes is the chapter's; it is written anew, without its plotting and its d2l package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as V
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, read_image
from torchvision.models import get_model


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """All images in memory, decoded and normalised to float32; a random crop of one at a time."""

    def __init__(self, data: Path, crop_hw: tuple[int, int]) -> None:
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        images = sorted((data / "train" / "images").iterdir())
        self._images = [
            V.normalize(read_image(str(path), ImageReadMode.RGB).float() / 255, mean, std)
            for path in images
        ]
        masks = data / "train" / "masks"
        self._labels = [
            read_image(str(masks / f"{path.stem}.png"), ImageReadMode.UNCHANGED)[0].long()
            for path in images
        ]
        self._crop_hw = crop_hw

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self._images[index], self._labels[index]
        height, width = self._crop_hw
        top = int(torch.randint(0, image.shape[1] - height + 1, ()))
        left = int(torch.randint(0, image.shape[2] - width + 1, ()))
        window = (slice(top, top + height), slice(left, left + width))
        return image[(slice(None), *window)], labels[window]


def network(classes: int, backbone: str) -> nn.Sequential:
    """ResNet body, 1x1 convolution, transposed convolution of stride 32."""
    resnet = get_model(backbone, weights=None)
    net = nn.Sequential(*list(resnet.children())[:-2])
    net.add_module("final_conv", nn.Conv2d(resnet.fc.in_features, classes, 1))
    net.add_module("transpose_conv", nn.ConvTranspose2d(classes, classes, 64, 32, 16))
    return net


class Chapter:
    """Contiguous float32, nothing overlapped but the reading of images."""

    def __init__(
        self, data: Path, crop_hw: tuple[int, int], batch: int, classes: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self._device = device
        self._net = network(classes, "resnet18").to(device)
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.001, weight_decay=1e-3)
        workers = 4 if device.type == "cuda" else 2
        self._loader = DataLoader(
            Crops(data, crop_hw), batch, shuffle=True, drop_last=True, num_workers=workers
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches, epoch after epoch."""
        while True:
            yield from ((image, labels) for image, labels in self._loader)

    def step(self, image: Tensor, labels: Tensor) -> None:
        """Learn from a batch, and count the right pixels as the chapter does."""
        image, labels = image.to(self._device), labels.to(self._device)
        self._net.train()
        self._optimizer.zero_grad()
        logits = self._net(image)
        loss = F.cross_entropy(logits, labels, reduction="none", ignore_index=255).mean(1).mean(1)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        float(loss.detach().sum()), int((logits.argmax(1) == labels).sum())
