"""The definition in float64: crop by crop, cell by cell, and then the average."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from plain import TILE, Labels, crop_at, grid_of, open_session
from scenes import CLASSES

from fcn_deploy.spec import INPUT

MARGIN = 1e-4
"""Labels must be right wherever the best class leads the next one by more than this."""

DoubleArray = NDArray[np.float64]


class Verdict(NamedTuple):
    """Labels held against the definition, in pixels.

    Attributes:
        wrong: Differ although the lead is larger than :data:`MARGIN`: must be 0.
        close: Where the lead is smaller.
        differ: Differ at all.
        pixels: In all.
    """

    wrong: int
    close: int
    differ: int
    pixels: int


def averaged_logits(plain: Path, image: NDArray[np.uint8]) -> DoubleArray:
    """Average of the logits of all crops, float64 (C, H, W), from the scores of the plain graph."""
    kernel, bias = _last_layer(plain)
    session = open_session(plain, "scores")
    total = np.zeros((CLASSES, *image.shape[:2]))
    count = np.zeros(image.shape[:2])
    for top, left in grid_of(image).corners:
        scores = session.run(None, {INPUT: crop_at(image, top, left)})[0][0]
        part = (slice(top, top + TILE), slice(left, left + TILE))
        total[:, part[0], part[1]] += _transposed_convolution(scores, kernel)
        count[part] += 1
    return total / count + bias[:, None, None]


def _last_layer(plain: Path) -> tuple[DoubleArray, DoubleArray]:
    graph = onnx.load_model(plain).graph
    weights = {weight.name: weight for weight in graph.initializer}
    (layer,) = [
        node for node in graph.node if node.op_type == "ConvTranspose" and "logits" in node.output
    ]
    kernel, *bias = (
        onnx.numpy_helper.to_array(weights[name]).astype(np.float64) for name in layer.input[1:]
    )
    return kernel, bias[0] if bias else np.zeros(len(kernel))  # the exporter drops a bias of zeros


def _transposed_convolution(scores: NDArray[np.float32], kernel: DoubleArray) -> DoubleArray:
    """Every cell adds its kernel, 2s x 2s pixels around it: kernel (C, C, 2s, 2s)."""
    classes, rows, columns = scores.shape
    size = kernel.shape[2]
    s = size // 2
    flat = kernel.reshape(classes, -1)
    logits = np.zeros((classes, (rows + 1) * s, (columns + 1) * s))
    for row in range(rows):
        for column in range(columns):
            stamp = (scores[:, row, column].astype(np.float64) @ flat).reshape(classes, size, size)
            logits[:, row * s : row * s + size, column * s : column * s + size] += stamp
    return logits[:, s // 2 : -(s // 2), s // 2 : -(s // 2)]


def judge(labels: Labels, logits: DoubleArray) -> Verdict:
    """Compare labels (H, W) with arg-max of ``logits``."""
    two = np.partition(logits, -2, axis=0)[-2:]
    close = two[1] - two[0] <= MARGIN
    differ = labels != logits.argmax(0)
    return Verdict(
        wrong=int((differ & ~close).sum()),
        close=int(close.sum()),
        differ=int(differ.sum()),
        pixels=labels.size,
    )
