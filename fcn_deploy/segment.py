"""One image to one mask: plan crops, run the backend, merge; no files, no vendor."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fcn_deploy.auto_tile import DEFAULT_MAX_MEMORY_MIB, choose_grid
from fcn_deploy.backends import Backend
from fcn_deploy.errors import ModelError, UsageError
from fcn_deploy.logit_merging import decide_logits, merge_logits
from fcn_deploy.merging import (
    Band,
    Blend,
    merge_scores,
)
from fcn_deploy.read_ahead import ahead
from fcn_deploy.spec import ModelSpec
from fcn_deploy.tiling import DEFAULT_OVERLAP, CropGrid, cut_crops, plan_crops, row_blocks
from fcn_deploy.tiling_options import Halo, Tile, Tiling
from fcn_deploy.upsample import Fields, FloatArray, Wanted


class RowSource(Protocol):
    """An image that is read from the top down, some rows at a time."""

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The next rows, RGB uint8 (stop - start, W, 3)."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image; the caller owns the arrays.

    Attributes:
        labels: uint8 (H, W) class ids.
        confidence: uint8 (H, W), the softmax probability of the label from 0 to 255; or ``None``.
        probabilities: uint8 (C, H, W), of every class from 0 to 255; or ``None``.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.uint8] | None = None


class Segmenter:
    """A loaded model that segments images of any size.

    The prediction of a pixel is the average of the logits of all crops that cover it, then arg-max.
    Use it as a context manager, or call :meth:`close`, to give device memory back.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.backend.spec

    def segment(
        self,
        image: NDArray[np.uint8],
        *,
        tile: Tile = "auto",
        overlap: int = DEFAULT_OVERLAP,
        halo: Halo = None,
        blend: Blend = "mean",
        max_memory_mib: int = DEFAULT_MAX_MEMORY_MIB,
    ) -> NDArray[np.uint8]:
        """Class of every pixel.

        Args:
            image: RGB uint8 (H, W, 3), any size from 1x1.
            tile: As in :class:`Tiling`.
            overlap: The same.
            halo: The same.
            blend: The same.
            max_memory_mib: The same.

        Returns:
            uint8 (H, W); the caller owns it.

        Raises:
            UsageError: Not such an image, or tile, overlap and halo do not go together.
            CheckFailedError: The network returned values that are not finite.
        """
        return self.predict(image, Tiling(tile, overlap, halo, blend, max_memory_mib)).labels

    def predict(
        self,
        image: NDArray[np.uint8],
        tiling: Tiling = Tiling(),
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Prediction:
        """As :meth:`segment`, with confidence and the probability of every class where wanted.

        Raises:
            UsageError: Not such an image, or tile, overlap and halo do not go together.
            CheckFailedError: The network returned values that are not finite.
        """
        _check_image(image)
        grid = self.plan((image.shape[0], image.shape[1]), tiling)
        wanted = Wanted(confidence, probabilities)
        whole = wanted.empty(grid.image_hw, self.spec.num_classes)
        for band in self.bands(image, grid, blend=tiling.blend, wanted=wanted):
            rows = slice(band.top, band.top + band.rows)
            for part, target in zip(band.fields.arrays(), whole.arrays(), strict=True):
                target[..., rows, :] = part
        return Prediction(whole.labels, whole.confidence, whole.probabilities)

    def bands(
        self,
        source: NDArray[np.uint8] | RowSource,
        grid: CropGrid,
        *,
        blend: Blend = "mean",
        wanted: Wanted = Wanted(),
    ) -> Generator[Band, None, None]:
        """Segment an image that need not be whole in memory.

        Reading, inference and what the caller does with the bands overlap, each in a thread of its
        own. Memory is in proportion to the width of the image and the height of a crop.

        Args:
            source: RGB uint8 (H, W, 3); or what such rows can be read from, from the top down,
                which is done in a thread of its own.
            grid: What :meth:`plan` returned for its size.
            blend: As in :class:`Tiling`.
            wanted: What to compute beside labels.

        Yields:
            Bands of all columns, from the top without gaps.

        Raises:
            CheckFailedError: The network returned values that are not finite.
        """
        # Threads end before this generator does, the last one first: what they read from may be
        # closed right after.
        with ExitStack() as threads:
            if isinstance(source, np.ndarray):
                crops = cut_crops(source, grid)
            else:
                read = ahead(_blocks(source, grid))
                crops = cut_crops(threads.enter_context(closing(read)), grid)
            if len(grid) == 1 and not wanted and self._decides_itself():
                yield from self._decided(crops, grid)
            else:
                yield from self._decide(crops, grid, blend, wanted, threads)

    def plan(
        self,
        image_hw: tuple[int, int],
        tiling: Tiling = Tiling(),
    ) -> CropGrid:
        """The crops that an image of that height and width will be segmented by.

        Raises:
            UsageError: An empty image, or tile, overlap, halo and memory do not go together.
            ModelError: An exact halo is wanted of a model of which it is not known.
        """
        limits, step = self.backend.limits, self.spec.output_stride
        halo, overlap, tile = self._halo(tiling.halo), tiling.overlap, tiling.tile
        if tile == "auto":
            most = limits.max_hw
            if most is None:
                return choose_grid(
                    image_hw,
                    self.backend.footprint,
                    max_memory_mib=tiling.max_memory_mib,
                    overlap=overlap,
                    halo=halo,
                    step=step,
                    min_hw=limits.min_hw,
                )
            holding = limits.holding(image_hw)
            tile = None if holding else limits.opt_hw or most
            limits = holding or limits
            if tile is not None:
                overlap = min(overlap, min(tile) // 2)
        return plan_crops(image_hw, tile, overlap, step=step, min_hw=limits.min_hw, halo=halo)

    def _halo(self, halo: Halo) -> int | None:
        if halo != "exact":
            return halo
        if self.backend.halo is None:
            raise ModelError(
                "How far this network sees is not known, so that there is no exact halo.",
                "Name the --halo in pixels, or use the ONNX file.",
            )
        return self.backend.halo

    def logit_bands(
        self, image: NDArray[np.uint8], grid: CropGrid, *, blend: Blend = "mean"
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Averaged logits of an image, band by band from the top, merged pixel by pixel.

        Yields:
            First row of the band, and float32 (C, rows, W) of the image without its padding.
        """
        height, width = grid.image_hw
        row: list[FloatArray] = []
        for top, left, block in merge_logits(
            grid, self._logits(cut_crops(image, grid), grid), blend=blend
        ):
            row.append(block)
            if left + block.shape[2] == grid.padded_hw[1]:
                if top < height:
                    yield top, np.concatenate(row, 2)[:, : height - top, :width]
                row = []

    def _decide(
        self,
        crops: Iterator[NDArray[np.uint8]],
        grid: CropGrid,
        blend: Blend,
        wanted: Wanted,
        threads: ExitStack,
    ) -> Iterator[Band]:
        upsampling = self.backend.upsampling
        if upsampling is None:
            blocks = merge_logits(grid, self._logits(crops, grid), blend=blend)
            return decide_logits(grid, blocks, wanted)
        if len(grid) == 1:
            scores: Iterable[FloatArray] = (self.backend.scores(c[None])[0] for c in crops)
        else:
            computed = ahead(self.backend.stream_scores(crops), depth=2)
            scores = threads.enter_context(closing(computed))
        return _on_one_core(merge_scores(grid, scores, upsampling, wanted=wanted, blend=blend))

    def _decided(self, crops: Iterator[NDArray[np.uint8]], grid: CropGrid) -> Iterator[Band]:
        height, width = grid.image_hw
        for crop in crops:
            labels = self.backend.labels(crop[None])[0]
            yield Band(0, Fields(np.ascontiguousarray(labels[:height, :width])))

    def _decides_itself(self) -> bool:
        return self.backend.labels_on_device or self.backend.upsampling is None

    def _logits(
        self, crops: Iterator[NDArray[np.uint8]], grid: CropGrid
    ) -> Iterator[NDArray[np.float32]]:
        # One crop a call on CPUs, where a batch only costs memory; engines get what they are for.
        batch = min(self.backend.limits.max_batch or 1, len(grid))
        while chunk := list(islice(crops, batch)):
            yield from self.backend.logits(np.stack(chunk))

    def close(self) -> None:
        """Give the device's memory back."""
        self.backend.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _blocks(source: RowSource, grid: CropGrid) -> Iterator[NDArray[np.uint8]]:
    for start, stop in row_blocks(grid):
        # A row of crops may lie in the padding alone, where an engine takes no smaller image.
        yield (
            source.rows(start, stop)
            if start < stop
            else np.empty((0, grid.image_hw[1], 3), np.uint8)
        )


def _on_one_core(bands: Iterator[Band]) -> Iterator[Band]:
    """Keep matrix products to this thread: the other cores are busy with crops.

    Threads of a BLAS that wait for each other on busy cores took twice as long. After a single crop
    it is the runtime's own threads that keep spinning for a while, which cost a seventh.
    """
    blas = ThreadpoolController().select(user_api="blas")
    while True:
        with blas.limit(limits=1):
            band = next(bands, None)
        if band is None:
            return
        yield band


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"An image is RGB uint8 (H, W, 3), not {image.dtype} {image.shape}.",
            "Read it with Pillow: numpy.asarray(Image.open(path).convert('RGB'))",
        )
