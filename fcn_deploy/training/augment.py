"""Labelled images as training examples: one random crop and flip, the same for image and mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from fcn_deploy.dataset import Dataset, Pair, read_pair


@dataclass(frozen=True)
class Draw:
    """Which example to make: all that is random follows from it and the seed."""

    epoch: int
    index: int


class Examples(TorchDataset[tuple[Tensor, Tensor]]):
    """Random crops of labelled images: image uint8 (h, w, 3), labels int64 (h, w).

    What an example is depends on the seed, the epoch and the index alone, not on the number of
    workers nor on what was drawn before: a resumed training sees what it would have seen.
    """

    def __init__(
        self, dataset: Dataset, pairs: list[Pair], crop_hw: tuple[int, int], seed: int
    ) -> None:
        self._dataset = dataset
        self._pairs = pairs
        self._crop_hw = crop_hw
        self._seed = seed

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        image, labels = read_pair(self._dataset, self._pairs[draw.index])
        random = np.random.default_rng((self._seed, draw.epoch, draw.index))
        height, width = self._crop_hw
        top = int(random.integers(0, image.shape[0] - height + 1))
        left = int(random.integers(0, image.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        image, labels = image[window], labels[window]
        if random.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return (
            torch.from_numpy(np.ascontiguousarray(image)),
            torch.from_numpy(labels.astype(np.int64)),
        )


class Shuffle(Sampler[Draw]):
    """Each example once an epoch, in an order that follows from seed and epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
        return (Draw(self.epoch, int(index)) for index in order)
