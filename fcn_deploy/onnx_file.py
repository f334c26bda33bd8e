"""The exported ONNX file: read it safely, cut it, and turn it into its FP16 twin; no session."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcn_deploy.errors import MissingExtraError, ModelError
from fcn_deploy.spec import INPUT, OUTPUTS, SPEC_KEY, VERIFIED_KEY, ModelSpec

try:
    import onnx
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
    import onnx.shape_inference
    import onnx.utils
    from onnx import ModelProto, NodeProto, TensorProto
except ImportError as error:
    raise MissingExtraError("onnx", "cpu") from error

DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxModel:
    """A checked model file in memory.

    Attributes:
        proto: The whole model, weights included.
        spec: Its description.
        outputs: Which of :data:`OUTPUTS` it has.
        precision: ``fp16`` where the convolutions compute in half precision, ``int8`` where some
            are given 8-bit integers, else ``fp32``.
    """

    proto: ModelProto
    spec: ModelSpec
    outputs: tuple[str, ...]
    precision: str


def read_onnx(path: Path) -> OnnxModel:
    """Read and check an ONNX file before anything native sees it.

    Raises:
        ModelError: Not ONNX, not exported by fcn-deploy, or it reaches outside of its own file.
    """
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(
            f"{path} is not an ONNX file, or it is cut short.", "Export it again: fcn-deploy export"
        ) from error
    _refuse_unsafe(proto, path)
    properties = {prop.key: prop.value for prop in proto.metadata_props}
    if SPEC_KEY not in properties:
        raise ModelError(
            f"{path} has no fcn-deploy description in its metadata.",
            "Only files written by `fcn-deploy export` can be used here.",
        )
    outputs = tuple(value.name for value in proto.graph.output)
    if [value.name for value in proto.graph.input] != [INPUT] or not set(outputs) <= set(OUTPUTS):
        raise ModelError(f"{path} does not take {INPUT!r}, or returns other than {OUTPUTS}.")
    spec = ModelSpec.from_json(properties[SPEC_KEY])
    _require_described(proto, spec, path)
    return OnnxModel(proto, spec, outputs, _precision(proto))


def identity(path: Path) -> str:
    """SHA-256 of an ONNX file without the stamp that ``fcn-deploy verify`` leaves in it.

    Raises:
        ModelError: Not an ONNX file of ours.
    """
    content = path.read_bytes()
    if VERIFIED_KEY.encode() in content:
        proto = read_onnx(path).proto
        kept = [prop for prop in proto.metadata_props if prop.key != VERIFIED_KEY]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        content = proto.SerializeToString()
    return hashlib.sha256(content).hexdigest()


def _require_described(proto: ModelProto, spec: ModelSpec, path: Path) -> None:
    """Refuse a graph whose types or number of classes are not those of its description."""
    for value in (*proto.graph.input, *proto.graph.output):
        tensor = value.type.tensor_type
        kind = TensorProto.UINT8 if value.name in (INPUT, "labels") else TensorProto.FLOAT
        channels = spec.num_classes if kind == TensorProto.FLOAT else None
        sizes = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.elem_type != kind or (channels and sizes[1:2] != [channels]):
            raise ModelError(
                f"{path} does not fit its description: {value.name!r} is of another type, or not "
                f"of {spec.num_classes} classes.",
                "Export it again: fcn-deploy export",
            )


def _refuse_unsafe(proto: ModelProto, path: Path) -> None:
    """Refuse what could load other files or code: rules in docs/security of onnx and of ORT."""
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX file, or it is empty.")
    tensors = list(proto.graph.initializer)
    for node in proto.graph.node:
        if node.domain not in DOMAINS or node.op_type == "EPContext":
            raise ModelError(f"{path} has the operator {node.domain}:{node.op_type}, not standard.")
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise ModelError(f"{path} has a {node.op_type} with a graph inside.")
            tensors += [attribute.t, *attribute.tensors]
    if proto.functions or any(t.data_location == TensorProto.EXTERNAL for t in tensors):
        raise ModelError(
            f"{path} keeps weights or functions outside of its graph, which is not allowed.",
            "Export it again as a single file: fcn-deploy export",
        )


def _precision(proto: ModelProto) -> str:
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        return "int8"
    types = {weight.name: weight.data_type for weight in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in WEIGHTED]
    # The head may be float32 in an FP16 file; a head alone is what its matrix is.
    layers = [node for node in layers if node.op_type == "Conv"] or layers
    kernels = [types.get(node.input[1]) for node in layers]
    return "fp16" if kernels and set(kernels) == {TensorProto.FLOAT16} else "fp32"


WEIGHTED = ("Conv", "ConvTranspose", "MatMul")


def keep_outputs(proto: ModelProto, outputs: tuple[str, ...]) -> ModelProto:
    """The part of a model that computes ``outputs``; the rest would be computed and thrown away.

    ONNX Runtime runs every node of a session, whatever outputs a run asks for.
    """
    if tuple(value.name for value in proto.graph.output) == outputs:
        return proto
    part: ModelProto = onnx.utils.Extractor(proto).extract_model([INPUT], list(outputs))
    part.metadata_props.extend(proto.metadata_props)
    return part


def to_half(proto: ModelProto, *, fp32_head: bool = False) -> ModelProto:
    """The same model with everything after normalisation in FP16; types lie in the graph.

    Image, labels, logits and scores keep their types; normalisation stays float32. Batch norm must
    be folded already, in float32: folding in half precision costs accuracy.

    Args:
        proto: In float32.
        fp32_head: Compute what follows the scores in float32: upsampling and arg-max.

    Raises:
        ModelError: A weight lies outside the range of FP16, the graph does not fit together, or it
            has no scores that a head could follow.
    """
    if fp32_head and not any("scores" in node.output for node in proto.graph.node):
        raise ModelError(
            "This network has no scores, so that there is no head to keep in float32.",
            "Leave --fp32-head away.",
        )
    half = ModelProto()
    half.CopyFrom(proto)
    graph = half.graph
    entry = next(node.input[0] for node in graph.node if node.op_type in WEIGHTED)
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    weights = {weight.name: weight for weight in graph.initializer}
    inside = {entry}  # float32 tensors of the old graph that are FP16 in the new one
    nodes: list[NodeProto] = []
    for node in graph.node:
        if entry in node.output or node.op_type == "Cast" or not inside & set(node.input):
            nodes.append(node)
            if entry in node.output:
                nodes.append(_cast(entry, _half(entry), TensorProto.FLOAT16))
            continue
        produced = [name for name in node.output if node.op_type not in ("ArgMax", "Shape")]
        for position, name in enumerate(node.input):
            if node.op_type == "Resize" and position > 0:
                continue  # scales are float32 whatever is resized
            if name in weights:
                _halve(weights[name])
            elif name in inside:
                node.input[position] = _half(name)
        for position, name in enumerate(produced):
            if not (fp32_head and name == "scores"):
                inside.add(name)
            node.output[position] = _half(name)
        nodes.append(node)
        shown = (outputs | ({"scores"} if fp32_head else set())) & set(produced)
        nodes.extend(_cast(_half(name), name, TensorProto.FLOAT) for name in shown)
    _cut_at_scores(nodes)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        cause = " ".join(str(error).split())[:160]
        raise ModelError(
            f"The graph cannot be turned into FP16: {cause}.", "Export it again: fcn-deploy export"
        ) from error
    return half


def _half(name: str) -> str:
    return f"{name}_fp16"


def _cast(source: str, target: str, to: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


_HEAD_INPUT = "scores_fp16_again"


def has_half_head(proto: ModelProto) -> bool:
    """Whether what follows the scores computes in FP16."""
    return any(_HEAD_INPUT in node.output for node in proto.graph.node)


def _cut_at_scores(nodes: list[NodeProto]) -> None:
    """Let the upsampling read the float32 scores, so that what reads them can be a model too."""
    inner, outer = _half("scores"), "scores"
    readers = [n for n in nodes if n.op_type != "Cast" and inner in n.input]
    if not readers or not any(outer in n.output for n in nodes):
        return
    for node in readers:
        node.input[:] = [_HEAD_INPUT if name == inner else name for name in node.input]
    nodes.insert(nodes.index(readers[0]), _cast(outer, _HEAD_INPUT, TensorProto.FLOAT16))


def _halve(weight: TensorProto) -> None:
    if weight.data_type != TensorProto.FLOAT:
        return
    values = onnx.numpy_helper.to_array(weight)
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    if not np.isfinite(halved).all():
        raise ModelError(
            f"The weight {weight.name} reaches {np.abs(values).max():.3g}, beyond FP16 (65504).",
            "Export without --fp16, or train with more weight decay.",
        )
    weight.CopyFrom(onnx.numpy_helper.from_array(halved, weight.name))
