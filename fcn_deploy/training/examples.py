"""Labelled images as training examples, in an order that follows from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler, default_collate

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.training.augment import Augmentation
from fcn_deploy.training.decoded import DecodedPairs


@dataclass(frozen=True)
class Draw:
    """Which example to make: all that is random follows from it and the seed."""

    epoch: int
    index: int


Example = tuple[Tensor, Tensor]
"""Image uint8 (h, w, 3) and labels uint8 (h, w), or a batch of them."""


class Examples(TorchDataset[Example | FcnDeployError]):
    """Augmented labelled images, or what was wrong with one.

    What an example is depends on the seed, the epoch and the index alone, not on the number of
    workers nor on what was drawn before: a resumed training sees what it would have seen.
    """

    def __init__(self, pairs: DecodedPairs, augmentation: Augmentation, seed: int) -> None:
        self._pairs = pairs
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, draw: Draw) -> Example | FcnDeployError:
        try:
            image, labels = self._pairs.read(draw.index)
        except FcnDeployError as error:
            return error  # PyTorch would add the traceback of the worker to what users read
        random = np.random.default_rng((self._seed, draw.epoch, draw.index))
        return self._augmentation(image, labels, random)


def gathered(items: list[Example | FcnDeployError]) -> Example | FcnDeployError:
    """A batch, or the first thing that was wrong."""
    wrong = next((item for item in items if isinstance(item, FcnDeployError)), None)
    batch: Example | FcnDeployError = default_collate(items) if wrong is None else wrong
    if isinstance(batch, list):
        batch = (batch[0], batch[1])
    return batch


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
