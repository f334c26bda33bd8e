"""The receptive field of an exported graph, exactly; no session.

What each kind of layer does to it is in :mod:`fcn_deploy.reach`; this is the walk along the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fcn_deploy.errors import MissingExtraError, ModelError
from fcn_deploy.reach import MOST, Dependence, require_stride
from fcn_deploy.reach import Reach as Reach
from fcn_deploy.reach import halo_for as halo_for
from fcn_deploy.spec import INPUT, ModelSpec

try:
    import onnx.helper
    from onnx import ModelProto, NodeProto

    from fcn_deploy.onnx_resize import enlargement
except ImportError as error:
    raise MissingExtraError("onnx", "cpu") from error


def exact_halo(proto: ModelProto, spec: ModelSpec) -> int | None:
    """Pixels of a crop's border that what lies beyond it would change.

    Returns:
        A whole number of scores, or of pixels where crops are merged as logits; ``None`` where the
        model returns neither.

    Raises:
        ModelError: As :func:`reach_of_scores`.
    """
    outputs = {value.name for value in proto.graph.output}
    if "scores" in outputs:
        reach = reach_of_scores(proto, spec.score_stride)
        return halo_for(reach, spec.score_stride, spec.output_stride)
    if "logits" not in outputs:
        return None
    reach = require_stride(Reach(*dependence(proto, "logits")), 1)
    return halo_for(reach, 1, spec.output_stride, around=0)


def reach_of_scores(proto: ModelProto, score_stride: int) -> Reach:
    """How far ``scores`` of an exported model look, whatever its weights are.

    Args:
        proto: A model that takes ``image`` (N, H, W, 3) and returns ``scores``.
        score_stride: Pixels from one score to the next.

    Raises:
        ModelError: No ``scores``, of another stride, or a node mixes positions in a way whose
            reach is not known.
    """
    return require_stride(Reach(*dependence(proto, "scores")), score_stride)


def dependence(proto: ModelProto, output: str) -> tuple[Dependence, Dependence]:
    """Which pixels a tensor (N, C, H, W) of a graph depends on, along rows and along columns.

    Raises:
        ModelError: As :func:`reach_of_scores`.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    shapes = {name: tuple(weight.dims) for name, weight in weights.items()}
    fields = {INPUT: _Field((1, 2), (Dependence(), Dependence()))}
    for node in _needed(proto, output):
        inputs = [fields[name] for name in node.input if name in fields]
        if not inputs:  # a constant
            continue
        try:
            if node.op_type == "Resize":
                field = _resized(enlargement(node, weights), *inputs)
            else:
                field = _behind(node, inputs, shapes)
        except (AttributeError, TypeError, ValueError) as error:  # attributes can be anything
            raise ModelError(
                f"How far the node {node.name or node.output[0]} ({node.op_type}) looks is not "
                f"known: {error}.",
                "Give the halo in pixels instead: --halo N",
            ) from error
        fields.update(dict.fromkeys(node.output, field))
    if output not in fields or fields[output].axes != _NCHW:
        raise ModelError(
            f"The model has no {output!r} that depend on {INPUT!r}.",
            "Export it again: fcn-deploy export",
        )
    return fields[output].looks


@dataclass(frozen=True)
class _Field:
    """What is known of a tensor: which of its axes are rows and columns, and their dependences."""

    axes: tuple[int, int]
    looks: tuple[Dependence, Dependence]


