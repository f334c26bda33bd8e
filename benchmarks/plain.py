"""The network as PyTorch's exporter leaves it, in ONNX Runtime, and where crops lie."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from fcn_deploy.onnx_file import keep_outputs
from fcn_deploy.spec import INPUT
from fcn_deploy.tiling import CropGrid, plan_crops

TILE, OVERLAP = 512, 64
STRIDE = TILE - OVERLAP

Labels = NDArray[np.integer[Any]]
TINY = np.zeros((128, 64, 3), np.uint8)
"""What sessions are warmed up on: as two crops of 64x64, or one."""


class Model(NamedTuple):
    """The files of one network.

    Attributes:
        checkpoint: For eager PyTorch.
        ours: ``fcn_deploy.training.to_onnx.export_onnx``: ends in a matrix product.
        plain: ``torch.onnx.export`` of the same module: ends in ConvTranspose and ArgMax.
    """

    checkpoint: Path
    ours: Path
    plain: Path


def open_session(path: Path, output: str) -> Any:
    """ONNX Runtime with its default settings, on a graph that has one output."""
    proto = keep_outputs(onnx.load_model(path), (output,))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    content = proto.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Plain:
    """Sessions on the plain export, opened when first wanted; contenders share them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _label_session(self) -> Any:
        return open_session(self._path, "labels")

    @cached_property
    def _logit_session(self) -> Any:
        return open_session(self._path, "logits")

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 (N, H, W, 3) to uint8 (N, H, W)."""
        labels: NDArray[np.uint8] = self._label_session.run(None, {INPUT: crops})[0]
        return labels

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 (N, H, W, 3) to float32 (N, C, H, W)."""
        logits: NDArray[np.float32] = self._logit_session.run(None, {INPUT: crops})[0]
        return logits


def grid_of(image: NDArray[np.uint8]) -> CropGrid:
    """The crops that all contenders place."""
    return plan_crops((image.shape[0], image.shape[1]), (TILE, TILE), OVERLAP)


def crop_at(image: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    """One crop as a batch (1, TILE, TILE, 3)."""
    return np.ascontiguousarray(image[None, top : top + TILE, left : left + TILE])
