"""The last transposed convolution as a matrix product: the same file, the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fcn_deploy.backends.ort import OrtBackend, open_ort
from fcn_deploy.onnx_file import keep_outputs, read_onnx, to_half
from fcn_deploy.onnx_upsampling import MATRIX, to_matrix_form, upsampling_of
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import INPUT
from fcn_deploy.tiling import plan_crops
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.upsample import window_matrix
from small_models import photos, small_model

Pixels = NDArray[np.uint8]


def run(model: ModelProto, images: Pixels) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def same(got: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]], atol: float) -> None:
    assert list(got) == list(wanted)
    assert got["labels"].dtype == np.uint8
    logits = wanted["logits"]
    scale = float(np.abs(logits).max())
    np.testing.assert_allclose(got["logits"], logits, atol=atol * scale)
    assert got["logits"].dtype == np.float32
    ordered = np.sort(logits, 1)
    clear = np.ones(got["labels"].shape, bool)
    if logits.shape[1] > 1:
        clear = ordered[:, -1] - ordered[:, -2] > 2 * atol * scale
        assert clear.mean() > 0.9
    np.testing.assert_array_equal(got["labels"][clear], wanted["labels"][clear])


def operators(model: ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.sampled_from([2, 4, 8, 16, 32]),
    st.sampled_from([0, 0.05, 1]),
    st.booleans(),
    st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_the_matrix_form_is_the_transposed_convolution(
    seed: int,
    classes: int,
    stride: int,
    learned: float,
    bias: bool,
    shapes: list[tuple[int, int, int]],
) -> None:
    model = small_model(seed, classes=classes, stride=stride, learned=learned, bias=bias)
    kept = model.SerializeToString()
    changed = to_matrix_form(model)
    assert model.SerializeToString() == kept
    assert "ConvTranspose" not in operators(changed)
    assert {w.name for w in changed.graph.initializer} & {"kernel", "kernel_bias"} == set()
    assert changed.metadata_props == model.metadata_props
    for before, after in zip(model.graph.output, changed.graph.output, strict=True):
        assert before == after
    for batch, rows, columns in shapes:  # of one and the same graph
        images = photos(seed, batch, 32 * rows, 32 * columns)
        same(run(changed, images), run(model, images), 1e-5)
    assert to_matrix_form(changed) is changed


@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_tell_their_upsampling(bias: bool) -> None:
    model = small_model(classes=4, stride=8, bias=bias)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    wanted = window_matrix(
        weights["kernel"], weights["kernel_bias"] if bias else np.zeros(4, np.float32)
    )
    changed = to_matrix_form(model)
    (matrix,) = [w for w in changed.graph.initializer if w.name == MATRIX]
    np.testing.assert_array_equal(numpy_helper.to_array(matrix), wanted)
    cells = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    found = [upsampling_of(form, 4) for form in (model, changed, to_half(model), to_half(changed))]
    results = []
    for upsampling in found:
        assert upsampling is not None
        assert (upsampling.stride, upsampling.num_classes) == (8, 4)
        results.append(next(upsampling.logits(cells, np.arange(3)))[1])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[2], results[3])
    np.testing.assert_allclose(results[0], results[2], atol=2e-2)
    assert (results[0] != results[2]).any()


def test_a_matrix_of_other_classes_is_not_taken() -> None:
    changed = to_matrix_form(small_model(classes=4))
    assert upsampling_of(changed, 3) is None


OTHERS: dict[str, dict[str, Any]] = {
    "a kernel of 3s": {"kernel": 24},
    "a kernel of s": {"kernel": 8},
    "groups": {"classes": 4, "group": 2},
    "a dilation": {"kernel": 9, "dilation": 2},
    "output padding": {"kernel": 16, "output_padding": 1},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_does_not_fit_is_left_alone_and_takes_the_plain_path(
    kind: str, tmp_path: Path
) -> None:
    model = small_model(**OTHERS[kind])
    classes = OTHERS[kind].get("classes", 3)
    assert to_matrix_form(model) is model
    assert upsampling_of(model, classes) is None
    onnx.save_model(model, tmp_path / "other.onnx")
    image = photos(1, 1, 150, 120)[0]
    with open_ort(tmp_path / "other.onnx") as backend:
        assert backend.upsampling is None
        compare_with_the_definition(Segmenter(backend), model, image)


@pytest.mark.parametrize(
    "attributes",
    [
        {"dilations": [2, 2]},
        {"output_padding": [1, 0]},
        {"output_shape": [64, 64]},
        {"auto_pad": "SAME_UPPER"},
        {"strides": [8, 4]},
        {"strides": [4, 4]},
        {"pads": [4, 4, 4, 3]},
        {"pads": [3, 3, 5, 5]},
        {"pads": [8, 8, 8, 8]},
        {"group": 3},
    ],
)
def test_every_attribute_counts(attributes: dict[str, Any]) -> None:
    model = small_model()
    (layer,) = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    assert upsampling_of(model, 3) is not None
    kept = [attribute for attribute in layer.attribute if attribute.name not in attributes]
    del layer.attribute[:]
    layer.attribute.extend([*kept, *(helper.make_attribute(*pair) for pair in attributes.items())])
    assert upsampling_of(model, 3) is None
    assert to_matrix_form(model) is model


def test_weights_that_are_not_fixed_are_left_alone() -> None:
    for name in ("kernel", "kernel_bias"):
        model = small_model()
        (weight,) = [w for w in model.graph.initializer if w.name == name]
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=weight))
        model.graph.initializer.remove(weight)
        onnx.checker.check_model(model, full_check=True)
        assert upsampling_of(model, 3) is None
        assert to_matrix_form(model) is model


def test_scores_of_another_name_take_the_plain_path(tmp_path: Path) -> None:
    model = small_model(scores="features")
    onnx.save_model(model, tmp_path / "other.onnx")
    image = photos(1, 1, 150, 120)[0]
    with open_ort(tmp_path / "other.onnx") as backend:
        assert backend.upsampling is None
        compare_with_the_definition(Segmenter(backend), model, image)


def compare_with_the_definition(model: Segmenter, plain: ModelProto, image: Pixels) -> None:
    """Tiles through a file and tiles of the graph as it was written, averaged here in float64."""
    hw = (image.shape[0], image.shape[1])
    grid = plan_crops(hw, (64, 64), 32)
    pad = [(0, p - s) for p, s in zip(grid.padded_hw, hw, strict=True)]
    padded = np.pad(image, (*pad, (0, 0)), mode="symmetric")
    crops = np.stack([padded[top : top + 64, left : left + 64] for top, left in grid.corners])
    logits = run(plain, crops)["logits"].astype(np.float64)
    total = np.zeros((logits.shape[1], *grid.padded_hw))
    count = np.zeros(grid.padded_hw)
    for (top, left), part in zip(grid.corners, logits, strict=True):
        total[:, top : top + 64, left : left + 64] += part
        count[top : top + 64, left : left + 64] += 1
    wanted = (total / count)[:, : hw[0], : hw[1]]
    ordered = np.sort(wanted, 0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.95
    got = model.predict(image, Tiling((64, 64), 32), confidence=True)
    np.testing.assert_array_equal(got.labels[clear], wanted.argmax(0)[clear])
    softmax = np.exp(wanted - wanted.max(0))
    assert got.confidence is not None
    assert np.abs(got.confidence - 255 / softmax.sum(0)).max() <= 0.51 + 1e-3
    whole = model.segment(image, tile=None)
    direct = run(plain, padded[None])["labels"][0, : hw[0], : hw[1]]
    assert (whole == direct).mean() > 0.9999


@pytest.mark.parametrize("form", ["transposed convolution", "matrix"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_files_of_both_forms_are_merged_as_scores(form: str, stride: int, tmp_path: Path) -> None:
    model = small_model(stride, stride=stride)
    file = model if form == "transposed convolution" else to_matrix_form(model)
    onnx.save_model(file, tmp_path / "model.onnx")
    with open_ort(tmp_path / "model.onnx") as backend:
        assert backend.upsampling is not None
        compare_with_the_definition(Segmenter(backend), model, photos(stride, 1, 150, 220)[0])


def test_fp16_of_the_matrix_form_is_typed_and_close() -> None:
    model = small_model(classes=5, stride=16)
    half = to_half(to_matrix_form(model))
    onnx.checker.check_model(half, full_check=True)
    types = {w.name: w.data_type for w in half.graph.initializer}
    assert types[MATRIX] == types["weight"] == TensorProto.FLOAT16
    assert TensorProto.FLOAT not in types.values()
    images = photos(0, 2, 96, 128)
    results, wanted = run(half, images), run(model, images)
    same(results, wanted, 5e-3)
    assert (results["logits"] != wanted["logits"]).any()


@pytest.mark.parametrize(
    "outputs", [("labels",), ("logits",), ("scores",), ("labels", "scores"), ("logits", "labels")]
)
@pytest.mark.parametrize("half", [False, True])
def test_outputs_are_cut_from_the_matrix_form(outputs: tuple[str, ...], half: bool) -> None:
    changed = to_matrix_form(small_model())
    whole = to_half(changed) if half else changed
    part = keep_outputs(whole, outputs)
    onnx.checker.check_model(part, full_check=True)
    assert [value.name for value in part.graph.output] == list(outputs)
    # What nobody asked for must not be computed: labels wait for no logits laid out as an image.
    made = {name for node in part.graph.node for name in node.output}
    assert ("upsample.wide_logits" in {n.removesuffix("_fp16") for n in made}) == (
        "logits" in outputs
    )
    assert ("ArgMax" in operators(part)) == ("labels" in outputs)
    assert ("MatMul" in operators(part)) == (outputs != ("scores",))
    images = photos(4, 1, 64, 96)
    wanted = run(whole, images)
    for name, values in run(part, images).items():
        np.testing.assert_array_equal(values, wanted[name])


def test_a_network_as_release_0_1_0_exported_it(
    toy_checkpoint: Path, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_deploy.training import to_onnx

    monkeypatch.setattr(to_onnx, "to_matrix_form", lambda proto: proto)
    path = tmp_path / "old.onnx"
    to_onnx.export_onnx(toy_checkpoint, path, crops=None)
    old, new = read_onnx(path), read_onnx(toy_onnx)
    assert "ConvTranspose" in operators(old.proto)
    assert [n.op_type for n in new.proto.graph.node].count("ConvTranspose") == 1  # a doubling
    same(
        run(to_matrix_form(old.proto), photos(5, 2, 64, 96)),
        run(old.proto, photos(5, 2, 64, 96)),
        1e-5,
    )
    image = photos(6, 1, 170, 200)[0]
    provider = "CPUExecutionProvider"
    with OrtBackend(old, path, provider) as before, OrtBackend(new, toy_onnx, provider) as after:
        for tiling in (Tiling(None), Tiling((96, 96), 32)):
            one = Segmenter(before).predict(image, tiling, probabilities=True)
            two = Segmenter(after).predict(image, tiling, probabilities=True)
            assert (one.labels == two.labels).mean() > 0.9999
            assert one.probabilities is not None
            assert two.probabilities is not None
            assert np.abs(one.probabilities - two.probabilities.astype(int)).max() <= 1
        assert before.halo == after.halo
        # Cut at the scores, both are the same graph.
        assert before.footprint == after.footprint


def test_tensorrt_builds_the_matrix_form(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from fcn_deploy.engine import build_engine
    from fcn_deploy.recipe import EngineOptions, Shapes

    path = tmp_path / "small.onnx"
    onnx.save_model(to_matrix_form(small_model(classes=24, stride=16)), path)
    shapes = Shapes(opt_hw=(64, 64), max_hw=(128, 128), max_batch=2)
    options = EngineOptions(flavour="rtx", profiles=(shapes,))
    passport = build_engine(path, tmp_path / "small.plan", options, crops=None)
    assert passport.halo is not None
    assert (tmp_path / "small.plan").stat().st_size > 1000


def test_a_layer_that_does_not_read_the_scores_is_left_alone(tmp_path: Path) -> None:
    model = small_model(between="Relu")
    onnx.save_model(model, tmp_path / "m.onnx")
    image = photos(1, 1, 96, 96)[0]
    with open_ort(tmp_path / "m.onnx") as backend:
        got = Segmenter(backend).segment(image, tile=None)
    np.testing.assert_array_equal(got, run(model, image[None])["labels"][0])


def test_scores_of_another_name_are_left_alone() -> None:
    model = small_model(scores="features")
    assert to_matrix_form(model) is model
