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
    sound = half == layers and fp32 == 0 and len(plan) < 3 * total + _OVERHEAD_BYTES
    found = fp16 > 0.5 or not flavour.is_rtx or not _kernels(part.proto, ("Conv",))
    kernels = _read_back(flavour, plan)
    if kernels is not None and kernels.get("float32 products"):
        sound = False
    hw = part.profiles[0].opt[1:]
    return Precision(
        "fp16" if layers and sound and found else "fp32",
        half,
        layers,
        round(fp16_share(part.proto, hw), 4),
        round(fp16, 4),
        round(fp32, 4),
        kernels,
    )


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
    found = {np.float16: 0, np.float32: 0}
    total = 0
    for weight in _kernels(proto, ("Conv",)):
        # KRSC, as engines keep them for tensor cores, or KCRS as in ONNX.
        orders = (weight.transpose(0, 2, 3, 1), weight)
        heads = {
            kind: [np.ascontiguousarray(order, kind).tobytes()[:_PROOF_BYTES] for order in orders]
            for kind in found
        }
        # Zeros, such as skip scores that were never trained, look the same in both types.
        if not all(any(head) for pair in heads.values() for head in pair):
            continue
        total += weight.size
        for kind, pair in heads.items():
            found[kind] += weight.size * any(head in plan for head in pair)
    return found[np.float16] / max(total, 1), found[np.float32] / max(total, 1)


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


_PRODUCTS = ("conv", "gemm", "matmul", "matrix", "deconv")


def count_kernels(information: str) -> dict[str, int] | None:
    """Layers by the type of their tensors, from the JSON of an engine inspector.

    A layer that multiplies (convolution, matrix product) and has no FP16 tensor at all is counted
    as ``float32 products``; that is what must not be in an FP16 engine.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    counts: Counter[str] = Counter()
    for entry in layers:
        if not isinstance(entry, dict):  # names only: the verbosity was lower
            return None
        tensors = [*entry.get("Inputs", []), *entry.get("Outputs", [])]
        formats = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in tensors).lower()
        half = "half" in formats or "fp16" in formats
        kind = f"{entry.get('LayerType', '')} {entry.get('Name', '')}".lower()
        multiplies = any(word in kind for word in _PRODUCTS) and "constant" not in kind
        name = "FP16" if half else "float32" if "float" in formats or "fp32" in formats else "other"
        counts[f"{name} products" if multiplies else name] += 1
    return dict(sorted(counts.items()))
