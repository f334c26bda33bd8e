"""INT8 graphs: what they hold, how far they are off, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from fcn_deploy.backends.ort import open_ort
from fcn_deploy.errors import CheckFailedError, DataError, ModelError
from fcn_deploy.image import read_image
from fcn_deploy.int8.graph import FORMS, body_layers, quantised, share_quantised
from fcn_deploy.int8.ranges import observe
from fcn_deploy.onnx_file import to_half
from fcn_deploy.training.layers import Layers
from fcn_deploy.verify.weights import compare_weights

Ranges = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def proto(toy_onnx: Path) -> ModelProto:
    return onnx.load_model(toy_onnx)


@pytest.fixture(scope="module")
def crops(toy_data: Path) -> list[NDArray[np.uint8]]:
    images = sorted((toy_data / "train" / "images").iterdir())[:6]
    return [read_image(path)[None, :64, :96] for path in images]


@pytest.fixture(scope="module")
def ranges(proto: ModelProto, crops: list[NDArray[np.uint8]]) -> Ranges:
    return observe(proto, crops)


def kinds(proto: ModelProto, tmp_path: Path) -> list[str]:
    """Operators that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load_model(tmp_path / "optimised.onnx").graph.node]


def test_onnx_runtime_multiplies_the_whole_body_in_integers(
    proto: ModelProto, ranges: Ranges, tmp_path: Path
) -> None:
    made = quantised(proto, ranges, FORMS["ort"])
    assert kinds(made, tmp_path).count("QLinearConv") == len(body_layers(proto)) == 20
    assert kinds(made, tmp_path).count("QLinearAdd") == 8
    assert kinds(proto, tmp_path).count("QLinearConv") == 0
    assert 0.8 < share_quantised(made) < 1
    assert share_quantised(proto) == 0


def test_the_form_for_tensorrt_keeps_to_its_rules(proto: ModelProto, ranges: Ranges) -> None:
    made = quantised(proto, ranges, FORMS["tensorrt"])
    weights = {w.name: w for w in made.graph.initializer}
    read = [n for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert read
    for node in read:
        zero = weights[node.input[2]]
        assert zero.data_type == TensorProto.INT8  # neither uint8 nor an int32 bias
        assert not numpy_helper.to_array(zero).any()


@pytest.mark.parametrize("runtime", FORMS)
def test_labels_hardly_change(
    runtime: str,
    proto: ModelProto,
    ranges: Ranges,
    crops: list[NDArray[np.uint8]],
    toy_onnx: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "int8.onnx"
    onnx.save_model(quantised(proto, ranges, FORMS[runtime]), path)
    with open_ort(toy_onnx, "cpu") as exact, open_ort(path, "cpu") as rough:
        assert rough.precision == "int8"
        assert rough.halo == exact.halo
        for crop in crops:
            same = exact.labels(crop) == rough.labels(crop)
            assert same.mean() > 0.93  # of a network trained for seconds
            wanted, got = exact.logits(crop), rough.logits(crop)
            assert 0 < np.abs(wanted - got).max() < 0.2 * np.ptp(wanted)


def test_layers_that_are_kept_stay_as_they_were(
    proto: ModelProto, ranges: Ranges, tmp_path: Path
) -> None:
    kept = body_layers(proto)[:3]
    made = quantised(proto, ranges, FORMS["ort"], kept)
    before = {w.name: w for w in proto.graph.initializer}
    after = {w.name: w for w in made.graph.initializer}
    for name in kept:
        assert after[f"network.{name}.weight"] == before[f"network.{name}.weight"]
    assert kinds(made, tmp_path).count("QLinearConv") == 17


@pytest.mark.parametrize("runtime", FORMS)
def test_all_layers_kept_is_the_float32_graph(
    runtime: str, proto: ModelProto, ranges: Ranges, crops: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    made = quantised(proto, ranges, FORMS[runtime], body_layers(proto))
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in proto.graph.node]
    assert kinds(made, tmp_path) == kinds(proto, tmp_path)


def test_integers_are_recognised_as_the_checkpoints_weights(
    proto: ModelProto, ranges: Ranges, toy_checkpoint: Path
) -> None:
    layers = Layers(toy_checkpoint)
    for form in FORMS.values():
        made = quantised(proto, ranges, form)
        sound = compare_weights(made, layers.weights(), layers.spec)
        assert sound.compared > 40
        assert sound.different == ()
        weight = next(w for w in made.graph.initializer if w.name.endswith("conv2.weight_scale"))
        scale = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array((scale * 1.02).astype(np.float32), weight.name))
        found = compare_weights(made, layers.weights(), layers.spec)
        assert found.different == (weight.name.removeprefix("network.").removesuffix("_scale"),)


def test_seven_bits_keep_pairs_of_products_within_sixteen() -> None:
    # vpmaddubsw adds two products of a uint8 and an int8 with saturation at 32767.
    assert 2 * 255 * FORMS["ort"].weight_steps <= np.iinfo(np.int16).max


def test_nothing_to_quantise_or_to_calibrate_on_is_refused(proto: ModelProto) -> None:
    with pytest.raises(ModelError, match="no body"):
        body_layers(onnx.ModelProto())
    with pytest.raises(DataError, match="--calibrate"):
        observe(proto, [])


def test_calibration_refuses_what_is_not_finite(
    proto: ModelProto, crops: list[NDArray[np.uint8]]
) -> None:
    broken = ModelProto()
    broken.CopyFrom(proto)
    weight = next(w for w in broken.graph.initializer if w.name == "network.body.0.weight")
    values = numpy_helper.to_array(weight) * np.float32(np.nan)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(CheckFailedError, match="not finite"):
        observe(broken, crops[:1])


def test_half_precision_is_no_source(proto: ModelProto, ranges: Ranges) -> None:
    half = to_half(proto)
    names = {t for node in half.graph.node for t in node.input}
    assert "network.body.0.weight" in names
    with pytest.raises((ModelError, KeyError)):
        quantised(half, ranges, FORMS["ort"])
