"""The exported file: its contract, its arithmetic, and what happens when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import pytest
import torch
from torch import nn

from fcn_deploy.backends.eager import open_eager
from fcn_deploy.backends.ort import open_ort
from fcn_deploy.errors import CheckFailedError, ModelError, UsageError
from fcn_deploy.loading import load
from fcn_deploy.onnx_file import read_onnx, to_half
from fcn_deploy.onnx_footprint import bytes_per_pixel
from fcn_deploy.parity import TOLERANCES, compare, generated_crops
from fcn_deploy.spec import PARITY_KEY, SPEC_KEY, ModelSpec, voc_palette
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.training import to_onnx
from fcn_deploy.training.checkpoint import Checkpoint, load_network, save_checkpoint
from fcn_deploy.training.folding import fold_batch_norm
from fcn_deploy.training.network import BYTES_PER_PIXEL, SCORE_STRIDE, build_network
from fcn_deploy.training.to_onnx import export_onnx
from fcn_deploy.upsample import window_matrix


def shapes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_file_keeps_its_contract(toy_onnx: Path) -> None:
    model = onnx.load(toy_onnx, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shapes(image) == ["batch", "32*rows", "32*columns", 3]
    outputs = {value.name: value for value in model.graph.output}
    assert list(outputs) == ["labels", "logits", "scores"]
    assert outputs["labels"].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert outputs["logits"].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert shapes(outputs["labels"]) == ["batch", "32*rows", "32*columns"]
    assert shapes(outputs["logits"]) == ["batch", 3, "32*rows", "32*columns"]
    assert shapes(outputs["scores"]) == ["batch", 3, "2*rows", "2*columns"]
    assert {node.domain for node in model.graph.node} == {""}
    assert model.opset_import[0].version == 18
    properties = {prop.key: prop.value for prop in model.metadata_props}
    spec = ModelSpec.from_json(properties[SPEC_KEY])
    assert (spec.head, spec.score_stride, spec.classes) == (
        "fcn16s",
        16,
        ("ground", "disc", "stripe"),
    )
    assert json.loads(properties[PARITY_KEY])["passed"] is True


def test_nothing_of_the_machine_is_in_the_file(toy_onnx: Path) -> None:
    model = onnx.load(toy_onnx, load_external_data=False)
    for weight in model.graph.initializer:
        weight.ClearField("raw_data")  # among millions of numbers, any three bytes occur
    content = model.SerializeToString()
    assert b"upsample.matrix" in content
    for trace in (b"site-packages", b"/home/", b"/root/", b".py", str(Path.cwd()).encode()):
        assert trace not in content


@pytest.mark.parametrize("head", sorted(SCORE_STRIDE))
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_network_exports_and_agrees(head: str, backbone: str, tmp_path: Path) -> None:
    if backbone == "resnet50" and head != "fcn8s":
        pytest.skip("the bottleneck body is exported once")
    spec = ModelSpec(
        tuple("abcde"),
        voc_palette(5),
        head=head,
        backbone=backbone,
        score_stride=SCORE_STRIDE[head],
    )
    torch.manual_seed(0)
    network = build_network(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    for skip in network.skips:
        nn.init.normal_(skip.weight, 0, 0.02)  # type: ignore[arg-type]
    checkpoint = tmp_path / "best.safetensors"
    save_checkpoint(checkpoint, Checkpoint(spec, network.state_dict(), {}, {}))
    report = export_onnx(checkpoint, tmp_path / "m.onnx", crops=generated_crops())
    assert report is not None
    assert report.passed
    assert report.max_logit_error < 1e-4 * report.logit_range
    assert report.label_agreement > 0.9999
    assert bytes_per_pixel(read_onnx(tmp_path / "m.onnx").proto) == BYTES_PER_PIXEL[backbone]


def test_fp16_file_is_fp16_inside_and_agrees(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    report = export_onnx(toy_checkpoint, path, crops=generated_crops(), fp16=True)
    assert report is not None
    assert report.tolerance == TOLERANCES["fp16"]
    model = read_onnx(path)
    assert model.precision == "fp16"
    types = {weight.name: weight.data_type for weight in model.proto.graph.initializer}
    floats32 = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert floats32 == {"mean255", "inverse_std255"}
    floats = [value.type.tensor_type.elem_type for value in model.proto.graph.output]
    assert floats == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]


def test_fp16_twin_equals_pytorchs_half_with_batch_norm_folded_before(
    toy_checkpoint: Path, toy_onnx: Path, tmp_path: Path
) -> None:
    network, _ = load_network(toy_checkpoint)
    fold_batch_norm(network)
    model = read_onnx(toy_onnx)
    weights = {
        w.name: onnx.numpy_helper.to_array(w) for w in to_half(model.proto).graph.initializer
    }
    half = network.half().state_dict()
    compared = [name for name in half if f"network.{name}" in weights]
    assert len(compared) > 40
    for name in compared:
        np.testing.assert_array_equal(weights[f"network.{name}"], half[name].numpy())
    upsampling = window_matrix(
        half["upsample.weight"].float().numpy(), half["upsample.bias"].float().numpy()
    )
    np.testing.assert_array_equal(weights["upsample.matrix"], upsampling)


def test_overflowing_weight_is_named(toy_onnx: Path) -> None:
    proto = read_onnx(toy_onnx).proto
    weight = next(w for w in proto.graph.initializer if w.name == "network.score.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ModelError, match=r"network\.score\.weight reaches 1e\+06"):
        to_half(proto)


def test_outputs_can_be_chosen(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.onnx"
    export_onnx(toy_checkpoint, path, crops=generated_crops(), outputs=("labels",))
    assert read_onnx(path).outputs == ("labels",)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    with open_ort(path, "cpu") as short, open_eager(toy_checkpoint, "cpu") as eager:
        np.testing.assert_array_equal(short.labels(image), eager.labels(image))
        with pytest.raises(ModelError, match="no output 'logits'"):
            short.logits(image)
    with pytest.raises(UsageError, match="masks cannot be the outputs"):
        export_onnx(toy_checkpoint, path, crops=None, outputs=("masks",))
    with pytest.raises(UsageError, match="Opset 9"):
        export_onnx(toy_checkpoint, path, crops=None, opset=9)


@pytest.mark.parametrize(
    "fault", ["one channel's mean is wrong", "one layer is scaled", "a shifted upsampling"]
)
def test_a_wrong_export_is_caught_and_leaves_nothing(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    right = to_onnx._to_proto

    def wrong(*arguments: object) -> onnx.ModelProto:
        proto: onnx.ModelProto = right(*arguments)  # type: ignore[arg-type]
        weights = {weight.name: weight for weight in proto.graph.initializer}
        if fault == "one channel's mean is wrong":
            scale(weights["mean255"], np.array([1, 1, 1.02]).reshape(3, 1, 1))
        elif fault == "one layer is scaled":
            scale(weights["network.body.5.0.conv2.weight"], np.array(1.01))
        else:
            weight = weights["upsample.matrix"]
            values = np.roll(onnx.numpy_helper.to_array(weight), 1, axis=1)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return proto

    monkeypatch.setattr(to_onnx, "_to_proto", wrong)
    path = tmp_path / "model.onnx"
    with pytest.raises(CheckFailedError, match="Parity failed"):
        export_onnx(toy_checkpoint, path, crops=generated_crops())
    assert list(tmp_path.iterdir()) == []


def scale(
    weight: onnx.TensorProto, factor: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> None:
    values = (onnx.numpy_helper.to_array(weight) * factor).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def test_every_shape_and_batch_agrees(toy_onnx: Path, toy_checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    batches = (
        random.integers(0, 256, (batch, 32 * rows, 32 * columns, 3), np.uint8)
        for rows, columns in ((1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (3, 7))
        for batch in (1, 2, 4)
    )
    with open_eager(toy_checkpoint, "cpu") as eager, open_ort(toy_onnx, "cpu") as exported:
        report = compare(eager, exported, batches)
    report.require()
    assert report.crops == 6 * 7


def test_eager_and_exported_networks_are_cut_alike(toy_checkpoint: Path, toy_onnx: Path) -> None:
    with load(toy_checkpoint) as eager, load(toy_onnx) as exported:
        assert eager.backend.footprint == exported.backend.footprint
        for hw in ((1080, 1920), (4000, 3001)):
            assert eager.plan(hw) == exported.plan(hw)
            exact = Tiling(halo="exact")
            assert eager.plan(hw, exact) == exported.plan(hw, exact)
