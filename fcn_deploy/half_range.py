"""Does every activation of a float32 graph fit into FP16? Asked before it is cast, not after."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_file import WEIGHTED

log = logging.getLogger("fcn_deploy")

LARGEST_HALF = 65504.0
_CLOSE = LARGEST_HALF / 4  # other images may take a tensor further than those that were tried


def require_range(proto: ModelProto, batches: Iterable[NDArray[np.uint8]]) -> float:
    """Refuse a network that overflows FP16, and warn of one that comes close.

    In FP16 an activation beyond 65504 is infinite, and what follows is NaN, or a wrong class.

    Args:
        proto: In float32, batch norm folded.
        batches: Crops (N, H, W, 3) uint8.

    Returns:
        The largest absolute value that a layer with weights, or an addition, returned.

    Raises:
        ModelError: Names the layer.
    """
    from fcn_deploy.backends.ort_tensors import Tensors

    layers = {
        node.output[0]: node.input[1] if node.op_type in WEIGHTED else node.output[0]
        for node in proto.graph.node
        if node.op_type in (*WEIGHTED, "Add")
    }
    inside = Tensors(proto, list(layers))
    most, where = 0.0, ""
    for batch in batches:
        for name, values in inside.run(batch).items():
            largest = float(np.abs(values).max())
            if not largest <= LARGEST_HALF:
                raise ModelError(
                    f"The layer {_layer(layers[name])} reaches {largest:.3g}, beyond FP16 (65504).",
                    "Export without --fp16, or train with more weight decay.",
                )
            most, where = max((most, where), (largest, layers[name]))
    if most > _CLOSE:
        log.warning(
            "The layer %s reaches %.3g; FP16 ends at 65504, and other images may reach it.",
            _layer(where),
            most,
        )
    return most


def _layer(weight: str) -> str:
    """``body.0`` for ``network.body.0.weight``."""
    return weight.removeprefix("network.").removesuffix(".weight")
