"""The head of an engine as the tiler's upsampling: merged scores up, labels down."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends.trt_engine import Engine
from fcn_deploy.backends.trt_lane import Lane
from fcn_deploy.upsample import FloatArray, Upsampling


class EngineUpsampler:
    """The upsampling with arg-max on the GPU; see :class:`~fcn_deploy.upsample.Upsampler`.

    The engine decides all windows between neighbouring cells, also those that lie between two
    crops and that nobody asked for: a few columns, cheaper than to sort them out.

    Args:
        engine: The head.
        host: The same layer on the host, for all that needs more than labels.
        graphs: As in :class:`~fcn_deploy.backends.trt_lane.Lane`.
    """

    def __init__(self, engine: Engine, host: Upsampling, *, graphs: bool = True) -> None:
        self.num_classes, self.stride, self.border = host.num_classes, host.stride, host.border
        self._engine, self._host = engine, host
        # One decides while the other's cells go up and labels come down.
        self._lanes = [Lane(engine, graphs=graphs) for _ in range(2)]

    def pixels(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Labels uint8 (rows * s, (K - 1) * s) of all neighbours, and where each window begins."""
        s, (rows, columns, _) = self.stride, cells.shape
        labels = np.empty(((rows - 1) * s, (columns - 1) * s), np.uint8)
        waiting: deque[tuple[Lane, slice, slice]] = deque()
        try:
            for number, (high, wide) in enumerate(self._pieces(rows, columns)):
                if len(waiting) == len(self._lanes):
                    self._collect(labels, *waiting.popleft())
                lane = self._lanes[number % len(self._lanes)]
                # One more cell than windows along each side.
                lane.start([cells[high.start : high.stop + 1, wide.start : wide.stop + 1]])
                waiting.append((lane, high, wide))
            while waiting:
                self._collect(labels, *waiting.popleft())
        finally:
            for lane, _, _ in waiting:
                lane.abandon()
        return labels, left * s

    def logits(
        self, cells: FloatArray, left: NDArray[np.intp]
    ) -> Iterator[tuple[slice, FloatArray]]:
        """As :meth:`~fcn_deploy.upsample.Upsampling.logits`, on the host."""
        return self._host.logits(cells, left)

    def _pieces(self, rows: int, columns: int) -> list[tuple[slice, slice]]:
        """Windows (rows, columns) in pieces that the head takes."""
        _, high, wide = (size - 1 for size in self._engine.profiles[0].max)
        return [
            (slice(top, min(top + high, rows - 1)), slice(start, min(start + wide, columns - 1)))
            for top in range(0, rows - 1, high)
            for start in range(0, columns - 1, wide)
        ]

    def _collect(self, labels: NDArray[np.uint8], lane: Lane, high: slice, wide: slice) -> None:
        s = self.stride
        part = lane.finish()["labels"][0]
        labels[high.start * s : high.stop * s, wide.start * s : wide.stop * s] = part

    def close(self) -> None:
        """Give the device's memory back."""
        for lane in self._lanes:
            lane.close()
        self._engine.close()
