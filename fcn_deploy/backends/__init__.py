"""One loaded model on one device, behind one seam; each vendor has its own file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.artifacts import SUFFIX_BACKEND
from fcn_deploy.auto_tile import Footprint
from fcn_deploy.errors import CheckFailedError, ModelError, ShapeError, UsageError
from fcn_deploy.spec import ModelSpec
from fcn_deploy.upsample import Upsampler

NAMES = ("eager", "ort", "trt")
SUFFIXES = {name: suffix for suffix, name in SUFFIX_BACKEND.items()}


@dataclass(frozen=True)
class ShapeLimits:
    """What a loaded model takes; heights and widths in pixels.

    Attributes:
        max_batch: Most crops in one call; ``None`` where only memory limits it.
        min_hw: Smallest crop.
        opt_hw: The crop it is fastest at; ``None`` where it has no favourite.
        max_hw: Largest crop; ``None`` where only memory limits it.
        step: Heights and widths are multiples of it.
        others: Of further optimization profiles.
    """

    max_batch: int | None = None
    min_hw: tuple[int, int] = (1, 1)
    opt_hw: tuple[int, int] | None = None
    max_hw: tuple[int, int] | None = None
    step: int = 32
    others: tuple[ShapeLimits, ...] = ()

    def holding(self, image_hw: tuple[int, int]) -> ShapeLimits | None:
        """The limits that an image, padded to them, lies within as one crop; ``None``: none."""
        for limits in (self, *self.others):
            most = limits.max_hw
            if most is None or (image_hw[0] <= most[0] and image_hw[1] <= most[1]):
                return limits
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse crops of (N, H, W, 3) that the model would resize, cut or fail on.

        Raises:
            ShapeError: Names the value and the range.
        """
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
            raise ShapeError(f"Crops are (N, H, W, 3), not {shape}.")
        batch, height, width = shape[:3]
        if height % self.step or width % self.step:
            # No runtime enforces this: ONNX Runtime returns masks of another size without a word.
            raise ShapeError(f"Crops of {height}x{width} are no multiples of {self.step} pixels.")
        if any(other._takes(batch, height, width) for other in self.others):
            return
        if self.max_batch is not None and batch > self.max_batch:
            raise ShapeError(f"A batch of {batch} is more than the engine's {self.max_batch}.")
        low, high = self.min_hw, self.max_hw or (height, width)
        if not (low[0] <= height <= high[0] and low[1] <= width <= high[1]):
            raise ShapeError(
                f"Crops of {height}x{width} lie outside of the engine's "
                f"{low[0]}x{low[1]} to {high[0]}x{high[1]}.",
                "Pass another --tile, or build an engine for it: --min-shape, --max-shape.",
            )

    def _takes(self, batch: int, height: int, width: int) -> bool:
        low, high = self.min_hw, self.max_hw or (height, width)
        fits = low[0] <= height <= high[0] and low[1] <= width <= high[1]
        return fits and (self.max_batch is None or batch <= self.max_batch)


class Backend(Protocol):
    """One loaded model on one device; used by one thread at a time, not always the same.

    Crops are RGB uint8 (N, H, W, 3). Results belong to the caller: the next call does not overwrite
    them. Every call may raise :class:`~fcn_deploy.errors.ShapeError` for crops outside of
    ``limits``, and :class:`~fcn_deploy.errors.CheckFailedError` when the network returns values
    that are not finite.
    """

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        ...

    @property
    def name(self) -> str:
        """``eager``, ``ort`` or ``trt``."""
        ...

    @property
    def provider(self) -> str:
        """Where it really computes, in the vendor's spelling."""
        ...

    @property
    def precision(self) -> str:
        """``fp32`` or ``fp16``."""
        ...

    @property
    def limits(self) -> ShapeLimits:
        """Crops that the model takes."""
        ...

    @property
    def footprint(self) -> Footprint:
        """Memory that crops need while they are computed."""
        ...

    @property
    def upsampling(self) -> Upsampler | None:
        """The last transposed convolution; ``None`` where its weights are not at hand.

        With it, crops are merged as scores, and without it as logits.
        """
        ...

    @property
    def labels_on_device(self) -> bool:
        """Whether :meth:`labels` is the fastest way for a single crop: true of GPUs."""
        ...

    @property
    def halo(self) -> int | None:
        """Pixels of a crop's border that what lies beyond it would change; ``None``: not known."""
        ...

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        ...

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W)."""
        ...

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        ...

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order; all crops of one shape.

        As many crops are computed at once as the device likes.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back; the backend cannot be used afterwards."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class ComputesBoth(Protocol):
    """A backend that gets labels and logits out of one run."""

    def labels_and_logits(
        self, crops: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels uint8 (N, H, W) and logits float32 (N, C, H, W), both as the network decides."""
        ...


def check_finite(values: NDArray[np.float32], where: str) -> None:
    """Stop on NaN and infinity: arg-max would turn them into a class without a word.

    Raises:
        CheckFailedError: Some value is not finite.
    """
    if not np.isfinite(values).all():
        raise CheckFailedError(
            f"{where} returned values that are not finite.",
            "Compare the artifact with its checkpoint; FP16 may overflow where FP32 does not.",
        )


def open_backend(
    path: Path,
    backend: str = "auto",
    provider: str = "auto",
    *,
    trust_engine: bool = False,
    cache: Path | None = None,
) -> Backend:
    """Load a model file; what kind of file it is decides what can run it.

    Args:
        path: ``.safetensors``, ``.onnx`` or ``.plan``.
        backend: ``eager``, ``ort``, ``trt``, or ``auto`` for the one that the file is made for.
        provider: ``cpu``, ``cuda``, ..., or ``auto`` for the best that really works.
        trust_engine: Load a plan without a passport, too.
        cache: Folder of the user's own for what is compiled for this machine; ``None``: keep none.

    Raises:
        UsageError: The backend does not run this kind of file.
        ModelError: The file is not usable.
        EnvironmentFault: A package or device is missing.
    """
    if not path.is_file():
        raise ModelError(f"There is no {path}.", "Name an existing model file or run folder.")
    made_for = SUFFIX_BACKEND.get(path.suffix)
    if made_for is None:
        kinds = ", ".join(SUFFIX_BACKEND)
        raise ModelError(
            f"{path} is no model: its suffix is none of {kinds}.",
            "Weights of PyTorch are exported first: fcn-deploy export FILE --classes classes.txt",
        )
    if backend not in ("auto", made_for):
        raise UsageError(
            f"{path.name} runs on the backend {made_for}, not on {backend}.",
            f"Pass --backend {made_for}, or a {SUFFIXES.get(backend, 'fitting')} file.",
        )
    if made_for == "eager":
        from fcn_deploy.backends.eager import open_eager

        return open_eager(path, provider)
    if made_for == "ort":
        from fcn_deploy.backends.ort import open_ort
        from fcn_deploy.backends.ort_options import GpuSettings

        return open_ort(path, provider, GpuSettings(cache=cache and cache / "onnxruntime"))
    from fcn_deploy.backends.trt import open_trt

    return open_trt(path, provider, trust_engine=trust_engine, cache=cache)
