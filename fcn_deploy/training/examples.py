"""Labelled images as training examples, in an order that follows from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from fcn_deploy.training.augment import Augmentation
from fcn_deploy.training.decoded import DecodedPairs


@dataclass(frozen=True)
class Draw:
    """Which example to make: all that is random follows from it and the seed."""

    epoch: int
    index: int


class Examples(TorchDataset[tuple[Tensor, Tensor]]):
    """Augmented labelled images: image uint8 (h, w, 3), labels uint8 (h, w).

    What an example is depends on the seed, the epoch and the index alone, not on the number of
    workers nor on what was drawn before: a resumed training sees what it would have seen.
    """

    def __init__(self, pairs: DecodedPairs, augmentation: Augmentation, seed: int) -> None:
        self._pairs = pairs
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        image, labels = self._pairs.read(draw.index)
        random = np.random.default_rng((self._seed, draw.epoch, draw.index))
        return self._augmentation(image, labels, random)


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
