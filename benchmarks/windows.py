"""How much of the last layer could be skipped: no more than what is proven to be decided."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from plain import grid_of
from scenes import CLASSES

import fcn_deploy
from fcn_deploy.merging import merge_scores
from fcn_deploy.onnx_upsampling import MATRIX
from fcn_deploy.tiling import cut_crops
from fcn_deploy.upsample import FloatArray, Upsampling


class Share(NamedTuple):
    """What had to be computed of an image, from 0 to 1.

    Attributes:
        windows: Of all windows of s x s pixels, those with more than one possible class.
        logits: Of all logits.
    """

    windows: float
    logits: float


class _Counting(Upsampling):
    """An upsampling that counts what it computes."""

    windows = computed = sums = 0

    def labels(self, cells: FloatArray, left: NDArray[np.intp]) -> NDArray[np.uint8]:
        self.windows += (len(cells) - 1) * len(left)
        return super().labels(cells, left)

    def _race(self, corners: FloatArray, rivals: NDArray[np.intp]) -> NDArray[np.uint8]:
        self.computed += len(corners)
        self.sums += len(corners) * len(rivals)
        return super()._race(corners, rivals)


def share_computed(ours: Path, image: NDArray[np.uint8]) -> Share:
    """Segment an image, and count."""
    initializers = onnx.load_model(ours).graph.initializer
    (matrix,) = [weight for weight in initializers if weight.name == MATRIX]
    counting = _Counting(onnx.numpy_helper.to_array(matrix), CLASSES)
    grid = grid_of(image)
    with fcn_deploy.load(ours, provider="cpu") as model:
        scores = model.backend.stream_scores(cut_crops(image, grid))
        for _ in merge_scores(grid, scores, counting):
            pass
    return Share(counting.computed / counting.windows, counting.sums / counting.windows / CLASSES)
