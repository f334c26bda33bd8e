"""Decoded images and masks, kept for the next epochs in memory that all readers share."""

from __future__ import annotations

import mmap
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.dataset import Dataset, Pair, read_pair

_LAYERS = 4  # red, green, blue, label


class DecodedPairs:
    """Labelled images that are decoded when they are first read, and kept.

    Processes that are forked from the one that made it share what any of them has decoded; others
    decode for themselves. What does not fit is decoded each time.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: list[Pair],
        image_hws: list[tuple[int, int]],
        limit_mib: int,
    ) -> None:
        self._dataset = dataset
        self._pairs = pairs
        self._hws = image_hws
        # One byte for each image lies in front: whether its pixels are there.
        sizes = (height * width * _LAYERS for height, width in image_hws)
        *self._starts, end = accumulate(sizes, initial=len(pairs))
        # Anonymous, so that no small /dev/shm limits it; pages exist once they are written.
        self._size = min(end, limit_mib * 2**20)
        self._memory = mmap.mmap(-1, max(self._size, 1))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._memory = mmap.mmap(-1, max(self._size, 1))

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and labels (H, W), both uint8, not to be written to.

        Raises:
            InputError: The image can no longer be read.
            DataError: The mask cannot, or has another size than its image.
        """
        height, width = self._hws[index]
        pixels = height * width
        start = self._starts[index]
        if start + pixels * _LAYERS > self._size:
            return read_pair(self._dataset, self._pairs[index])
        stored = np.frombuffer(self._memory, np.uint8, pixels * _LAYERS, start)
        kept = (
            stored[: 3 * pixels].reshape(height, width, 3),
            stored[3 * pixels :].reshape(height, width),
        )
        if not self._memory[index]:
            decoded = read_pair(self._dataset, self._pairs[index])
            if decoded[1].shape != (height, width):  # replaced since it was checked
                return decoded
            for target, source in zip(kept, decoded, strict=True):
                target[...] = source
            self._memory[index] = 1  # last: another process may read at any time
        return kept
