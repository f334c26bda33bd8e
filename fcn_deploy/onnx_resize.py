"""Resizes of a graph to whole multiples: what they enlarge by, written down as constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx.helper
import onnx.numpy_helper
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from fcn_deploy.onnx_shapes import shaped

_ALIGNED = {
    "linear": ("half_pixel", "pytorch_half_pixel"),
    "nearest": ("asymmetric",),
}
"""Modes, and where they put the coordinates: the outermost pixels of both sizes share a border."""


def enlargement(node: NodeProto, weights: Mapping[str, TensorProto]) -> tuple[str, int, int] | None:
    """How a Resize of (N, C, H, W) enlarges: ``linear`` or ``nearest``, and how many times.

    Args:
        node: The node.
        weights: Initializers of its graph.

    Returns:
        Mode, and the factors of rows and columns; ``None`` where it is no enlargement by constant
        whole numbers that keeps the border of the image in its place.
    """
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    mode = settings.get("mode", b"nearest").decode()
    aligned = settings.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounded = settings.get("nearest_mode", b"round_prefer_floor").decode()
    if aligned not in _ALIGNED.get(mode, ()) or (mode == "nearest" and rounded != "floor"):
        return None
    if settings.get("antialias", 0) or settings.get("exclude_outside", 0) or "axes" in settings:
        return None
    scales = weights.get((*node.input, "", "")[2])
    if scales is None or tuple(scales.dims) != (4,):
        return None
    values = onnx.numpy_helper.to_array(scales)
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < 1:
        return None
    batch, channels, rows, columns = (int(value) for value in values)
    return (mode, rows, columns) if batch == channels == 1 else None


def fix_scales(proto: ModelProto, step: int) -> None:
    """Let resizes to a computed size enlarge by a constant instead, where it is one; in place.

    The same numbers, to rounding: a resize computes with the size of the output over the input's.
    Nodes that computed only sizes are dropped with them, as engines and receptive fields like it.

    Args:
        proto: A graph that takes ``image`` (N, H, W, 3).
        step: Heights and widths are multiples of it, in pixels.
    """
    graph = proto.graph
    found = [n for n in graph.node if n.op_type == "Resize" and len(n.input) == 4 and n.input[3]]
    outputs = [value.name for value in graph.output]
    # Of two sizes, neither of them square: what is the same number in both is no accident.
    sizes = [
        _sizes(shaped(proto, *outputs, hw=(rows * step, columns * step)))
        for rows, columns in ((3, 5), (11, 7))
        if found
    ]
    for node in found:
        factors = {_factors(known, node) for known in sizes}
        if len(factors) == 1 and (pair := factors.pop()) is not None:
            name = f"{node.output[0]}.scales"
            scales = np.array([1, 1, *pair], np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(scales, name))
            node.input[:] = [node.input[0], "", name]
    _drop_unused(graph)


def _sizes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _factors(sizes: Mapping[str, tuple[int, ...]], node: NodeProto) -> tuple[int, int] | None:
    small, large = sizes.get(node.input[0], ()), sizes.get(node.output[0], ())
    if len(small) != 4 or len(large) != 4 or not min(small[2:] + large[2:]):
        return None
    if large[2] % small[2] or large[3] % small[3]:
        return None
    return large[2] // small[2], large[3] // small[3]


def _drop_unused(graph: GraphProto) -> None:
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [weight for weight in graph.initializer if weight.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(weights)
