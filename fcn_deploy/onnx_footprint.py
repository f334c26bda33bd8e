"""Memory that an exported graph needs while it runs, from its shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx.helper
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_shapes import shaped
from fcn_deploy.spec import INPUT

_SIDE = 512

_IN_PLACE = frozenset({"Relu", "Add", "Sub", "Mul", "Clip", "Sigmoid", "BatchNormalization"})
"""Their result is written over an input that nobody needs any more, or they are fused."""

_SPARE = 2.0
"""Blocked layouts, padding and fragmentation, on top of what is alive: measured 1.2 to
1.9 with the arena of ONNX Runtime (benchmarks/memory.py)."""

_ENGINE_SPARE = 1.25
"""What TensorRT-RTX 1.7 takes is 0.72 to 1.01 of what is reckoned with this; 0.53 to 1 where
logits are an output, too. That is the "Total Activation Memory" of its builder, for FCN-32s, 16s
and 8s on ResNet-18, 34 and 50 with 21 classes, FP16 and float32, at 1x and 4x512x512, 1x1024x2048
and 16x128x128. The least workspace that a build passes with is lower, by about as much as the
weights. For sm75 a sixth more was taken. Of TensorRT itself nothing could be measured."""

ENGINE_FIXED_BYTES = 8 << 20
"""What an engine takes for activations however small its crops are: measured 4 to 9 MiB."""

_CHANNELS = 8
"""Tensor cores read channels in packs of this many: the 3 of an image are padded to them."""


def bytes_per_pixel(proto: ModelProto, *, step: int = 32) -> float:
    """Bytes at the peak in ONNX Runtime, by pixel, up to the output ``scores`` (or the first one).

    Walks the nodes in order and adds up what is alive. A fully convolutional network needs memory
    in proportion to its pixels, so that one size speaks for all.

    Args:
        proto: The graph.
        step: Output stride, which heights and widths are multiples of.

    Raises:
        ModelError: Its sizes cannot be told from the graph.
    """
    names = [value.name for value in proto.graph.output]
    side = -(-_SIDE // step) * step
    graph = shaped(proto, "scores" if "scores" in names else names[0], hw=(side, side))
    return _SPARE * _peak(graph.node, graph, _sizes(graph)) / side**2


def engine_bytes_per_pixel(
    proto: ModelProto, hw: tuple[int, int] = (_SIDE, _SIDE), outputs: tuple[str, ...] | None = None
) -> float:
    """Bytes of activations at the peak in TensorRT, by pixel of all crops of a call.

    :data:`ENGINE_FIXED_BYTES` come on top; so do the weights, the image and the outputs, which are
    no activations.

    Args:
        proto: The graph with the types that the engine has.
        hw: Height and width of a crop in pixels; it matters to graphs that make labels, whose
            upsampling has half a window more on each side.
        outputs: Those that the engine has; ``None``: all of the graph.

    Raises:
        ModelError: As :func:`bytes_per_pixel`.
    """
    names = outputs or tuple(value.name for value in proto.graph.output)
    graph = shaped(proto, *names, hw=hw)
    sizes = _sizes(graph, channels=_CHANNELS)
    read = {name for node in graph.node for name in node.input}
    for value in graph.output:
        if value.name not in read:
            sizes[value.name] = 0  # written to a buffer of the caller's, as the image lies in one
    sizes[INPUT] = 0
    copies = _copied_by_arg_max(graph, sizes)
    # Which of two branches comes first is TensorRT's choice: the order of the file, or by level.
    orders = (graph.node, _by_level(graph.node))
    peak = max(_peak(order, graph, sizes, copies) for order in orders)
    return _ENGINE_SPARE * peak / (hw[0] * hw[1])


def _sizes(graph: GraphProto, *, channels: int = 1) -> dict[str, int]:
    """Bytes of each tensor; channels of what convolutions read come in packs of ``channels``."""
    read = {node.input[0] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    values: Iterable[ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    sizes = {v.name: _bytes(v, channels if v.name in read else 1) for v in values}
    for node in graph.node:
        if not sizes.keys() >= {name for name in node.output if name}:
            raise _unknown(node.output[0])
    return sizes


def _bytes(value: ValueInfoProto, channels: int) -> int:
    tensor = value.type.tensor_type
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if len(dims) > 2 and not all(dims[1:]):
        raise _unknown(value.name)
    dims = [dim or 1 for dim in dims]  # one crop; and what has two axes at most is small
    if channels > 1:
        dims[1] = -(-dims[1] // channels) * channels
    return int(size * math.prod(dims))


def _unknown(name: str) -> ModelError:
    return ModelError(
        f"How much memory this network needs is not known: its graph does not tell the size of "
        f"{name!r}.",
        "Name the --tile, or the shapes of an engine.",
    )


def _copied_by_arg_max(graph: GraphProto, sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of the copies, by output, in which arg-max wants its classes to lie side by side.

    In the matrix form of the upsampling a Reshape has made that copy.
    """
    reshaped = {name for node in graph.node if node.op_type == "Reshape" for name in node.output}
    reducing = [node for node in graph.node if node.op_type == "ArgMax"]
    return {n.output[0]: sizes[n.input[0]] for n in reducing if n.input[0] not in reshaped}


def _peak(
    nodes: Sequence[NodeProto],
    graph: GraphProto,
    sizes: Mapping[str, int],
    scratch: Mapping[str, int] = {},
) -> int:
    """Most bytes that are alive at a node, if they run in this order.

    Args:
        nodes: All of them.
        graph: Where they come from.
        sizes: Bytes by tensor.
        scratch: Bytes that a node needs while it runs, by its first output.
    """
    last_use = {name: index for index, node in enumerate(nodes) for name in node.input}
    outputs = {value.name for value in graph.output}
    alive, peak = {INPUT}, 0
    for index, node in enumerate(nodes):
        held = sum(sizes.get(name, 0) for name in alive | set(node.output))
        held += scratch.get(node.output[0], 0)
        if node.op_type in _IN_PLACE and any(last_use.get(n) == index for n in node.input):
            held -= sizes.get(node.output[0], 0)
        peak = max(peak, held)
        alive |= set(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > index or name in outputs}
    return peak


def _by_level(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The same nodes by their distance from the image: branches side by side."""
    level: dict[str, int] = {}
    for node in nodes:
        depth = 1 + max((level.get(name, 0) for name in node.input), default=0)
        level |= dict.fromkeys(node.output, depth)
    return sorted(nodes, key=lambda node: level[node.output[0]])
