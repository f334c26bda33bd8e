"""Explicit Q/DQ pairs in an exported graph: what makes INT8 of it, in the form each runtime likes.

Quantised are the convolutions of the body and the additions between them: nearly all of the
arithmetic. The head (scores, skips, upsampling) stays in float32: it is cheap, and what it rounds
is the answer.

Source: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (Jacob et al. 2018); the rules of the two runtimes are in docs/design.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx.checker
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_file import WEIGHTED

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest value of tensors, by name."""

BODY = "network.body."
"""What the names of the body's weights begin with."""


@dataclass(frozen=True)
class Form:
    """What a runtime wants.

    Attributes:
        asymmetric: Activations are uint8 with a zero point, which has twice the resolution behind
            a ReLU, and lets ONNX Runtime drop the ReLU; else int8 around zero, which is all that
            TensorRT takes.
        bias: Biases are int32 through a DequantizeLinear: only then does ONNX Runtime fuse the
            convolution; TensorRT refuses that.
        weight_steps: Weights are integers from minus this to this. Seven bits for ONNX Runtime: on
            CPUs without VNNI its kernels add two products in 16 bits, which eight would overflow
            without a word.
        outputs: Also quantise what leaves the quantised part: without it ONNX Runtime computes the
            last convolutions in float32.
    """

    asymmetric: bool
    bias: bool
    weight_steps: int
    outputs: bool


FORMS = {
    "ort": Form(asymmetric=True, bias=True, weight_steps=63, outputs=True),
    "tensorrt": Form(asymmetric=False, bias=False, weight_steps=127, outputs=False),
}


def body_layers(proto: ModelProto) -> tuple[str, ...]:
    """Names of the layers that can be quantised, such as ``body.4.0.conv1``, in order.

    Raises:
        ModelError: There is none: not one of our networks, or already quantised.
    """
    names = tuple(
        node.input[1].removeprefix("network.").removesuffix(".weight")
        for node in proto.graph.node
        if _in_body(node)
    )
    if not names:
        raise ModelError(
            "This graph has no body of our networks in float32 to quantise.",
            "Export INT8 from a checkpoint of fcn-deploy train.",
        )
    return names


def tensors_to_observe(proto: ModelProto) -> tuple[str, ...]:
    """Tensors whose ranges :func:`quantised` needs: all that enters or leaves body layers."""
    graph = _Graph(proto)
    wanted: dict[str, None] = {}
    for node in proto.graph.node:
        if _in_body(node) or graph.is_body_addition(node):
            wanted.update(dict.fromkeys(_data_inputs(node)))
            wanted[graph.end(node)] = None
    return tuple(wanted)


def quantised(
    proto: ModelProto, ranges: Ranges, form: Form, kept: Collection[str] = ()
) -> ModelProto:
    """The same model with Q/DQ pairs around body layers.

    Args:
        proto: As exported, in float32.
        ranges: Of :func:`tensors_to_observe`.
        form: For which runtime.
        kept: Names of layers that stay in float32.

    Raises:
        ModelError: The graph has no such body.
    """
    body_layers(proto)
    return _Quantiser(proto, ranges, form, frozenset(kept)).result()


def _in_body(node: NodeProto) -> bool:
    return node.op_type == "Conv" and node.input[1].startswith(BODY)


def _data_inputs(node: NodeProto) -> list[str]:
    return list(node.input[:1] if node.op_type == "Conv" else node.input)


