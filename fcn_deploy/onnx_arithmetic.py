"""How much an exported graph computes, by type: multiply-adds, from its shapes alone."""

from __future__ import annotations

import math

from onnx import ModelProto, NodeProto, TensorProto

from fcn_deploy.onnx_file import WEIGHTED
from fcn_deploy.onnx_shapes import shaped


def fp16_share(proto: ModelProto, hw: tuple[int, int]) -> float:
    """Share of the multiply-adds whose weights are FP16, in [0, 1]; 0 where nothing multiplies.

    Args:
        proto: A typed graph, float32 or FP16.
        hw: Height and width of its input: pixels, or cells of a head.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    counts = {True: 0, False: 0}
    for node, count in multiply_adds(proto, hw):
        counts[weights[node.input[1]].data_type == TensorProto.FLOAT16] += count
    total = sum(counts.values())
    return counts[True] / total if total else 0.0


def multiply_adds(proto: ModelProto, hw: tuple[int, int]) -> list[tuple[NodeProto, int]]:
    """Nodes with weights, and the multiply-adds of each for one input of that size."""
    weights = {weight.name: tuple(weight.dims) for weight in proto.graph.initializer}
    graph = shaped(proto, *(value.name for value in proto.graph.output), hw=hw)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    counts = []
    for node in proto.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in weights:
            continue
        kernel = weights[node.input[1]]
        # A convolution gathers: its kernel without the outputs, for each output. A transposed one
        # scatters: its kernel without the inputs, for each input.
        if node.op_type == "Conv":
            count = math.prod(shapes.get(node.output[0], ())) * math.prod(kernel[1:])
        elif node.op_type == "ConvTranspose":
            count = math.prod(shapes.get(node.input[0], ())) * math.prod(kernel[1:])
        else:
            count = math.prod(shapes.get(node.output[0], ())) * kernel[0]
        counts.append((node, count))
    return counts