_NCHW = (2, 3)
_WINDOWS = {"Conv", "AveragePool", "LpPool", "MaxPool"}
_PER_CHANNEL = {"BatchNormalization", "DequantizeLinear", "QuantizeLinear"}
_POINTWISE = {
    *_PER_CHANNEL,
    *("Abs", "Add", "Cast", "Celu", "Clip", "Div"),
    *("Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LRN"),
    *("LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow"),
    *("Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
    *("Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where"),
}


def _needed(proto: ModelProto, output: str) -> list[NodeProto]:
    wanted, nodes = {output}, []
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def _behind(node: NodeProto, inputs: list[_Field], shapes: dict[str, tuple[int, ...]]) -> _Field:
    first, *others = inputs
    settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if any(other.axes != first.axes for other in others):
        raise ValueError("its inputs have their channels in different places")
    if node.op_type == "Transpose":
        axes = [settings.get("perm", (3, 2, 1, 0)).index(axis) for axis in (0, *first.axes)]
        if axes not in ([0, 1, 2], [0, 2, 3]):
            raise ValueError("it moves more than the channels")
        return _Field((axes[1], axes[2]), first.looks)
    if node.op_type in {*_WINDOWS, "ConvTranspose"}:
        if others or first.axes != _NCHW:
            raise ValueError("its channels are not the second axis, or its kernel is not fixed")
        return _Field(_NCHW, _convolved(node, first.looks, settings, shapes))
    if node.op_type == "Concat" and settings.get("axis", 0) % 4 in (0, *first.axes):
        raise ValueError("it joins positions, not channels")
    if node.op_type not in {*_POINTWISE, "Concat"}:
        raise ValueError("it mixes positions")
    for name in node.input:
        shape = (1, 1, 1, 1, *shapes.get(name, ()))[-4:]
        if node.op_type not in _PER_CHANNEL and any(shape[axis] != 1 for axis in first.axes):
            raise ValueError(f"{name} differs from position to position")
    rows, columns = first.looks
    for other in others:
        rows, columns = rows.union(other.looks[0]), columns.union(other.looks[1])
    return _Field(first.axes, (rows, columns))


def _resized(factors: tuple[str, int, int] | None, field: _Field, *others: _Field) -> _Field:
    if others or field.axes != _NCHW or factors is None:
        raise ValueError("it is no enlargement by a whole number, aligned at the borders of pixels")
    mode, *along = factors
    if max(along) > MOST:
        raise ValueError("its factor is out of bounds")
    rows, columns = (
        look.resized(factor, mode) for look, factor in zip(field.looks, along, strict=True)
    )
    return _Field(_NCHW, (rows, columns))


def _convolved(
    node: NodeProto,
    looks: tuple[Dependence, Dependence],
    settings: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
) -> tuple[Dependence, Dependence]:
    """Behind a node that slides a kernel; the defaults are those of the ONNX operators."""
    kernels = settings.get("kernel_shape") or shapes.get((*node.input, "")[1], ())[2:]
    strides, dilations = (settings.get(name, (1, 1)) for name in ("strides", "dilations"))
    pads = settings.get("pads", (0, 0, 0, 0))
    extra = settings.get("output_padding", (0, 0))
    sizes = tuple(len(values) for values in (kernels, strides, dilations, pads, extra))
    if sizes != (2, 2, 2, 4, 2) or "output_shape" in settings:
        raise ValueError("its kernel is not one of two fixed sizes")
    if not all(1 <= value <= MOST for value in (*kernels, *strides, *dilations)) or any(
        not 0 <= value <= MOST for value in (*pads, *extra)
    ):
        raise ValueError("its kernel is out of bounds")
    mode = settings.get("auto_pad", b"NOTSET").decode()

    def along(axis: int) -> Dependence:
        kernel, stride, dilation = kernels[axis], strides[axis], dilations[axis]
        begin, end = pads[axis], pads[axis + 2]
        if mode != "NOTSET":
            begin, end = _automatic(mode, (kernel - 1) * dilation + 1 + extra[axis] - stride)
        if node.op_type == "ConvTranspose":
            return looks[axis].transposed(kernel, stride, dilation, (begin, end - extra[axis]))
        return looks[axis].window(kernel, stride, dilation, begin)

    return along(0), along(1)


def _automatic(mode: str, excess: int) -> tuple[int, int]:
    """Padding of ``auto_pad`` at both ends, for sizes that are multiples of the stride."""
    if mode == "VALID":
        return 0, 0
    if excess < 0:  # the standard says 0, and ONNX Runtime shifts the kernel
        raise ValueError("its stride is larger than its kernel, with automatic padding")
    less, more = excess // 2, excess - excess // 2
    return (less, more) if mode == "SAME_UPPER" else (more, less)
