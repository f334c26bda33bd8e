"""What fakes of the Backend seam have in common, and a network whose answer tells where it was."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import Footprint
from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.upsample import FloatArray, Upsampling, window_matrix

if TYPE_CHECKING:
    from fcn_deploy.backends import Backend


class WithoutScores:
    """A backend whose crops are merged as logits; has no device to give back."""

    footprint = Footprint(bytes_per_pixel=100)
    upsampling: Upsampling | None = None
    halo: int | None = None
    labels_on_device = True

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError(f"there are no scores of {crops.shape}")

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        raise AssertionError(f"there are no scores of {crops}")

    def close(self) -> None:
        pass

    def __enter__(self: Backend) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def bilinear(classes: int, stride: int) -> NDArray[np.float64]:
    """The kernel (C, C, 2s, 2s) that enlarges each class alone, linearly."""
    ramp = 1 - np.abs(np.arange(2 * stride) - stride + 0.5) / stride
    kernel = np.zeros((classes, classes, 2 * stride, 2 * stride))
    for label in range(classes):
        kernel[label, label] = np.outer(ramp, ramp)
    return kernel


def transposed_convolution(scores: NDArray[np.floating], kernel: FloatArray) -> NDArray[np.float64]:
    """By the definition: every cell adds its kernel, in float64; then s/2 pixels are cut off."""
    _, classes, size, _ = kernel.shape
    s, (_, rows, columns) = size // 2, scores.shape
    whole = np.zeros((classes, (rows + 1) * s, (columns + 1) * s))
    stamps = np.einsum("ihw,icab->chwab", scores.astype(np.float64), kernel.astype(np.float64))
    for row in range(rows):
        for column in range(columns):
            part = (slice(row * s, row * s + size), slice(column * s, column * s + size))
            whole[(slice(None), *part)] += stamps[:, row, column]
    return whole[:, s // 2 : rows * s + s // 2, s // 2 : columns * s + s // 2]


class Coded:
    """A network whose scores depend on pixels, on their neighbours and on their place in the crop.

    A pointwise network could not tell a misplaced crop, a constant one not a wrong weight.

    Args:
        seed: Of kernel and bias.
        classes: C.
        stride: Pixels from one score to the next.
        learned: How far the kernel is from the bilinear one.
        placed: Whether the place in the crop counts. Without it a score depends on its own cell
            and on the eight around, zeros outside of the crop, like those of a small real network.
    """

    def __init__(
        self, seed: int, classes: int, stride: int, learned: float = 0, *, placed: bool = True
    ) -> None:
        random = np.random.default_rng(seed)
        self.stride, self.classes, self.placed = stride, classes, placed
        kernel = bilinear(classes, stride)
        kernel += learned * random.standard_normal(kernel.shape)
        self.kernel: FloatArray = kernel.astype(np.float32)
        self.bias: FloatArray = random.standard_normal(classes).astype(np.float32)
        self.upsampling = Upsampling(window_matrix(self.kernel, self.bias), classes)

    def scores(self, crop: NDArray[np.uint8]) -> FloatArray:
        s = self.stride
        height, width = crop.shape[0] // s, crop.shape[1] // s
        cells = crop.reshape(height, s, width, s, 3).mean((1, 3, 4))
        around = np.pad(cells, 1)
        context = cells + around[:-2, 1:-1] - around[1:-1, 2:] + 0.5 * around[2:, :-2]
        rows, columns = np.mgrid[:height, :width] * float(self.placed)
        channels = [
            np.sin(context * (c % 7 + 1) / 20 + rows / (3 + c) - columns / 5 + c)
            for c in range(self.classes)
        ]
        return np.stack(channels).astype(np.float32)

    def logits(self, scores: FloatArray) -> NDArray[np.float64]:
        return transposed_convolution(scores, self.kernel) + self.bias[:, None, None]


class CodedBackend(WithoutScores):
    """A :class:`Coded` network behind the Backend seam, with as many workers as wanted.

    Args:
        network: What computes.
        workers: Crops that are computed at the same time.
        delays_ms: How long each crop takes, round and round: crops overtake each other.
        in_scores: Whether crops are merged as scores, or as logits.
    """

    name, provider, precision = "fake", "numpy", "fp32"
    labels_on_device = False

    def __init__(
        self,
        network: Coded,
        *,
        workers: int = 1,
        delays_ms: tuple[float, ...] = (0,),
        in_scores: bool = True,
        limits: ShapeLimits | None = None,
    ) -> None:
        classes = network.classes
        self.network, self.workers, self.delays_ms = network, workers, delays_ms
        self.spec = ModelSpec(
            tuple(f"class{label}" for label in range(classes)),
            voc_palette(classes),
            score_stride=network.stride,
        )
        self.limits = limits or ShapeLimits()
        self.upsampling = network.upsampling if in_scores else None
        self.shapes: list[tuple[int, ...]] = []

    def _scores(self, crop: NDArray[np.uint8]) -> FloatArray:
        scores = self.network.scores(crop)
        check_finite(scores, "A fake")
        return scores

    def scores(self, crops: NDArray[np.uint8]) -> FloatArray:
        self.limits.check(crops.shape)
        self.shapes.append(crops.shape)
        return np.stack([self._scores(crop) for crop in crops])

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[FloatArray]:
        def late(number: int, crop: NDArray[np.uint8]) -> FloatArray:
            time.sleep(self.delays_ms[number % len(self.delays_ms)] / 1000)
            return self._scores(crop)

        waiting: deque[Future[FloatArray]] = deque()
        with ThreadPoolExecutor(self.workers, "fake-crop") as pool:
            for number, crop in enumerate(crops):
                self.limits.check((1, *crop.shape))
                self.shapes.append((1, *crop.shape))
                waiting.append(pool.submit(late, number, crop.copy()))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def logits(self, crops: NDArray[np.uint8]) -> FloatArray:
        scores = self.scores(crops)
        return np.stack([self.network.logits(part) for part in scores]).astype(np.float32)

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(self.logits(crops).argmax(1), np.uint8)
