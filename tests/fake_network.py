"""The network in a FAKE plan: its tensors, their shapes, and ONNX Runtime that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from fake_plan import Shape

_LARGE = 1024
"""Elements from which on a constant counts as weights, of which shapes need only the shape."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output.

    Attributes:
        dtype: Of its elements.
        shape: -1 where it depends on the input.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    is_input: bool


class Network:
    """An ONNX model.

    Raises:
        ValueError: The bytes are none.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        try:
            self._proto = onnx.load_from_string(content)
        except Exception as error:  # protobuf's own, which has no public name
            raise ValueError("this is no ONNX file") from error
        graph = self._proto.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [_tensor(one, is_input=True) for one in graph.input if one.name not in constants]
        outputs = [_tensor(one, is_input=False) for one in graph.output]
        self.tensors = {tensor.name: tensor for tensor in (*inputs, *outputs)}
        self.inputs = [tensor.name for tensor in inputs]
        self.outputs = [tensor.name for tensor in outputs]
        self.layers = list(graph.node)
        self._shapes: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}

    @cached_property
    def _skeleton(self) -> ModelProto:
        """The graph without its weights, so that shapes are quick to infer."""
        skeleton = ModelProto()
        skeleton.CopyFrom(self._proto)
        del skeleton.graph.initializer[:]
        for tensor in self._proto.graph.initializer:
            if int(np.prod(tensor.dims)) < _LARGE:
                skeleton.graph.initializer.append(tensor)
            else:
                shape = list(tensor.dims)
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
                skeleton.graph.input.append(info)
        del skeleton.graph.value_info[:]
        return skeleton

    @cached_property
    def formats(self) -> dict[str, str]:
        """Formats of all tensors, such as ``Row major linear FP16 format``."""
        graph = onnx.shape_inference.infer_shapes(self._skeleton).graph
        values = (*graph.input, *graph.output, *graph.value_info)
        kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        names = {name: TensorProto.DataType.Name(kind) for name, kind in kinds.items()}
        short = {"FLOAT": "FP32", "FLOAT16": "FP16"}
        return {
            name: f"Row major linear {short.get(kind, kind)} format" for name, kind in names.items()
        }

    def output_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the outputs, from those of all inputs."""
        key = tuple(sorted(inputs.items()))
        if key not in self._shapes:
            model = ModelProto()
            model.CopyFrom(self._skeleton)
            for value in model.graph.input:
                if value.name in inputs:
                    _set_shape(value, inputs[value.name])
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
            graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
            found = {value.name: _shape(value) for value in graph.output}
            assert all(-1 not in shape for shape in found.values()), f"not inferred: {found}"
            self._shapes[key] = found
        return self._shapes[key]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs, on the CPU."""
        results = _session(self._content).run(self.outputs, dict(feeds))
        return dict(zip(self.outputs, results, strict=True))


@lru_cache(maxsize=8)
def _session(content: bytes) -> Any:
    """A session for a model; tests load the same plan again and again."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _tensor(value: ValueInfoProto, *, is_input: bool) -> Tensor:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return Tensor(value.name, dtype, _shape(value), is_input)


def _shape(value: ValueInfoProto) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)


def _set_shape(value: ValueInfoProto, shape: Shape) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
