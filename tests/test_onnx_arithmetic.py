"""Multiply-adds of a graph, against numbers that were worked out by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import pytest
from onnx import ModelProto, TensorProto, helper

from fake_engines import model_of
from fcn_deploy.onnx_arithmetic import fp16_share, multiply_adds
from fcn_deploy.onnx_file import keep_outputs, read_onnx, to_half
from fcn_deploy.onnx_parts import parts_of
from fcn_deploy.recipe import Shapes
from small_models import small_model


def weight(name: str, *shape: int, half: bool = False) -> TensorProto:
    kind = np.float16 if half else np.float32
    return onnx.numpy_helper.from_array(np.ones(shape, kind), name)


def graph_of(*, half: tuple[str, ...] = ()) -> ModelProto:
    """Four layers with weights, one without, each of its own kind; casts between their types."""
    make = helper.make_node
    layers = [
        make("Conv", ["x", "wide"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("Conv", ["a", "grouped"], ["b"], group=2),
        make("ConvTranspose", ["b", "up"], ["c"], strides=[2, 2]),
        make("MatMul", ["c", "matrix"], ["d"]),
        make("MatMul", ["d", "e"], ["f"]),  # of two tensors: it has no weights
    ]
    sizes = {"wide": (4, 3, 3, 3), "grouped": (6, 2, 1, 1), "up": (6, 5, 4, 4), "matrix": (34, 7)}
    nodes = [
        make("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        make("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
    ]
    for layer in layers:
        if layer.input[1] in half:
            source, target = layer.input[0], layer.output[0]
            layer.input[0], layer.output[0] = f"{source}_in", f"{target}_out"
            nodes.append(make("Cast", [source], [f"{source}_in"], to=TensorProto.FLOAT16))
            nodes += [layer, make("Cast", [f"{target}_out"], [target], to=TensorProto.FLOAT)]
            continue
        if layer.output[0] == "f":
            nodes.append(make("Transpose", ["d"], ["e"], perm=[0, 1, 3, 2]))
        nodes.append(layer)
    info = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "four",
            [info("image", TensorProto.UINT8, ["batch", "rows", "columns", 3])],
            [info("f", TensorProto.FLOAT, ["batch", 5, "more", "others"])],
            [weight(name, *shape, half=name in half) for name, shape in sizes.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


# Of an image of 16x32: a is 4x8x16, b 6x8x16, c 5x18x34, d 5x18x7.
BY_HAND = {
    "wide": 4 * 8 * 16 * (3 * 3 * 3),
    "grouped": 6 * 8 * 16 * (2 * 1 * 1),
    "up": 6 * 8 * 16 * (5 * 4 * 4),
    "matrix": 5 * 18 * 7 * 34,
}


def counted(proto: ModelProto, hw: tuple[int, int]) -> dict[str, int]:
    return {node.input[1]: count for node, count in multiply_adds(proto, hw)}


def test_every_kind_of_layer_is_counted_as_by_hand() -> None:
    assert counted(graph_of(), (16, 32)) == BY_HAND
    assert counted(graph_of(half=("up", "wide")), (16, 32)) == BY_HAND


@pytest.mark.parametrize("half", [(), ("wide",), ("up", "matrix"), tuple(BY_HAND)])
def test_the_share_is_of_arithmetic_not_of_layers(half: tuple[str, ...]) -> None:
    expected = sum(BY_HAND[name] for name in half) / sum(BY_HAND.values())
    assert fp16_share(graph_of(half=half), (16, 32)) == expected


def test_a_graph_that_multiplies_nothing_has_no_share() -> None:
    graph = keep_outputs(small_model(), ("scores",))
    del graph.graph.node[3:]  # without the convolution
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("cells", TensorProto.FLOAT, None))
    assert fp16_share(graph, (64, 64)) == 0


def test_a_convolution_agrees_with_counting_one_by_one() -> None:
    # Its output has a pixel for each place of the kernel, and each is made of all channels.
    rows, columns, kernel, stride, pad = 9, 12, 3, 2, 1
    count = 0
    tops = range(-pad, rows + pad - kernel + 1, stride)
    lefts = range(-pad, columns + pad - kernel + 1, stride)
    for _ in product(tops, lefts, range(4), range(kernel), range(kernel), range(3)):
        count += 1
    assert counted(graph_of(), (rows, columns))["wide"] == count


RESNET18 = [(3, 64, 7, 2), *[(64, 64, 3, 4)] * 4]
"""Convolutions of the body: channels in, out, side of the kernel, and pixels to a cell."""
for _channels, _step in ((128, 8), (256, 16), (512, 32)):
    RESNET18 += [(_channels // 2, _channels, 3, _step), (_channels // 2, _channels, 1, _step)]
    RESNET18 += [(_channels, _channels, 3, _step)] * 3


@pytest.mark.parametrize("hw", [(64, 64), (96, 160)])
def test_the_real_network_is_counted_as_by_hand(toy_onnx: Path, hw: tuple[int, int]) -> None:
    model = read_onnx(toy_onnx)
    whole, trunk, head = (part.proto for part in parts_of(model, (Shapes(),)))
    height, width = hw
    body = sum(a * b * k * k * (height // s) * (width // s) for a, b, k, s in RESNET18)
    coarse, fine = (height // 32) * (width // 32), (height // 16) * (width // 16)
    scores = coarse * 512 * 3 + fine * 256 * 3 + coarse * 3 * 3 * 4 * 4  # FCN-16s of 3 classes
    around = (height // 16 + 1) * (width // 16 + 1)  # windows: one more than cells
    upsampling = around * (4 * 3 + 1) * (3 * 16 * 16)
    for proto, size, expected in (
        (trunk, hw, body + scores),
        (whole, hw, body + scores + upsampling),
        (head, (height // 16 + 2, width // 16 + 2), upsampling),
    ):
        assert sum(counted(proto, size).values()) == expected
    assert len(multiply_adds(whole, hw)) == 24
    assert fp16_share(to_half(model.proto), hw) == 1
    assert fp16_share(model.proto, hw) == 0


def test_one_layer_left_in_float32_costs_its_part(toy_onnx: Path) -> None:
    model = to_half(read_onnx(toy_onnx).proto)
    node, missing = max(multiply_adds(model, (64, 64)), key=lambda entry: entry[1])
    total = sum(count for _, count in multiply_adds(model, (64, 64)))
    for kept in model.graph.initializer:
        if kept.name in node.input[1:]:
            values = onnx.numpy_helper.to_array(kept).astype(np.float32)
            kept.CopyFrom(onnx.numpy_helper.from_array(values, kept.name))
    source, target = node.input[0], node.output[0]
    position = list(model.graph.node).index(node)
    node.input[0], node.output[0] = "up", "down"
    down = helper.make_node("Cast", ["down"], [target], to=TensorProto.FLOAT16)
    model.graph.node.insert(position + 1, down)
    up = helper.make_node("Cast", [source], ["up"], to=TensorProto.FLOAT)
    model.graph.node.insert(position, up)
    assert fp16_share(model, (64, 64)) == pytest.approx(1 - missing / total)


def test_only_what_the_model_computes_in_counts() -> None:
    model = model_of(small_model(classes=4, stride=8))
    whole, _, head = parts_of(model, (Shapes(),))
    cells = (64 // 8) ** 2
    expected = {"weight": cells * 4 * 3 * 9, "kernel": cells * 4 * 4 * 16 * 16}
    assert counted(whole.proto, (64, 64)) == expected
    assert sum(counted(head.proto, (5, 9)).values()) == 4 * 8 * (4 * 4 + 1) * (4 * 8 * 8)
