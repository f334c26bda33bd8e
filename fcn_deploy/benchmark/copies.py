"""What it takes to bring crops to a GPU and labels back, by the way that engines do."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends.cuda import Cuda, DeviceMemory, PinnedMemory, Stream
from fcn_deploy.backends.tensorrt_flavour import require_gpu

_RUNS = 20


class Copies(NamedTuple):
    """Median milliseconds of each way."""

    in_ms: float
    out_ms: float


def copies_of(shape: tuple[int, int, int], cuda: Cuda | None = None) -> Copies:
    """Time both copies alone: through pinned memory, and on a stream, as a lane does.

    In a recorded run they are one piece with the network, which cannot be timed apart.

    Args:
        shape: Batch, height and width.
        cuda: The device; ``None`` for the first one.

    Raises:
        DeviceError: There is no GPU, or it does not work.
    """
    cuda = cuda or Cuda(require_gpu())
    crops = np.zeros((*shape, 3), np.uint8)
    stream, device, pinned = Stream(cuda), DeviceMemory(cuda), PinnedMemory(cuda)
    try:
        device.reserve(crops.nbytes)
        pinned.reserve(crops.nbytes)
        ways = [_there_and_back(stream, device, pinned, crops) for _ in range(_RUNS)]
    finally:
        stream.close()
        device.free()
        pinned.free()
    up, down = np.median(np.asarray(ways), 0) * 1e3
    return Copies(round(float(up), 4), round(float(down), 4))


def _there_and_back(
    stream: Stream, device: DeviceMemory, pinned: PinnedMemory, crops: NDArray[np.uint8]
) -> tuple[float, float]:
    """Seconds of one way and the other."""
    labels = crops.shape[:3]
    start = time.perf_counter()
    pinned.view(crops.shape, np.uint8)[...] = crops
    stream.upload(device.address, pinned.address, crops.nbytes)
    stream.wait()
    there = time.perf_counter()
    stream.download(pinned.address, device.address, crops.nbytes // 3)
    stream.wait()
    pinned.view(labels, np.uint8).copy()
    return there - start, time.perf_counter() - there