class _Graph:
    """Who reads what."""

    def __init__(self, proto: ModelProto) -> None:
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def end(self, node: NodeProto) -> str:
        """The output of a node, or of the ReLU that alone reads it and is fused with it."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            return str(readers[0].output[0])
        return str(node.output[0])

    def layers_above(self, node: NodeProto) -> Iterator[NodeProto]:
        """The convolutions of the body that feed an addition, through ReLUs and additions."""
        waiting = list(node.input)
        while waiting:
            producer = self.producers.get(waiting.pop())
            if producer is None:
                continue
            if _in_body(producer):
                yield producer
            elif producer.op_type in ("Relu", "MaxPool") and len(producer.input) == 1:
                waiting.append(producer.input[0])

    def is_body_addition(self, node: NodeProto) -> bool:
        return node.op_type == "Add" and any(True for _ in self.layers_above(node))


class _Quantiser:
    def __init__(self, proto: ModelProto, ranges: Ranges, form: Form, kept: frozenset[str]) -> None:
        self._ranges, self._form = ranges, form
        self._model = ModelProto()
        self._model.CopyFrom(proto)
        self._graph = _Graph(self._model)
        self._weights = {w.name: w for w in self._model.graph.initializer}
        self._kept = {f"network.{name}.weight" for name in kept}
        self._constants: list[TensorProto] = []
        chosen = [node for node in self._model.graph.node if self._is_chosen(node)]
        self._chosen = {node.output[0] for node in chosen}
        self._pairs: dict[str, tuple[float, int]] = {}  # scale, zero point
        for node in chosen:
            ends = [self._graph.end(node)] if form.outputs else []
            for name in (*_data_inputs(node), *ends):
                self._pairs[name] = self._scale(name)
        self._follow_pooling()

    def _is_chosen(self, node: NodeProto) -> bool:
        if _in_body(node):
            return node.input[1] not in self._kept
        if not self._graph.is_body_addition(node):
            return False
        return all(above.input[1] not in self._kept for above in self._graph.layers_above(node))

    def _follow_pooling(self) -> None:
        """Give what enters a maximum pooling the scale of what leaves it: it moves values only."""
        for node in self._model.graph.node:
            if node.op_type != "MaxPool" or node.output[0] not in self._pairs:
                continue
            if self._form.outputs or node.input[0] in self._pairs:
                self._pairs[node.input[0]] = self._pairs[node.output[0]]

    def _scale(self, name: str) -> tuple[float, int]:
        low, high = self._ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact: borders are padded with it
        if not self._form.asymmetric:
            return max(-low, high, 1e-9) / 127, 0
        scale = max(high - low, 1e-9) / 255
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))

    def result(self) -> ModelProto:
        nodes: list[NodeProto] = []
        written: set[str] = set()
        for node in self._model.graph.node:
            for name in _data_inputs(node) if node.output[0] in self._chosen else ():
                if name in self._pairs and name not in written and name not in self._made_here():
                    nodes += self._pair(name)
                    written.add(name)
            self._read_rounded(node, written)
            if node.output[0] in self._chosen and node.op_type == "Conv":
                nodes += self._weights_of(node)
            nodes.append(node)
            for name in node.output:
                if name in self._pairs and name not in written:
                    nodes += self._pair(name)
                    written.add(name)
        graph = self._model.graph
        used = {name for node in nodes for name in node.input}
        constants = [w for w in graph.initializer if w.name in used] + self._constants
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        onnx.checker.check_model(self._model, full_check=True)
        return self._model

    def _made_here(self) -> set[str]:
        return set(self._graph.producers)

    def _read_rounded(self, node: NodeProto, written: set[str]) -> None:
        """Let a node read the rounded tensor, so that whoever makes it makes integers alone."""
        keeps = node.op_type == "Conv" and node.input[1] in self._kept
        for position, name in enumerate(node.input):
            rounded = name in written and (
                node.output[0] in self._chosen or self._form.outputs or keeps
            )
            if rounded:
                node.input[position] = f"{name}_dq"

    def _pair(self, name: str) -> list[NodeProto]:
        scale, zero = self._pairs[name]
        kind: type[np.integer] = np.uint8 if self._form.asymmetric else np.int8
        self._constant(f"{name}_scale", np.float32(scale))
        self._constant(f"{name}_zero", kind(zero))
        constants = [f"{name}_scale", f"{name}_zero"]
        return [
            helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_q"], name=f"q_{name}"),
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", *constants], [f"{name}_dq"], name=f"dq_{name}"
            ),
        ]

    def _weights_of(self, node: NodeProto) -> list[NodeProto]:
        """Weights as int8, a scale for each output channel; biases as int32 where wanted."""
        weight = node.input[1]
        values = numpy_helper.to_array(self._weights[weight])
        steps = self._form.weight_steps
        largest = np.abs(values).reshape(len(values), -1).max(1)
        scale = (np.maximum(largest, 1e-9) / steps).astype(np.float32)
        integers = np.rint(values / scale.reshape(-1, 1, 1, 1)).clip(-steps, steps).astype(np.int8)
        nodes = [self._stored(weight, integers, scale, np.int8)]
        node.input[1] = f"{weight}_dq"
        if self._form.bias and len(node.input) > 2:
            bias = node.input[2]
            entering = self._pairs[node.input[0].removesuffix("_dq")][0]
            fine = (scale * entering).astype(np.float32)
            whole = np.rint(numpy_helper.to_array(self._weights[bias]) / fine.astype(np.float64))
            bound = 2**31 - 1
            nodes.append(
                self._stored(bias, whole.clip(-bound, bound).astype(np.int32), fine, np.int32)
            )
            node.input[2] = f"{bias}_dq"
        return nodes

    def _stored(
        self,
        name: str,
        integers: NDArray[np.integer],
        scale: NDArray[np.float32],
        kind: type,
    ) -> NodeProto:
        self._constant(f"{name}_quantized", integers)
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero", np.zeros(len(scale), kind))
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero"]
        return helper.make_node(
            "DequantizeLinear", inputs, [f"{name}_dq"], name=f"dq_{name}", axis=0
        )

    def _constant(self, name: str, value: object) -> None:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))


def share_quantised(proto: ModelProto) -> float:
    """Share of layers with weights that are quantised, in [0, 1]; 0 for other files."""
    made = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in proto.graph.node if node.op_type in WEIGHTED]
    return sum(node.input[1] in made for node in layers) / len(layers) if layers else 0.0
