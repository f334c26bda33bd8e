"""What is measured on, and what a contender is: values that travel between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

BATCH = 4
"""Crops at once where an image is cut: what engines are made for, and what MONAI is told."""


@dataclass(frozen=True)
class Files:
    """The files of one network.

    Attributes:
        checkpoint: For PyTorch.
        onnx: Its export in float32.
        half: The same in FP16.
    """

    checkpoint: Path
    onnx: Path
    half: Path


@dataclass(frozen=True)
class Job:
    """One thing to do, the same for every contender.

    Attributes:
        files: The network.
        pixels: RGB uint8 as ``.npy``: a batch (N, H, W, 3), or an image (H, W, 3).
        shape: Of it, without the channels.
        device: ``cuda`` or ``cpu``, where PyTorch and ONNX Runtime compute.
        work: Folder for engines and what else is built once.
        tile: Height and width of the crops that an image is cut into, in pixels.
        overlap: Pixels that neighbouring crops share.
    """

    files: Files
    pixels: Path
    shape: tuple[int, ...]
    device: str
    work: Path
    tile: int = 512
    overlap: int = 64

    @property
    def name(self) -> str:
        """Such as ``4x512x512``; of an image ``2304x2304``."""
        return "x".join(map(str, self.shape))

    @property
    def is_image(self) -> bool:
        """Whether it is one image that is to be cut into crops."""
        return len(self.shape) == 2

    @property
    def crops(self) -> tuple[int, int, int]:
        """Most crops at once (N), and their height and width (H, W)."""
        if self.is_image:
            return BATCH, self.tile, self.tile
        count, height, width = self.shape
        return count, height, width

    @property
    def pixel_count(self) -> int:
        """Pixels that get a label."""
        return int(np.prod(self.shape))

    def load(self) -> Pixels:
        """What :attr:`pixels` holds."""
        loaded: Pixels = np.load(self.pixels)
        return loaded


@dataclass(frozen=True)
class Loaded:
    """A contender that is ready.

    Attributes:
        labels: From RGB uint8 in the host's memory to labels uint8 there, waited for: a batch
            (N, H, W, 3) to (N, H, W), or an image (H, W, 3) to (H, W).
        close: Gives back what it holds.
        clock: Seconds of the last run by the device's own clock; ``None``: the host's counts.
    """

    labels: Callable[[Pixels], Pixels]
    close: Callable[[], object]
    clock: Callable[[], float] | None = None


@dataclass(frozen=True)
class Contender:
    """One way to get the labels.

    Attributes:
        name: For people; those of fcn-deploy begin with it.
        open: Loads it for one job; a function of a module, so that another process can call it.
        precision: ``fp32`` or ``fp16``: how far its labels may be from the reference.
        in_one_piece: Whether it answers for an image that is not cut.
    """

    name: str
    open: Callable[[Job], Loaded]
    precision: str = "fp16"
    in_one_piece: bool = False


def reason_of(error: BaseException) -> str:
    """One line that says why something did not work."""
    problem = getattr(error, "problem", None)  # of an FcnDeployError: whole sentences
    if problem is not None:
        return " ".join(str(problem).split())
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
