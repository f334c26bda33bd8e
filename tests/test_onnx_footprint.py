"""Memory by the graph's shapes: the same with and without weights, and what TensorRT-RTX takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest
from onnx import ModelProto, numpy_helper

from fcn_deploy.onnx_file import keep_outputs, read_onnx, to_half
from fcn_deploy.onnx_footprint import (
    ENGINE_FIXED_BYTES,
    bytes_per_pixel,
    engine_bytes_per_pixel,
)
from small_models import small_model

MIB = 2**20


def alive_by_definition(proto: ModelProto) -> float:
    """Bytes by pixel of a graph without branches, weights and all: what a node reads and writes."""
    fixed = ModelProto()
    fixed.CopyFrom(proto)
    for dim, size in zip(
        fixed.graph.input[0].type.tensor_type.shape.dim, (1, 512, 512, 3), strict=True
    ):
        dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        sizes[value.name] = kind.itemsize * int(np.prod(shape))
    tensors = [{node.input[0], node.output[0]} for node in graph.node]
    return max(sum(sizes[name] for name in pair) for pair in tensors) / 512**2


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("half", [False, True])
def test_a_chain_takes_what_a_node_reads_and_writes(stride: int, half: bool) -> None:
    proto = small_model(stride=stride)
    proto = to_half(proto) if half else proto
    chain = keep_outputs(proto, ("scores",))
    # Twice, for what ONNX Runtime adds.
    assert bytes_per_pixel(proto) == 2 * alive_by_definition(chain)


@pytest.mark.parametrize(("half", "expected"), [(False, 160.0), (True, 80.0)])
def test_a_network_takes_as_much_as_ever(toy_onnx: Path, half: bool, expected: float) -> None:
    # Behind its first layer: 64 channels at half the size, and a quarter of that pooled; twice.
    proto = read_onnx(toy_onnx).proto
    assert bytes_per_pixel(to_half(proto) if half else proto) == expected


def test_the_graph_is_left_as_it_was(toy_onnx: Path) -> None:
    proto = read_onnx(toy_onnx).proto
    before = proto.SerializeToString(deterministic=True)
    bytes_per_pixel(proto)
    engine_bytes_per_pixel(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in other units")
def test_weights_are_not_copied(tmp_path: Path) -> None:
    proto = small_model(stride=32)
    (weight,) = [w for w in proto.graph.initializer if w.name == "weight"]
    # As wide as 64 MiB of weights: 3 channels in, 600,000 out; only shapes of it are looked at.
    weight.CopyFrom(numpy_helper.from_array(np.zeros((621_378, 3, 3, 3), np.float32), "weight"))
    path = tmp_path / "wide.onnx"
    path.write_bytes(proto.SerializeToString())
    code = (
        "import sys, resource, onnx; from fcn_deploy import onnx_footprint as f;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "proto = onnx.load(sys.argv[1]); before = peak();"
        "f.bytes_per_pixel(proto); f.engine_bytes_per_pixel(proto); print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) * 1024 < path.stat().st_size / 2


class Builder:
    """TensorRT-RTX, which builds without a GPU, and what it says of memory."""

    def __init__(self, proto: ModelProto) -> None:
        import tensorrt_rtx as trt

        class Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.messages: list[str] = []

            def log(self, _severity: Any, message: str) -> None:
                self.messages.append(message)

        self.trt, self.content, self.logger = trt, proto.SerializeToString(), Collector()

    def build(self, shape: tuple[int, int, int], workspace_bytes: int | None = None) -> int | None:
        """Bytes that an engine of one crop size takes for activations; ``None``: not built."""
        trt = self.trt
        builder = trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        assert parser.parse(self.content)
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("image", *[(*shape, 3)] * 3)
        config.add_optimization_profile(profile)
        if workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        self.logger.messages.clear()
        if builder.build_serialized_network(network, config) is None:
            assert any("OutOfMemory" in message for message in self.logger.messages)
            return None
        (said,) = [m for m in self.logger.messages if m.startswith("Total Activation Memory")]
        return int(said.split()[-2])


def reckoned(proto: ModelProto, shape: tuple[int, int, int]) -> float:
    batch, height, width = shape
    each = engine_bytes_per_pixel(proto, (height, width))
    return each * batch * height * width + ENGINE_FIXED_BYTES


@pytest.mark.parametrize("outputs", [("scores",), ("labels",), ("labels", "logits", "scores")])
@pytest.mark.parametrize("half", [True, False])
def test_an_engine_takes_what_was_reckoned(
    toy_onnx: Path, half: bool, outputs: tuple[str, ...]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    proto = read_onnx(toy_onnx).proto
    proto = keep_outputs(to_half(proto) if half else proto, outputs)
    builder = Builder(proto)
    for shape in ((1, 512, 512), (4, 512, 512), (16, 128, 128), (1, 1024, 2048)):
        taken, expected = builder.build(shape), reckoned(proto, shape)
        assert taken is not None
        assert 0.6 * expected < taken <= expected


def test_a_build_passes_with_the_workspace_that_was_reckoned(toy_onnx: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    shape = (4, 512, 512)
    proto = keep_outputs(to_half(read_onnx(toy_onnx).proto), ("scores",))
    builder, expected = Builder(proto), int(reckoned(proto, shape))
    assert builder.build(shape, expected) is not None
    low, high = 0, expected
    while high - low > MIB:
        middle = (low + high) // 2
        low, high = (low, middle) if builder.build(shape, middle) else (middle, high)
    # Held against the limit is what exceeds the size of the weights: alone it says too little.
    weights = sum(2 * int(np.prod(weight.dims)) for weight in proto.graph.initializer)
    assert 0.6 * expected < high + weights <= expected
