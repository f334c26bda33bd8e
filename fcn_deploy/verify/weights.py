"""Do the weights of an ONNX file come from the checkpoint? Read and compared, nothing is run.

Errors of outputs say that something differs; this says what. A layer that was scaled by a hundredth
moves the labels of an FP16 file by little more than rounding does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from fcn_deploy.onnx_upsampling import upsampling_of
from fcn_deploy.spec import ModelSpec
from fcn_deploy.upsample import window_matrix

Floats = NDArray[np.float32]

PREFIX = "network."
"""What the exporter puts before the names of a network's own weights."""

# Float32 is copied, or folded again by another release of PyTorch; float16 is rounded to 11 bits.
_RELATIVE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2.0**-10}
_SMALLEST_HALF = 2.0**-24


@dataclass(frozen=True)
class WeightFigures:
    """Which weights are the checkpoint's.

    Attributes:
        compared: How many tensors were.
        different: Names of those that differ by more than the file's precision explains.
        worst: Largest difference of each of these, relative to the largest weight of its tensor.
    """

    compared: int
    different: tuple[str, ...]
    worst: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {"compared": self.compared, "different": list(self.different)}

    def sentence(self) -> str:
        """What to tell a person, if some differ."""
        if not self.different:
            return ""
        more = f" and {len(self.different) - 3} more" if len(self.different) > 3 else ""
        return (
            f"{len(self.different)} of {self.compared} weights are not the checkpoint's: "
            + ", ".join(
                f"{name} ({f'by {worst:.1%}' if np.isfinite(worst) else 'not finite'})"
                for name, worst in zip(self.different[:3], self.worst, strict=False)
            )
            + f"{more}."
        )


def compare_weights(proto: ModelProto, wanted: dict[str, Floats], spec: ModelSpec) -> WeightFigures:
    """Compare the constants of a graph with a checkpoint's.

    Args:
        proto: Of an exported file, whatever its precision.
        wanted: Of the checkpoint, batch norm folded, by name without ``network.``.
        spec: Of the checkpoint.
    """
    stored = {weight.name: weight for weight in proto.graph.initializer}
    found: dict[str, tuple[float, float]] = {}  # largest difference, what is allowed
    for name, values in wanted.items():
        if PREFIX + name in stored:
            there = onnx.numpy_helper.to_array(stored[PREFIX + name])
            found[name] = _difference(there, values)
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            base = node.input[0].removesuffix("_quantized").removeprefix(PREFIX)
            if base in wanted:
                found[base] = _difference_of_quantized(node, stored, wanted[base])
    mean, std = (np.array(values) * 255 for values in (spec.mean, spec.std))
    for name, constant in (("mean255", mean), ("inverse_std255", 1 / std)):
        if name in stored:
            there = onnx.numpy_helper.to_array(stored[name])
            found[name] = _difference(there, constant.reshape(1, 3, 1, 1).astype(np.float32))
    upsampling = upsampling_of(proto, spec.num_classes)
    if upsampling is not None and "upsample.weight" in wanted and upsampling.border == "zeros":
        kernel = wanted["upsample.weight"]
        bias = wanted.get("upsample.bias", np.zeros(kernel.shape[1], np.float32))
        matrix = upsampling.matrix
        allowed = _RELATIVE[np.dtype(np.float16)] if _is_half(stored) else 1e-5
        expected = window_matrix(kernel, bias)
        if matrix.shape == expected.shape:
            found["upsample"] = _spread(np.abs(matrix - expected), expected, allowed)
    different = {name: worst for name, (worst, allowed) in found.items() if not worst <= allowed}
    return WeightFigures(len(found), tuple(different), tuple(different.values()))


def _is_half(stored: dict[str, Any]) -> bool:
    return any(
        weight.data_type == onnx.TensorProto.FLOAT16 and "upsample" in name
        for name, weight in stored.items()
    )


def _difference(there: NDArray[Any], wanted: Floats) -> tuple[float, float]:
    if there.shape != wanted.shape:
        return np.inf, 0.0
    allowed = _RELATIVE.get(there.dtype, 0.0)
    return _spread(np.abs(there.astype(np.float64) - wanted), wanted, allowed)


def _spread(errors: NDArray[Any], wanted: Floats, allowed: float) -> tuple[float, float]:
    """Largest error, and largest allowed, both relative to the tensor's largest value."""
    largest = float(np.abs(wanted).max()) or 1.0
    worst = float(errors.max()) / largest
    return worst if np.isfinite(worst) else np.inf, allowed + _SMALLEST_HALF / largest


def _difference_of_quantized(
    node: NodeProto, stored: dict[str, Any], wanted: Floats
) -> tuple[float, float]:
    """The same of 8-bit integers: they may be off by half a step, rounded either way."""
    values, scale, *zero = (
        onnx.numpy_helper.to_array(stored[name]).astype(np.float64)
        for name in node.input
        if name in stored
    )
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.ndim and scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), [part.reshape(shape) for part in zero]
    steps = values - (zero[0] if zero else 0)
    if values.shape != wanted.shape:
        return np.inf, 0.0
    # In steps of its own channel: the largest weight of a channel is 127 of them.
    worst = float((np.abs(steps * scale - wanted) / (127 * scale)).max())
    return worst, 0.51 / 127
