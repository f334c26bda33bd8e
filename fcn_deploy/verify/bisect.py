"""Where in a graph does it begin to differ from the checkpoint?

Each layer is given what the graph itself feeds it, once in ONNX Runtime and once in PyTorch: so an
error that came from above is not counted again, and the layer that makes one stands out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from fcn_deploy.engine_files import passport_path, read_passport
from fcn_deploy.errors import UsageError
from fcn_deploy.onnx_file import WEIGHTED, read_onnx
from fcn_deploy.verify.inputs import batches_of
from fcn_deploy.verify.result import Layer, Rung
from fcn_deploy.verify.weights import PREFIX
from fcn_deploy.verify.whole_images import Images

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


def bisected(
    rungs: Sequence[Rung], files: Sequence[Path], checkpoint: Path, images: Images
) -> tuple[Rung, ...]:
    """The rungs, those that failed with the layers where their errors begin.

    Args:
        rungs: Of a verification.
        files: Their artifacts; a plan's ONNX file is looked into, if it lies beside it.
        checkpoint: What they were compared with.
        images: To cut crops out of.

    Raises:
        UsageError: The reference is no checkpoint.
        MissingExtraError: PyTorch is not installed.
    """
    if checkpoint.suffix != ".safetensors":
        raise UsageError("--bisect looks into the layers of a checkpoint.", "Pass --against FILE.")
    failed = [rung for rung in rungs if rung.passed is False and rung.file is not None]
    if not failed:
        return tuple(rungs)
    layers = open_reference(checkpoint)
    side = 4 * layers.spec.output_stride
    crops = next(batches_of(images.files(), [(side, side + layers.spec.output_stride)], [2])).crops
    by_name = {path.name: path for path in files}
    found = []
    for rung in rungs:
        graph = _graph_of(by_name[rung.file]) if rung in failed and rung.file else None
        if graph is None:
            found.append(rung)
            continue
        model = read_onnx(graph)
        errors = errors_by_layer(model.proto, layers, crops)
        said = first_deviation(errors, model.precision)
        inside = (
            "" if graph.name == rung.file else f" (of {graph.name}: plans cannot be looked into)"
        )
        said = f"{said or 'No layer stands out.'}{inside}"
        found.append(
            replace(rung, layers=errors, diagnosis=" ".join(filter(None, (rung.diagnosis, said))))
        )
    return tuple(found)


def _graph_of(artifact: Path) -> Path | None:
    """The ONNX file of an artifact, if it lies beside it."""
    if artifact.suffix == ".onnx":
        return artifact
    if not passport_path(artifact).is_file():
        return None
    source = artifact.with_name(read_passport(artifact).source)
    return source if source.is_file() else None


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
