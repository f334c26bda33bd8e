"""The receptive field against what networks really look at: lit pixels, gradients.

Weights are positive throughout, so that nothing cancels: what a score depends on shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from torch import nn

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_file import to_half
from fcn_deploy.reach import Dependence, Reach, halo_for, require_stride
from fcn_deploy.receptive import dependence, reach_of_scores
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.network import FCN, SCORE_STRIDE, build_network
from fcn_deploy.training.reach import reach_of_network
from fcn_deploy.training.to_onnx import _to_proto

HEADS = ("fcn32s", "fcn16s", "fcn8s")
SIDE = 96
REFUSALS = (Fail, InvalidArgument, RuntimeException)
"""What ONNX Runtime raises."""


@dataclass
class Graph:
    """A graph in the making: layers follow each other, with positive random weights."""

    rng: np.random.Generator
    channels: int = 1
    hw: tuple[int, int] = (SIDE, SIDE)
    last: str = "image"
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        self.last = f"{op}_{len(self.nodes)}"
        node = onnx.helper.make_node(op, inputs, [self.last], self.last, **attributes)
        self.nodes.append(node)
        return self.last

    def constant(self, values: NDArray[np.float64]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def slide(self, op: str, kernel_hw: tuple[int, int], **attributes: Any) -> str:
        """A convolution or a pooling."""
        weights = []
        if op.startswith("Conv"):
            drawn = self.rng.uniform(0.5, 1, (self.channels, self.channels, *kernel_hw))
            weights = [self.constant(drawn / drawn[0].size)]
        return self.add(op, self.last, *weights, kernel_shape=kernel_hw, **attributes)

    def settle(self, kept: int, last: str) -> None:
        """Undo what follows a layer if it is nothing, or nothing that ONNX Runtime takes."""
        try:
            hw = outputs_of(self.model(), np.zeros((1, SIDE, SIDE, self.channels), np.uint8)).shape
        except REFUSALS:
            hw = (0, 0)
        if min(hw[-2:]) >= 12 and max(hw[-2:]) <= 2 * SIDE:
            self.hw = (hw[-2], hw[-1])
        else:
            del self.nodes[kept:]
            self.last = last

    def model(self) -> ModelProto:
        end = onnx.helper.make_node("Identity", [self.last], ["scores"])
        image = onnx.helper.make_tensor_value_info(
            "image", TensorProto.UINT8, ["n", "rows", "columns", self.channels]
        )
        scores = onnx.helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph([*self.nodes, end], "drawn", [image], [scores], self.weights)
        opset = onnx.helper.make_opsetid("", 19)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)


def begun(seed: int = 0, transpose_first: bool = False, channels: int = 1) -> Graph:
    """A graph whose image is normalised and NCHW, by one of the two ways."""
    graph = Graph(np.random.default_rng(seed), channels)
    order = ("Transpose", "Cast", "Mul") if transpose_first else ("Cast", "Mul", "Transpose")
    for op in order:
        if op == "Transpose":
            graph.add(op, graph.last, perm=(0, 3, 1, 2))
        elif op == "Cast":
            graph.add(op, graph.last, to=TensorProto.FLOAT)
        else:
            shape = (1, channels, 1, 1) if transpose_first else (1, 1, 1, channels)
            graph.add(op, graph.last, graph.constant(np.full(shape, 1 / 255)))
    return graph


def outputs_of(proto: ModelProto, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return cast("NDArray[np.float32]", session.run(["scores"], {"image": image})[0])


def seen(proto: ModelProto, axis: int) -> NDArray[np.bool_]:
    """Which (pixel, score) depend on each other along an axis: one image for each line lit."""
    lines = np.zeros((SIDE, SIDE, SIDE, 1), np.uint8)
    for line in range(SIDE):
        lines[(line, line) if axis == 0 else (line, slice(None), line)] = 255
    lit = outputs_of(proto, lines) > 0
    return cast("NDArray[np.bool_]", lit.any(axis=(1, 3 - axis)))


sizes = st.integers(1, 4)
pairs = st.tuples(sizes, sizes)


def draw_window(draw: st.DrawFn, graph: Graph) -> None:
    """Any convolution or pooling."""
    op = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    kernel, strides = draw(pairs), draw(pairs)
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attributes: dict[str, Any] = {"strides": strides}
    if mode == "NOTSET":
        # Pools refuse padding that is as wide as the kernel.
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    else:
        attributes["auto_pad"] = mode
    if mode.startswith("SAME"):
        # What it means depends on the size; we speak of those that crops have.
        kinds = zip(graph.hw, kernel, strides, strict=True)
        fits = [size % stride == 0 and stride <= k for size, k, stride in kinds]
        attributes["strides"] = strides if all(fits) else (1, 1)
    else:
        attributes["dilations"] = draw(pairs)
        if op != "Conv":
            attributes["ceil_mode"] = draw(st.integers(0, 1))
    graph.slide(op, kernel, **attributes)


def draw_transposed(draw: st.DrawFn, graph: Graph) -> None:
    """Any transposed convolution that leaves no gaps, and cuts off padding alone."""
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    spare = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    extra = [draw(st.integers(0, stride - 1)) for stride in strides]
    begin = [draw(st.integers(0, room)) for room in spare]
    end = [draw(st.integers(0, room + e)) for room, e in zip(spare, extra, strict=True)]
    kernel = (strides[0] + spare[0], strides[1] + spare[1])
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attributes: dict[str, Any] = {"strides": strides, "auto_pad": mode}
    if mode == "NOTSET":
        attributes |= {"pads": [*begin, *end], "output_padding": extra}
    graph.slide("ConvTranspose", kernel, **attributes)


def draw_skip(draw: st.DrawFn, graph: Graph) -> None:
    """Two ways that meet again: of equal stride, or down and up by a transposed convolution."""
    start = graph.last
    size = draw(st.sampled_from([1, 3, 5]))
    if graph.hw[0] % 2 == graph.hw[1] % 2 == 0 and draw(st.booleans()):
        graph.slide("Conv", (size, size), strides=(2, 2), pads=[size // 2] * 4)
        graph.slide("ConvTranspose", (4, 4), strides=(2, 2), pads=(1, 1, 1, 1))
    else:
        graph.slide("Conv", (size, size), pads=[size // 2] * 4)
        graph.add("Relu", graph.last)
    if draw(st.booleans()):
        graph.add("Add", graph.last, start)
    else:
        graph.add("Concat", start, graph.last, axis=draw(st.sampled_from([1, -3])))
        mixing = graph.constant(np.full((graph.channels, 2 * graph.channels, 1, 1), 0.5))
        graph.add("Conv", graph.last, mixing)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    graph = begun(draw(st.integers(0, 99)), draw(st.booleans()))
    kinds = [draw_window, draw_window, draw_transposed, draw_skip]
    for layer in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5)):
        kept, last = len(graph.nodes), graph.last
        layer(draw, graph)
        graph.settle(kept, last)
    return graph


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_drawn_graphs_look_exactly_as_far_as_said(graph: Graph) -> None:
    proto = graph.model()
    for axis, said in enumerate(dependence(proto, "scores")):
        depends = seen(proto, axis)
        assert depends.shape[1] == graph.hw[axis]
        for score in range(depends.shape[1]):
            first, last = said.range_of([score])
            pixels = np.flatnonzero(depends[:, score])
            if first >= 0 and last < SIDE:
                assert (pixels[0], pixels[-1]) == (first, last)
            else:  # at the border: there, padding is seen instead
                assert all(first <= pixel <= last for pixel in pixels)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.integers(0, 40), st.integers(0, 40))
def test_what_looks_inside_a_crop_only_is_as_in_the_whole(
    graph: Graph, top: int, bottom: int
) -> None:
    """Also padding between the layers of a crop is seen only by scores that look out of it."""
    proto = graph.model()
    rows, _ = dependence(proto, "scores")
    top = -(-top // rows.advance) * rows.advance
    bottom = SIDE - bottom // rows.advance * rows.advance
    assume(bottom - top >= 24)
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 1), np.uint8)
    whole = outputs_of(proto, image)[0, 0]
    try:
        crop = outputs_of(proto, image[:, top:bottom])[0, 0]
    except REFUSALS:  # nothing is left of the crop, or two ways do not meet
        reject()
    first = top // rows.advance * len(rows.first)
    for score in range(len(crop)):
        low, high = rows.range_of([score + first])
        if top <= low and high < bottom and score + first < len(whole):
            np.testing.assert_allclose(crop[score], whole[score + first], rtol=1e-5)


def test_the_bounds_of_what_a_file_may_ask_for() -> None:
    graph = begun()
    graph.slide("MaxPool", (3, 1 << 40))
    with pytest.raises(ModelError, match="out of bounds"):
        reach_of_scores(graph.model(), 1)
    graph = begun()
    for _ in range(4):
        graph.slide("ConvTranspose", (900, 1), strides=(900, 1))
    with pytest.raises(ModelError, match="it has a size of 810000"):
        reach_of_scores(graph.model(), 1)


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("GlobalAveragePool", {}, "it mixes positions"),
        ("Softmax", {"axis": -1}, "it mixes positions"),
        ("Transpose", {"perm": (0, 1, 3, 2)}, "it moves more than the channels"),
        ("Transpose", {}, "it moves more than the channels"),
        ("Concat", {"axis": 2}, "it joins positions, not channels"),
        ("MaxPool", {"kernel_shape": (3,)}, "its kernel is not one of two fixed sizes"),
        ("MaxPool", {"kernel_shape": 3}, "has no len"),
        (
            "MaxPool",
            {"kernel_shape": (1, 1), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
            "stride is larger",
        ),
    ],
)
def test_nodes_of_unknown_reach_are_named(op: str, attributes: dict[str, Any], reason: str) -> None:
    graph = begun()
    graph.add(op, graph.last, **attributes)
    with pytest.raises(ModelError, match=reason) as raised:
        reach_of_scores(graph.model(), 1)
    assert f"{op}_3 ({op})" in raised.value.problem
    assert "--halo N" in raised.value.remedy


def test_constants_that_differ_from_position_to_position_are_refused() -> None:
    graph = begun()
    graph.add("Add", graph.last, graph.constant(np.zeros((1, 1, SIDE, 1))))
    with pytest.raises(ModelError, match="weight_1 differs from position to position"):
        reach_of_scores(graph.model(), 1)


@pytest.mark.parametrize(
    ("kernel", "pad", "reason"),
    [(2, 0, "some of its outputs see no input"), (3, 1, "it cuts off outputs that see no padding")],
)
def test_transposed_convolutions_that_no_halo_mends_are_refused(
    kernel: int, pad: int, reason: str
) -> None:
    graph = begun()
    graph.slide("ConvTranspose", (kernel, kernel), strides=(3, 3), pads=[pad] * 4)
    with pytest.raises(ModelError, match=reason):
        reach_of_scores(graph.model(), 1)


def test_strides_that_do_not_fit() -> None:
    graph = begun()
    start = graph.last
    graph.slide("MaxPool", (2, 2), strides=(2, 2))
    graph.add("Add", graph.last, start)
    with pytest.raises(ModelError, match="the strides 2 and 1"):
        reach_of_scores(graph.model(), 1)
    graph = begun()
    graph.slide("MaxPool", (2, 2), strides=(2, 2))
    with pytest.raises(ModelError, match="stride 2, and their description says 3"):
        reach_of_scores(graph.model(), 3)
    graph.nodes[-1].output[0] = "other"
    with pytest.raises(ModelError, match="no 'scores'"):
        reach_of_scores(onnx.helper.make_model(onnx.helper.make_graph(graph.nodes, "g", [], [])), 2)
    with pytest.raises(ModelError, match="2x2 pixels, which do not divide the output stride 33"):
        halo_for(Reach(Dependence((0,), (1,), 2), Dependence((0,), (1,), 2)), 2, 33)


def spec_of(head: str, backbone: str) -> ModelSpec:
    return ModelSpec(
        ("a", "b"), voc_palette(2), head=head, backbone=backbone, score_stride=SCORE_STRIDE[head]
    )


# Of rows and columns the same; before, after and the halo.
KNOWN = {
    ("fcn32s", "resnet18"): (217, 217, 256),
    ("fcn16s", "resnet18"): (249, 233, 256),
    ("fcn8s", "resnet18"): (265, 241, 256),
    ("fcn32s", "resnet34"): (449, 449, 512),
    ("fcn16s", "resnet34"): (481, 465, 512),
    ("fcn8s", "resnet34"): (497, 473, 512),
    ("fcn32s", "resnet50"): (213, 213, 256),
    ("fcn16s", "resnet50"): (245, 229, 256),
    ("fcn8s", "resnet50"): (261, 237, 256),
}


@pytest.mark.parametrize(("head", "backbone"), KNOWN)
def test_figures_of_the_shipped_networks(head: str, backbone: str) -> None:
    spec = spec_of(head, backbone)
    with torch.device("meta"):
        network = FCN(2, head=head, backbone=backbone)
    reach = reach_of_network(network, spec)
    halo = halo_for(reach, spec.score_stride, spec.output_stride)
    assert (reach.before, reach.after, halo) == KNOWN[head, backbone]


def test_graph_and_network_agree() -> None:
    spec = spec_of("fcn8s", "resnet18")
    proto = _to_proto(build_network(spec), spec, 18)
    # The scores of coarser heads are what is doubled.
    layers = [node.input[0] for node in proto.graph.node if "doublings" in "".join(node.input)]
    for head, name in zip(HEADS, (*layers, "scores"), strict=True):
        spec = spec_of(head, "resnet18")
        expected = reach_of_network(build_network(spec), spec)
        found = require_stride(Reach(*dependence(proto, name)), spec.score_stride)
        assert found == expected
    assert reach_of_scores(to_half(proto), 8) == reach_of_scores(proto, 8) == expected


def positive(network: FCN) -> FCN:
    """The same layers with weights of which none hides another, and means instead of maxima."""
    for position, layer in enumerate(network.body):
        if isinstance(layer, nn.MaxPool2d):
            sizes = (layer.kernel_size, layer.stride, layer.padding)
            network.body[position] = nn.AvgPool2d(*cast("tuple[int, int, int]", sizes))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        # What a layer adds up is 1 in sum: float32 can hold what is left at the edge, about 1e-20.
        batch_norm = 1.0 if name.endswith("weight") else 0.0
        parameter.fill_(1 / parameter[0].numel() if parameter.ndim == 4 else batch_norm)
    return network.eval()


def looked_at(output: torch.Tensor, image: torch.Tensor, line: int) -> tuple[int, int]:
    """First and last row of the image that a row of the output depends on."""
    (gradient,) = torch.autograd.grad(output[0, :, line].sum(), image, retain_graph=True)
    rows = gradient[0].abs().sum((0, 2)).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1])


@pytest.mark.parametrize(
    ("head", "backbone"), [*((head, "resnet18") for head in HEADS), ("fcn8s", "resnet50")]
)
def test_gradients_flow_exactly_as_far_as_said(head: str, backbone: str) -> None:
    spec = spec_of(head, backbone)
    network = positive(FCN(2, head=head, backbone=backbone))
    reach = reach_of_network(build_network(spec), spec)
    stride, halo = spec.score_stride, halo_for(reach, spec.score_stride, 32)
    image = torch.ones(1, 3, 640, 32, requires_grad=True)
    scores = network.scores(image)
    middle = 320 // stride
    for score in range(middle, middle + 32 // stride):
        assert looked_at(scores, image, score) == reach.rows.range_of([score])
    logits = network.upsample(scores)
    begin, end = 64, 576  # of a crop

    def looks_out(dropped: int) -> bool:
        before = looked_at(logits, image, begin + dropped)[0] < begin
        return before or looked_at(logits, image, end - 1 - dropped)[1] >= end

    assert not looks_out(halo)
    assert looks_out(halo - stride)
