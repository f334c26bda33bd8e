"""What a built engine computes in: from the network, from the plan's bytes, and read back."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from fcn_deploy.backends.tensorrt_flavour import Flavour, has_gpu
from fcn_deploy.engine.network import Network
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.onnx_arithmetic import fp16_share
from fcn_deploy.onnx_file import WEIGHTED
from fcn_deploy.onnx_parts import GraphPart
from fcn_deploy.passport import Precision

_PROOF_BYTES = 4096
"""Weights are looked for in the plan by their first bytes: 2,048 halves do not occur by chance."""

_OVERHEAD_BYTES = 16 << 20
"""What a plan may hold beside weights; several targets bring as many sets of kernels."""


def prove(flavour: Flavour, parsed: Network, part: GraphPart, plan: bytes) -> Precision:
    """What one plan computes in.

    Args:
        flavour: The library that built it.
        parsed: What it was built from.
        part: The typed graph of that.
        plan: The built plan.
    """
    layers, half = _typed_layers(flavour.trt, parsed.definition)
    fp16, fp32 = _weights_in(plan, part.proto)
    # TensorRT may store weights in an order of its own, so that absence proves nothing; the
    # presence of float32 weights, or a plan too large for halves, would prove the contrary.
    total = sum(weight.size for weight in _kernels(part.proto))
    sound = (
        half == layers - float32_head(part.proto)
        and half > 0
        and fp32 == 0
        and len(plan) < 3 * total + _OVERHEAD_BYTES
    )
    found = fp16 > 0.5 or not flavour.is_rtx or not _kernels(part.proto, ("Conv",))
    kernels = _read_back(flavour, plan)
    if kernels is not None and kernels.get("float32 products"):
        sound = False
    hw = part.profiles[0].opt[1:]
    int8 = _integers_in(plan, part.proto)
    return Precision(
        "int8" if int8 > 0.5 else "fp16" if sound and found else "fp32",
        half,
        layers,
        round(fp16_share(part.proto, hw), 4),
        round(fp16, 4),
        round(fp32, 4),
        kernels,
        round(int8, 4),
    )


def float32_head(proto: ModelProto) -> int:
    """Layers with weights behind the scores that a typed graph keeps in float32, as it may."""
    singles = {w.name for w in proto.graph.initializer if w.data_type == TensorProto.FLOAT}
    behind, count = {"scores"}, 0
    for node in proto.graph.node:
        if behind & set(node.input):
            behind |= set(node.output)
            count += node.op_type in WEIGHTED and node.input[1] in singles
    return count


def require_fp16(precision: Precision, role: str) -> None:
    """Refuse an engine that was to compute in FP16 and does not.

    Raises:
        CheckFailedError: Gives the evidence.
    """
    if precision.computes != "fp16":
        raise CheckFailedError(
            f"The {role} engine was to compute in FP16, but {evidence(precision)}.",
            "It was not written. Please report this with the TensorRT version.",
        )


def evidence(precision: Precision) -> str:
    """The evidence in words."""
    words = (
        f"{precision.fp16_layers} of {precision.layers} layers with weights are typed FP16, "
        f"{precision.fp16_weights:.0%} of the convolutions' weights lie in the plan as FP16, "
        f"{precision.fp32_weights:.0%} as float32"
    )
    if precision.kernels:
        counts = ", ".join(f"{count} {kind}" for kind, count in precision.kernels.items())
        words += f"; read back: {counts}"
    return words


def _typed_layers(trt: Any, network: Any) -> tuple[int, int]:
    """Layers with weights, and those of them that are FP16 at both ends."""
    types = trt.LayerType
    kinds = (types.CONVOLUTION, types.DECONVOLUTION, types.MATRIX_MULTIPLY)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    layers = [layer for layer in layers if layer.type in kinds]
    half = sum(
        layer.get_input(0).dtype == trt.DataType.HALF
        and layer.get_output(0).dtype == trt.DataType.HALF
        for layer in layers
    )
    return len(layers), int(half)


def _kernels(proto: ModelProto, kinds: tuple[str, ...] = WEIGHTED) -> list[NDArray[np.float32]]:
    names = {node.input[1] for node in proto.graph.node if node.op_type in kinds}
    return [
        np.asarray(onnx.numpy_helper.to_array(weight), np.float32)
        for weight in proto.graph.initializer
        if weight.name in names and weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    ]


def _weights_in(plan: bytes, proto: ModelProto) -> tuple[float, float]:
    """Share of the convolutions' weights that lie in the plan as FP16, and as float32.

    The upsampling is left out: TensorRT-RTX stores its weights rearranged, and of 150 classes they
    are nine tenths of an FCN-32s. The size of the plan speaks for them.
    """
    half = full = total = 0
    for weight in _kernels(proto, ("Conv",)):
        fp16, fp32 = _heads(weight, np.float16), _heads(weight, np.float32)
        # Zeros, such as skip scores that were never trained, look the same in both types.
        if not all(any(head) for head in (*fp16, *fp32)):
            continue
        total += weight.size
        if any(head in plan for head in fp16):
            half += weight.size
        elif any(head in plan for head in fp32):
            full += weight.size
    return half / max(total, 1), full / max(total, 1)


def _integers_in(plan: bytes, proto: ModelProto) -> float:
    """Share of the 8-bit weights of a quantised graph that lie in the plan as they are."""
    total = found = 0
    for weight in proto.graph.initializer:
        if weight.data_type != TensorProto.INT8 or len(weight.dims) != 4:
            continue
        values = onnx.numpy_helper.to_array(weight)
        total += values.size
        orders = (values.transpose(0, 2, 3, 1), values)
        heads = {np.ascontiguousarray(order).tobytes()[:_PROOF_BYTES] for order in orders}
        found += values.size if any(head in plan for head in heads) else 0
    return found / total if total else 0.0


def _heads(weight: NDArray[np.float32], kind: type[np.floating[Any]]) -> set[bytes]:
    """First bytes of a kernel as KRSC, as engines keep it for tensor cores, and KCRS as in ONNX."""
    orders = (weight.transpose(0, 2, 3, 1), weight)
    return {np.ascontiguousarray(order, kind).tobytes()[:_PROOF_BYTES] for order in orders}


def _read_back(flavour: Flavour, plan: bytes) -> dict[str, int] | None:
    """Kernels of the built engine by type, asked of the library; ``None`` without a GPU.

    Deserialising needs a driver: without one, some releases end the process.
    """
    if not has_gpu():
        return None
    trt = flavour.trt
    runtime = trt.Runtime(flavour.logger)
    if flavour.is_rtx and not flavour.can_load(runtime, plan):
        return None  # built here for another GPU
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return count_kernels(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


_PRODUCTS = ("conv", "gemm", "matmul", "matrix")
_OTHERS = ("reformat", "constant", "cast", "copy", "noop", "pointwise", "pooling", "shape")


def count_kernels(information: str) -> dict[str, int] | None:
    """Layers by the type of their tensors, from the JSON of an engine inspector.

    A layer that multiplies (convolution, matrix product) and has no FP16 tensor at all is counted
    as ``float32 products``; that is what must not be in an FP16 engine.

    Returns:
        ``None`` where it is no such JSON, or names only, as of an engine built with less verbosity.
    """
    counts: Counter[str] = Counter()
    try:
        for entry in json.loads(information)["Layers"]:
            tensors = [*entry.get("Inputs", []), *entry.get("Outputs", [])]
            formats = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in tensors).lower()
            half = "half" in formats or "fp16" in formats
            single = "float" in formats or "fp32" in formats
            kind = "FP16" if half else "float32" if single else "other"
            counts[f"{kind} products" if _multiplies(entry) else kind] += 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(sorted(counts.items()))


def _multiplies(entry: dict[str, Any]) -> bool:
    """Whether a layer multiplies: by its type, or by what it was fused from if that says nothing.

    Names alone would not do: copies are called after the convolution that they are made for.
    """
    kind, name = (str(entry.get(key, "")).lower() for key in ("LayerType", "Name"))
    if any(word in kind for word in (*_PRODUCTS, *_OTHERS)):
        return any(word in kind for word in _PRODUCTS)
    copied = name.startswith("reformatting")
    return not copied and any(word in name.replace("convert", "") for word in _PRODUCTS)
