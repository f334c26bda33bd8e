"""One image to one mask: plan crops, run the backend, merge; no files, no vendor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.artifacts import find_model
from fcn_deploy.backends import SUFFIXES, Backend, open_backend
from fcn_deploy.backends.tensorrt_flavour import require_gpu
from fcn_deploy.errors import UsageError
from fcn_deploy.freshness import require_fresh
from fcn_deploy.spec import ModelSpec
from fcn_deploy.tiling import DEFAULT_OVERLAP, CropGrid, cut_crops, merge_logits, plan_crops

Tile = tuple[int, int] | Literal["auto"] | None
"""Height and width of a crop in pixels; ``"auto"``; or ``None`` for the whole image at once."""

AUTO_WHOLE_PIXELS = 4 * 1024 * 1024
AUTO_TILE = (1024, 1024)


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image; the caller owns the arrays.

    Attributes:
        labels: uint8 (H, W) class ids.
        confidence: uint8 (H, W), the softmax probability of the label from 0 to 255; or ``None``.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None = None


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
        self, image: NDArray[np.uint8], *, tile: Tile = "auto", overlap: int = DEFAULT_OVERLAP
    ) -> NDArray[np.uint8]:
        """Class of every pixel.

        Args:
            image: RGB uint8 (H, W, 3), any size from 1x1.
            tile: Height and width of the crops, multiples of the output stride; ``"auto"`` takes
                the whole image where that is reasonable; ``None`` always does.
            overlap: Pixels that neighbouring crops share, at least.

        Returns:
            uint8 (H, W); the caller owns it.

        Raises:
            UsageError: Not such an image, or tile and overlap do not go together.
            CheckFailedError: The network returned values that are not finite.
        """
        return self.predict(image, tile=tile, overlap=overlap).labels

    def predict(
        self,
        image: NDArray[np.uint8],
        *,
        tile: Tile = "auto",
        overlap: int = DEFAULT_OVERLAP,
        confidence: bool = False,
    ) -> Prediction:
        """As :meth:`segment`, with the confidence where wanted.

        Raises:
            UsageError: Not such an image, or tile and overlap do not go together.
            CheckFailedError: The network returned values that are not finite.
        """
        _check_image(image)
        grid = self.plan((image.shape[0], image.shape[1]), tile=tile, overlap=overlap)
        height, width = grid.image_hw
        if len(grid) == 1 and not confidence:
            labels = self.backend.labels(next(cut_crops(image, grid))[None])[0]
            return Prediction(np.ascontiguousarray(labels[:height, :width]))
        labels = np.empty((height, width), np.uint8)
        certain = np.empty((height, width), np.uint8) if confidence else None
        for top, band in self.logit_bands(image, grid):
            rows = slice(top, top + band.shape[1])
            labels[rows] = band.argmax(0)
            if certain is not None:
                certain[rows] = _softmax_maximum(band)
        return Prediction(labels, certain)

    def plan(
        self,
        image_hw: tuple[int, int],
        *,
        tile: Tile = "auto",
        overlap: int = DEFAULT_OVERLAP,
    ) -> CropGrid:
        """The crops that an image of that height and width will be segmented by.

        Raises:
            UsageError: An empty image, or tile and overlap do not go together.
        """
        limits = self.backend.limits
        if tile == "auto":
            tile, most = None, limits.max_hw
            if most is not None and (image_hw[0] > most[0] or image_hw[1] > most[1]):
                tile = limits.opt_hw or most
            elif most is None and _padded_pixels(image_hw, limits.step) > AUTO_WHOLE_PIXELS:
                tile = AUTO_TILE
            if tile is not None:
                overlap = min(overlap, min(tile) // 2)
        return plan_crops(
            image_hw, tile, overlap, step=self.spec.output_stride, min_hw=limits.min_hw
        )

    def logit_bands(
        self, image: NDArray[np.uint8], grid: CropGrid
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Averaged logits of an image, band by band from the top, in bounded memory.

        Yields:
            First row of the band, and float32 (C, rows, W) of the image without its padding.
        """
        height, width = grid.image_hw
        top = 0
        for band in merge_logits(grid, self._crop_logits(image, grid)):
            rows = min(band.shape[1], height - top)
            if rows > 0:
                yield top, band[:, :rows, :width]
            top += band.shape[1]

    def _crop_logits(
        self, image: NDArray[np.uint8], grid: CropGrid
    ) -> Iterator[NDArray[np.float32]]:
        # One crop a call on CPUs, where a batch only costs memory; engines get what they are for.
        batch = min(self.backend.limits.max_batch or 1, len(grid))
        crops = cut_crops(image, grid)
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


def load(
    model: str | Path | None = None, *, backend: str = "auto", provider: str = "auto"
) -> Segmenter:
    """Load a model: a file, a run folder, or the newest run under ``./runs``.

    Args:
        model: ``.onnx``, ``.plan`` or ``.safetensors`` file, or a folder that holds one.
        backend: ``eager``, ``ort``, ``trt``; ``auto`` goes by the file, and in a folder prefers
            the ONNX file to the checkpoint.
        provider: ``cpu``, ``cuda``, ..., or ``auto`` for the best that really works.

    Raises:
        FcnDeployError: No such model, not usable, or its backend cannot run here.
    """
    return Segmenter(open_backend(locate(model, backend), backend, provider))


def locate(model: str | Path | None, backend: str = "auto") -> Path:
    """The file that :func:`load` would open.

    Raises:
        UsageError: No such backend, or nothing was named and there is no run.
        ModelError: There is no such file; or the one that was picked is older than its source.
        DeviceError: There is no plan for the backend ``trt``, and no GPU to run it on either.
    """
    if backend != "auto" and backend not in SUFFIXES:
        raise UsageError(
            f"There is no backend {backend!r}.", f"Backends: auto, {', '.join(SUFFIXES)}."
        )
    wanted = (".onnx", ".safetensors") if backend == "auto" else (SUFFIXES[backend],)
    path = None
    try:
        path = find_model(None if model is None else Path(model), suffixes=wanted)
    finally:
        if backend == "trt" and (path is None or path.suffix != SUFFIXES["trt"]):
            require_gpu()  # without one, there is no use in making the plan that is missing
    if model is None or Path(model).is_dir():
        require_fresh(path)
    return path


def _padded_pixels(image_hw: tuple[int, int], step: int) -> int:
    # Not the image's own: a row of a million pixels becomes a crop of 32 million.
    height, width = (-(-size // step) * step for size in image_hw)
    return height * width


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"An image is RGB uint8 (H, W, 3), not {image.dtype} {image.shape}.",
            "Read it with Pillow: numpy.asarray(Image.open(path).convert('RGB'))",
        )


def _softmax_maximum(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probability of the most likely class of (C, rows, W), from 0 to 255."""
    # Relative to the maximum the largest exponential is exp(0) = 1, so nothing overflows.
    total = np.exp(logits - logits.max(0)).sum(0)
    scaled: NDArray[np.uint8] = np.rint(255 / total).astype(np.uint8)
    return scaled
