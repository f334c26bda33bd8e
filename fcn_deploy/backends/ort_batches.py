"""A stream of crops to scores: side by side on CPUs, in batches that fit on GPUs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import DeviceMemoryError

log = logging.getLogger("fcn_deploy")

Batch = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Crops (N, H, W, 3) to scores (N, C, h, w)."""


@dataclass
class BatchLimit:
    """How much a device computes at once; halved, and so remembered, where its memory was short.

    Attributes:
        crops: Most crops at once.
        pixels: Most pixels of all crops together; ``None`` until memory was short.
    """

    crops: int
    pixels: int | None = None

    def of(self, height: int, width: int) -> int:
        """Crops of that size at once, at least one."""
        if self.pixels is None:
            return self.crops
        return max(1, min(self.crops, self.pixels // (height * width)))

    def halve(self, shape: tuple[int, ...]) -> None:
        """Allow half of what just did not fit: crops (N, H, W, 3)."""
        count, height, width = shape[:3]
        self.pixels = count // 2 * height * width
        log.warning(
            "Memory is too short for %d crops of %dx%d at once; from now on it is %d.",
            *(count, height, width, self.of(height, width)),
        )


def stream_side_by_side(
    crops: Iterable[NDArray[np.uint8]], run: Batch, workers: int
) -> Iterator[NDArray[np.float32]]:
    """Scores (C, h, w) of each crop (H, W, 3), in order, as many at once as there are workers.

    Args:
        crops: All of one shape.
        run: Computes a batch of one, by several threads at the same time.
        workers: Threads.
    """
    waiting: deque[Future[NDArray[np.float32]]] = deque()
    with ThreadPoolExecutor(workers, "fcn-deploy-crop") as pool:
        try:
            for crop in crops:
                # A copy, unless it is whole rows: the band that it lies in may be let go.
                waiting.append(pool.submit(run, np.ascontiguousarray(crop)[None]))
                if len(waiting) > workers:
                    yield waiting.popleft().result()[0]
            while waiting:
                yield waiting.popleft().result()[0]
        finally:
            for future in waiting:
                future.cancel()


def stream_batches(
    crops: Iterable[NDArray[np.uint8]], run: Batch, limit: BatchLimit
) -> Iterator[NDArray[np.float32]]:
    """Scores (C, h, w) of each crop (H, W, 3), in order; a batch is stacked while one is computed.

    Args:
        crops: All of one shape; each is copied before the next one is asked for.
        run: Computes a batch, in a thread of its own; raises
            :class:`~fcn_deploy.errors.DeviceMemoryError` where it does not fit.
        limit: How many to compute at once.

    Raises:
        DeviceMemoryError: Not even a single crop fits.
    """
    waiting: Future[NDArray[np.float32]] | None = None
    with ThreadPoolExecutor(1, "fcn-deploy-crop") as pool:
        try:
            for batch in _stacked(crops, limit):
                last, waiting = waiting, pool.submit(_fitting, batch, run, limit)
                if last is not None:
                    yield from last.result()
            if waiting is not None:
                yield from waiting.result()
        finally:
            if waiting is not None:
                waiting.cancel()


def _stacked(crops: Iterable[NDArray[np.uint8]], limit: BatchLimit) -> Iterator[NDArray[np.uint8]]:
    batch, filled = np.empty((0, 0, 0, 3), np.uint8), 0
    for crop in crops:
        if not filled:  # anew, as the last batch may still be in use
            batch = np.empty((limit.of(crop.shape[0], crop.shape[1]), *crop.shape), np.uint8)
        batch[filled] = crop
        filled += 1
        if filled == len(batch):
            yield batch
            filled = 0
    if filled:
        yield batch[:filled]


def _fitting(batch: NDArray[np.uint8], run: Batch, limit: BatchLimit) -> NDArray[np.float32]:
    """Compute a batch, in parts where it does not fit as a whole."""
    results: list[NDArray[np.float32]] = []
    done = 0
    while done < len(batch):
        part = batch[done : done + limit.of(batch.shape[1], batch.shape[2])]
        try:
            results.append(run(part))
        except DeviceMemoryError:
            if len(part) == 1:
                raise
            limit.halve(part.shape)
        else:
            done += len(part)
    return results[0] if len(results) == 1 else np.concatenate(results)
