"""Weights outside of the graph: held once, whatever number of sessions compute with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx.numpy_helper
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from fcn_deploy.onnx_file import OnnxModel, keep_outputs

Weights = Mapping[str, Any]
"""OrtValues by the name of their initializer; their memory is that of NumPy arrays."""

_SMALL = 1024
"""Bytes. What is smaller may be a shape, which ONNX Runtime has to know before it starts."""


def share_weights(model: OnnxModel) -> tuple[OnnxModel, Weights]:
    """Take the weights of the trunk out of a graph.

    A session that is opened from bytes costs those bytes (which it keeps), their parsed copy, and
    its own rearranged weights: 110 MiB for the second session of a ResNet-18, 210 of a ResNet-50.
    With weights from outside it is 65 and 90.

    Weights behind the scores stay: the matrix of the upsampling is read from the graph.

    Returns:
        The model with empty weights, of use only together with the second: the weights.
    """
    proto = ModelProto()
    graph = proto.graph
    for name in ("ir_version", "producer_name", "producer_version"):
        setattr(proto, name, getattr(model.proto, name))
    proto.opset_import.extend(model.proto.opset_import)
    proto.metadata_props.extend(model.proto.metadata_props)
    graph.name = model.proto.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(graph, part).extend(getattr(model.proto.graph, part))
    trunk, weights = _names_in_trunk(model), {}
    for old in model.proto.graph.initializer:
        new = graph.initializer.add()
        if old.name not in trunk or old.ByteSize() < _SMALL:
            new.CopyFrom(old)
            continue
        new.name, new.data_type = old.name, old.data_type
        new.dims.extend(old.dims)
        new.data_location = TensorProto.EXTERNAL
        # The format wants a place; nothing is read from it, as every such weight is handed over.
        new.external_data.add(key="location", value="in memory")
        weights[old.name] = ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(old))
    return replace(model, proto=proto), weights


def _names_in_trunk(model: OnnxModel) -> set[str]:
    """What the scores are computed from; everything, where the graph has none."""
    if "scores" not in model.outputs:
        return {weight.name for weight in model.proto.graph.initializer}
    needed = {"scores"}
    for node in reversed(model.proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed


def cut_for_session(
    proto: ModelProto, weights: Weights, outputs: tuple[str, ...], to: Any
) -> bytes:
    """The part of a model that computes ``outputs``, as a session takes it.

    Args:
        proto: The model, or the one of :func:`share_weights`.
        weights: What is missing in it.
        outputs: What to compute.
        to: Options of the session, which are given the weights.
    """
    part = keep_outputs(proto, outputs)
    missing = [weight.name for weight in part.graph.initializer if weight.name in weights]
    if missing:
        to.add_external_initializers(missing, [weights[name] for name in missing])
    content: bytes = part.SerializeToString()
    return content
