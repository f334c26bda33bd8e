"""The last upsampling of an exported graph: found, and written as a matrix product."""

from __future__ import annotations

import numpy as np
import onnx.checker
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from fcn_deploy.onnx_resize import enlargement
from fcn_deploy.upsample import FloatArray, Upsampling, bilinear_matrix, window_matrix

MATRIX = "upsample.matrix"
"""The weight of the matrix form: as :func:`~fcn_deploy.upsample.window_matrix` makes it."""

SCORES, LOGITS, LABELS = "scores", "logits", "labels"

_MOST_WEIGHTS = 1 << 24
"""Of the matrix of a bilinear resize, which is nearly empty: beyond, logits are merged."""


def upsampling_of(proto: ModelProto, num_classes: int) -> Upsampling | None:
    """The layer between scores and logits, in any form; ``None`` where it is another one.

    It is a transposed convolution, or its matrix; or a bilinear resize to a whole, even multiple.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    if MATRIX in weights:
        matrix = _values(weights[MATRIX])
        try:
            return Upsampling(matrix, num_classes)
        except ValueError:
            return None
    if (stride := _bilinear_stride(proto, weights)) is not None:
        if (4 * num_classes + 1) * num_classes * stride**2 > _MOST_WEIGHTS:
            return None
        return Upsampling(bilinear_matrix(num_classes, stride), num_classes, "edge")
    layer = _transposed_convolution(proto)
    if layer is None:
        return None
    kernel, bias = _kernel_and_bias(layer, weights)
    return Upsampling(window_matrix(kernel, bias), num_classes)


def to_matrix_form(proto: ModelProto) -> ModelProto:
    """The same model with its last transposed convolution as one matrix product.

    A window of s x s pixels is made from the 2 x 2 cells around it: 4C numbers and a 1 (for the
    bias) times a (4C + 1, C * s * s) matrix. The columns are sorted by class, so that arg-max runs
    before anything is laid out as an image; only labels are rearranged. Exact to float rounding;
    benchmarks/tiling.py compares its time with that of the transposed convolution.

    Returns:
        ``proto`` itself where its last layer is no such convolution.
    """
    layer = _transposed_convolution(proto)
    if layer is None:
        return proto
    weights = {weight.name: weight for weight in proto.graph.initializer}
    kernel, bias = _kernel_and_bias(layer, weights)
    classes, s = kernel.shape[0], kernel.shape[2] // 2
    changed = ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    old = [
        node for node in graph.node if node.output[0] == LOGITS or _makes_labels(graph.node, node)
    ]
    kept = [node for node in graph.node if node not in old]
    del graph.node[:]
    graph.node.extend(kept)
    border = _constant("upsample.border", [0, 0, 1, 1, 0, 0, 1, 1])
    cells = [
        onnx.helper.make_node("Pad", [SCORES, border.name], ["upsample.padded"]),
        onnx.helper.make_node(
            "Transpose", ["upsample.padded"], ["upsample.cells"], perm=[0, 2, 3, 1]
        ),
    ]
    nodes, constants = _windows(np.float32)
    labels, more = _labels(classes, s)
    cut, others = _cut_to_image(s)
    graph.node.extend(_named([*cells, *nodes, *labels, *cut]))
    used = {name for node in kept for name in node.input}
    initializers = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    matrix = onnx.numpy_helper.from_array(window_matrix(kernel, bias), MATRIX)
    graph.initializer.extend([*initializers, border, *constants, *more, *others, matrix])
    onnx.checker.check_model(changed, full_check=True)
    return changed


def head_of(upsampling: Upsampling, *, half: bool, opset: int = 18) -> ModelProto:
    """A model of the upsampling and arg-max alone: scores of merged crops to labels.

    Input ``scores`` float32 (N, R, K, C), channels last as they are merged, the border cells being
    those of what lies around; output ``labels`` uint8 (N, (R - 1) * s, (K - 1) * s): the windows
    between these cells, and nothing beyond.

    Args:
        upsampling: The layer, as :func:`upsampling_of` returned it.
        half: Multiply in FP16.
        opset: ONNX operator set.
    """
    make, classes, s = onnx.helper.make_node, upsampling.num_classes, upsampling.stride
    kind = np.float16 if half else np.float32
    to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [make("Cast", [SCORES], ["upsample.cells"], to=to)]
    windows, constants = _windows(kind)
    labels, more = _labels(classes, s)
    nodes += [
        *windows,
        *labels,
        make("Squeeze", ["upsample.wide", "upsample.one_channel"], ["upsample.labels"]),
        make("Cast", ["upsample.labels"], [LABELS], to=TensorProto.UINT8),
    ]
    matrix = onnx.numpy_helper.from_array(upsampling.matrix.astype(kind), MATRIX)
    channel = _constant("upsample.one_channel", [1])
    float_input = onnx.helper.make_tensor_value_info(
        SCORES, TensorProto.FLOAT, ["batch", "rows", "columns", classes]
    )
    output = onnx.helper.make_tensor_value_info(
        LABELS, TensorProto.UINT8, ["batch", "height", "width"]
    )
    graph = onnx.helper.make_graph(
        _named(nodes), "head", [float_input], [output], [*constants, *more, channel, matrix]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model.ir_version = 10  # of opset 18 to 23, and read by every runtime that we support
    onnx.checker.check_model(model, full_check=True)
    return model


def _makes_labels(nodes: list[NodeProto], node: NodeProto) -> bool:
    """Whether a node lies between logits and labels."""
    made = {LOGITS}
    for other in nodes:
        if made & set(other.input):
            made.update(other.output)
            if other is node:
                return True
    return False


def _windows(kind: type[np.floating]) -> tuple[list[NodeProto], list[TensorProto]]:
    """Cells (N, R, K, C) to windows (N, R - 1, K - 1, C * s * s)."""
    make, far = onnx.helper.make_node, np.iinfo(np.int64).max
    nodes = []
    constants = [
        _constant("upsample.axes", [1, 2]),
        _constant("upsample.channel", [0, 0, 0, 0, 0, 0, 0, 1]),
        onnx.numpy_helper.from_array(np.array(1, kind), "upsample.one"),
    ]
    corners = []
    for down in (0, 1):
        for across in (0, 1):
            name = f"upsample.corner{down}{across}"
            ends = _constant(f"{name}.stop", [far if d else -1 for d in (down, across)])
            starts = _constant(f"{name}.start", [down, across])
            constants += [starts, ends]
            nodes.append(
                make("Slice", ["upsample.cells", starts.name, ends.name, "upsample.axes"], [name])
            )
            corners.append(name)
    nodes += [
        make("Concat", corners, ["upsample.corners"], axis=3),
        make(
            "Pad",
            ["upsample.corners", "upsample.channel", "upsample.one"],
            ["upsample.inputs"],
        ),
        make("MatMul", ["upsample.inputs", MATRIX], ["upsample.windows"]),
    ]
    return nodes, constants


def _labels(classes: int, s: int) -> tuple[list[NodeProto], list[TensorProto]]:
    """Windows to their most likely classes, as an image: float (N, 1, rows * s, columns * s)."""
    make = onnx.helper.make_node
    nodes = [
        make("Reshape", ["upsample.windows", "upsample.by_class"], ["upsample.classes"]),
        make("ArgMax", ["upsample.classes"], ["upsample.argmax"], axis=3, keepdims=0),
        # By way of float: TensorRT makes uint8 from nothing else, and only at the end.
        make("Cast", ["upsample.argmax"], ["upsample.winners"], to=TensorProto.FLOAT),
        make("Transpose", ["upsample.winners"], ["upsample.deep"], perm=[0, 3, 1, 2]),
        make("DepthToSpace", ["upsample.deep"], ["upsample.wide"], blocksize=s, mode="CRD"),
    ]
    return nodes, [_constant("upsample.by_class", [0, 0, 0, classes, s * s])]


def _cut_to_image(s: int) -> tuple[list[NodeProto], list[TensorProto]]:
    """Labels (N, H, W) uint8 and logits (N, C, H, W), the half windows at the border cut away."""
    make = onnx.helper.make_node
    constants = [
        _constant("upsample.half", [s // 2, s // 2]),
        _constant("upsample.minus_half", [-(s // 2), -(s // 2)]),
        _constant("upsample.image_axes", [2, 3]),
        _constant("upsample.one_channel", [1]),
    ]
    cut = ["upsample.half", "upsample.minus_half", "upsample.image_axes"]
    nodes = [
        # Labels first: they must not wait for logits that nobody asked for.
        make("Slice", ["upsample.wide", *cut], ["upsample.cut"]),
        make("Squeeze", ["upsample.cut", "upsample.one_channel"], ["upsample.labels"]),
        make("Cast", ["upsample.labels"], [LABELS], to=TensorProto.UINT8),
        make("Transpose", ["upsample.windows"], ["upsample.deep_logits"], perm=[0, 3, 1, 2]),
        make(
            "DepthToSpace",
            ["upsample.deep_logits"],
            ["upsample.wide_logits"],
            blocksize=s,
            mode="CRD",
        ),
        make("Slice", ["upsample.wide_logits", *cut], [LOGITS]),
    ]
    return nodes, constants


def _named(nodes: list[NodeProto]) -> list[NodeProto]:
    for node in nodes:
        node.name = f"{node.output[0]}.{node.op_type}"
    return nodes


def _constant(name: str, values: list[int]) -> TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def _transposed_convolution(proto: ModelProto) -> NodeProto | None:
    """The node from scores to logits, if it enlarges s times: kernel 2s, stride s, padding s/2."""
    weights = {weight.name: weight for weight in proto.graph.initializer}
    entries = _casts_of_scores(proto)
    for node in proto.graph.node:
        if node.op_type != "ConvTranspose" or node.output[0] not in (LOGITS, f"{LOGITS}_fp16"):
            continue
        if node.input[0] not in entries:
            return None
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        shape = tuple(weights[node.input[1]].dims) if node.input[1] in weights else ()
        if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 4 or shape[0] != shape[1]:
            return None
        s = shape[2] // 2
        plain = (
            list(settings.get("strides", [])) == [s, s]
            and list(settings.get("pads", [])) == [s // 2] * 4
            and list(settings.get("dilations", [1, 1])) == [1, 1]
            and settings.get("group", 1) == 1
            and not any(settings.get("output_padding", []))
            and "output_shape" not in settings
            and settings.get("auto_pad", b"NOTSET") in (b"NOTSET", "NOTSET")
        )
        known = len(node.input) < 3 or node.input[2] in weights
        return node if plain and known else None
    return None


def _bilinear_stride(proto: ModelProto, weights: dict[str, TensorProto]) -> int | None:
    """How many times scores are enlarged, linearly, to be logits; ``None`` if they are not."""
    entries = _casts_of_scores(proto)
    for node in proto.graph.node:
        if node.output[0] in (LOGITS, f"{LOGITS}_fp16") and node.op_type == "Resize":
            factors = enlargement(node, weights)
            if node.input[0] not in entries or factors is None:
                return None
            mode, rows, columns = factors
            return rows if mode == "linear" and rows == columns and rows % 2 == 0 else None
    return None


def _casts_of_scores(proto: ModelProto) -> set[str]:
    """The tensor of scores, and what is nothing but it in another type."""
    known = {SCORES}
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.input[0] in known:
            known.update(node.output)
    return known


def _kernel_and_bias(
    layer: NodeProto, weights: dict[str, TensorProto]
) -> tuple[FloatArray, FloatArray]:
    kernel = _values(weights[layer.input[1]])
    if len(layer.input) < 3:
        return kernel, np.zeros(kernel.shape[1], np.float32)
    return kernel, _values(weights[layer.input[2]])


def _values(weight: TensorProto) -> FloatArray:
    values: NDArray[np.float32] = onnx.numpy_helper.to_array(weight).astype(np.float32)
    return values
