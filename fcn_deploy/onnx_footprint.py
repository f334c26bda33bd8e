"""Memory that an exported graph needs while it runs, from its shapes alone."""

from __future__ import annotations

import math

import onnx.helper
import onnx.shape_inference
from onnx import ModelProto

from fcn_deploy.onnx_file import keep_outputs
from fcn_deploy.spec import INPUT

_SIDE = 512

_IN_PLACE = frozenset({"Relu", "Add", "Sub", "Mul", "Clip", "Sigmoid", "BatchNormalization"})
"""ONNX Runtime writes their result over an input that nobody needs any more, or fuses them."""

_SPARE = 2.0
"""Blocked layouts, padding and fragmentation, on top of what is alive: measured 1.2 to
1.9 with the arena of ONNX Runtime (benchmarks/memory.py)."""


def bytes_per_pixel(proto: ModelProto) -> float:
    """Bytes at the peak, by pixel of the image, up to the output ``scores`` (or the first one).

    Walks the nodes in order and adds up what is alive. A fully convolutional network needs memory
    in proportion to its pixels, so that one size speaks for all.
    """
    names = [value.name for value in proto.graph.output]
    cut = keep_outputs(proto, ("scores",) if "scores" in names else (names[0],))
    fixed = ModelProto()
    fixed.CopyFrom(cut)
    for dim, size in zip(
        fixed.graph.input[0].type.tensor_type.shape.dim, (1, _SIDE, _SIDE, 3), strict=True
    ):
        dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    sizes = {
        value.name: _bytes(value) for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    outputs = {value.name for value in graph.output}
    alive, peak = {INPUT}, 0
    for index, node in enumerate(graph.node):
        held = sum(sizes.get(name, 0) for name in alive | set(node.output))
        if node.op_type in _IN_PLACE and any(last_use.get(n) == index for n in node.input):
            held -= sizes.get(node.output[0], 0)
        peak = max(peak, held)
        alive |= set(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > index or name in outputs}
    return _SPARE * peak / _SIDE**2


def _bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return int(size * math.prod(dim.dim_value for dim in tensor.shape.dim))
