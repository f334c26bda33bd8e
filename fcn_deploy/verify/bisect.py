"""Where in a graph does it begin to differ from the checkpoint?

Each layer is given what the graph itself feeds it, once in ONNX Runtime and once in PyTorch: so an
error that came from above is not counted again, and the layer that makes one stands out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from fcn_deploy.onnx_file import WEIGHTED
from fcn_deploy.verify.result import Layer
from fcn_deploy.verify.weights import PREFIX

if TYPE_CHECKING:
    from fcn_deploy.training.layers import Layers

LOCAL_LIMITS = {"fp32": 1e-4, "fp16": 3e-3, "int8": 0.2}
"""Most that a layer's own error may be, relative to what it returns, by root mean square."""

_GLOBAL_FACTOR = 30.0  # errors add up on the way down; from one layer to the next not this fast


def errors_by_layer(
    proto: ModelProto, reference: Layers, crops: NDArray[np.uint8]
) -> tuple[Layer, ...]:
    """The errors of every layer, in the order of execution.

    Args:
        proto: Of an exported file, whatever its precision.
        reference: Of the checkpoint.
        crops: uint8 (N, H, W, 3).

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """
    from fcn_deploy.backends.ort_tensors import Tensors

    places = list(_places(proto))
    names = {name for _, before, after in places for name in (before, after) if name}
    there = Tensors(proto, sorted(names)).run(crops)
    wanted = reference.outputs(crops)
    layers = []
    for name, before, after in places:
        if name not in wanted or there[after].shape != wanted[name].shape:
            continue
        own = wanted[name] if before is None else reference.apply(name, there[before])
        layers.append(
            Layer(name, _relative(there[after], own), _relative(there[after], wanted[name]))
        )
    return tuple(layers)


def first_deviation(layers: tuple[Layer, ...], precision: str) -> str | None:
    """One sentence about the layer at which errors begin; ``None`` if none stands out."""
    limit = LOCAL_LIMITS[precision]
    for layer in layers:
        if not layer.local_error <= limit:
            return (
                f"The first layer that deviates is {layer.name}: from the same input it makes "
                f"something else, by {layer.local_error:.1%} of its size."
                if np.isfinite(layer.local_error)
                else f"The first layer that deviates is {layer.name}: it returns no finite values."
            )
    for before, layer in pairwise(layers):
        if not layer.error <= _GLOBAL_FACTOR * max(before.error, limit):
            return (
                f"Errors begin between {before.name} and {layer.name}, in what has no weights "
                f"there (activation, pooling, addition): {before.error:.0e} to {layer.error:.0e}."
            )
    return None


def _places(proto: ModelProto) -> Iterator[tuple[str, str | None, str]]:
    """Name, input and output of every layer; the first one, normalisation, has no input."""
    sources = {node.output[0]: node.input[0] for node in proto.graph.node if node.input}
    weighted = [node for node in proto.graph.node if node.op_type in WEIGHTED]
    if weighted:
        yield "normalisation", None, weighted[0].input[0]
    for node in weighted:
        weight = node.input[1]
        while not weight.startswith(PREFIX) and weight in sources:
            weight = sources[weight]  # through DequantizeLinear
        name = weight.removeprefix(PREFIX).partition(".weight")[0]
        if weight.startswith(PREFIX):
            yield name, node.input[0], node.output[0]
    outputs = {value.name for value in proto.graph.output}
    if {"scores", "logits"} <= outputs:
        yield "upsample", "scores", "logits"


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Root mean square of the difference over that of what is wanted."""
    size = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(got.astype(np.float64) - wanted))))
    return error / size if size else error


def open_reference(checkpoint: Path) -> Layers:
    """The layers of a checkpoint.

    Raises:
        MissingExtraError: PyTorch is not installed.
        ModelError: Not a usable checkpoint.
    """
    from fcn_deploy.errors import MissingExtraError

    try:
        from fcn_deploy.training.layers import Layers
    except ImportError as error:
        raise MissingExtraError("torch", "train") from error
    return Layers(checkpoint)
