"""Networks of two layers in the form of exported files: real ONNX, and quick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.checker
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fakes import bilinear
from fcn_deploy.spec import INPUT, OUTPUTS, SPEC_KEY, ModelSpec, voc_palette

Pixels = NDArray[np.uint8]


def spec_of(classes: int, stride: int) -> ModelSpec:
    names = tuple(f"class{label}" for label in range(classes))
    step = stride if 32 % stride else 32
    return ModelSpec(names, voc_palette(classes), output_stride=step, score_stride=stride)


def small_model(
    seed: int = 0,
    *,
    classes: int = 3,
    stride: int = 8,
    learned: float = 0.05,
    bias: bool = True,
    group: int = 1,
    kernel: int | None = None,
    dilation: int = 1,
    output_padding: int = 0,
    scores: str = "scores",
    between: str | None = None,
) -> ModelProto:
    """A network of two layers as release 0.1.0 exported them: averages, scores, ConvTranspose.

    With the default arguments it fits the matrix form. All other upsampling layers here make
    ``stride`` times the size of the scores, too, so that they are models like any other.
    """
    random = np.random.default_rng(seed)
    size = 2 * stride if kernel is None else kernel
    make = helper.make_node
    shape = (classes, classes // group, size, size)
    weights = learned * random.standard_normal(shape)
    if size == 2 * stride and group == 1:
        weights += bilinear(classes, stride)
    else:
        weights += 0.3 * random.standard_normal(shape)
    reach = dilation * (size - 1) + 1 + output_padding - stride  # beyond s pixels a cell
    pads = [reach // 2, reach // 2, reach - reach // 2, reach - reach // 2]
    values = {
        "weight": random.standard_normal((classes, 3, 3, 3)) / 60,
        "weight_bias": random.standard_normal(classes),
        "kernel": weights,
        "kernel_bias": random.standard_normal(classes),
    }
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()]
    inputs = ["kernel", "kernel_bias"] if bias else ["kernel"]
    cell = [stride, stride]
    nodes = [
        make("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        make("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        make("AveragePool", ["planes"], ["cells"], kernel_shape=cell, strides=cell),
        make("Conv", ["cells", "weight", "weight_bias"], [scores], pads=[1, 1, 1, 1]),
    ]
    if between:
        nodes.append(make(between, [scores], ["changed"]))
    nodes += [
        make(
            "ConvTranspose",
            ["changed" if between else scores, *inputs],
            ["logits"],
            strides=cell,
            pads=pads,
            group=group,
            dilations=[dilation, dilation],
            output_padding=[output_padding, output_padding],
        ),
        make("ArgMax", ["logits"], ["winners"], axis=1, keepdims=0),
        make("Cast", ["winners"], ["winners_float"], to=TensorProto.FLOAT),
        make("Cast", ["winners_float"], ["labels"], to=TensorProto.UINT8),
    ]
    info, rows, columns = helper.make_tensor_value_info, "32*rows", "32*columns"
    outputs = [
        info("labels", TensorProto.UINT8, ["batch", rows, columns]),
        info("logits", TensorProto.FLOAT, ["batch", classes, rows, columns]),
        info(scores, TensorProto.FLOAT, ["batch", classes, "score_rows", "score_columns"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [info(INPUT, TensorProto.UINT8, ["batch", rows, columns, 3])],
        [output for output in outputs if output.name in OUTPUTS],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {SPEC_KEY: spec_of(classes, stride).to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def resized_model(
    seed: int = 0,
    *,
    classes: int = 3,
    stride: int = 8,
    constant: bool = True,
    how: Mapping[str, Any] = {},
) -> ModelProto:
    """The same network with a resize at its end: bilinear, as PyTorch writes it.

    Args:
        constant: Whether the graph says how many times, or computes the size of the image.
        how: Attributes of the node that are different.
    """
    model = small_model(seed, classes=classes, stride=stride)
    graph = model.graph
    place = next(i for i, node in enumerate(graph.node) if node.op_type == "ConvTranspose")
    settings: dict[str, Any] = {"mode": "linear", **how}
    scales = numpy_helper.from_array(np.array([1, 1, stride, stride], np.float32), "scales")
    nodes = [helper.make_node("Resize", ["scores", "", "scales"], ["logits"], **settings)]
    if not constant:
        nodes = [
            helper.make_node("Shape", ["scores"], ["outer"], end=2),
            helper.make_node("Shape", [INPUT], ["inner"], start=1, end=3),
            helper.make_node("Concat", ["outer", "inner"], ["size"], axis=0),
            helper.make_node("Resize", ["scores", "", "", "size"], ["logits"], **settings),
        ]
    others = [*graph.node[:place], *nodes, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(others)
    weights = [w for w in graph.initializer if not w.name.startswith("kernel")]
    del graph.initializer[:]
    graph.initializer.extend([*weights, scales] if constant else weights)
    onnx.checker.check_model(model, full_check=True)
    return model


def photos(seed: int, *shape: int) -> Pixels:
    """Blobs, as photos have them; noise would average to one gray."""
    random = np.random.default_rng(seed)
    batch, height, width = shape
    coarse = random.integers(0, 256, (batch, -(-height // 16), -(-width // 16), 3), np.uint8)
    return coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
