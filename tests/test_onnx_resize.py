"""Resizes of a graph: what they enlarge by, how far they look, and crops merged before the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fake_cuda import FakeCuda
from fake_engines import install_fake, model_of, write_fake_engine
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.trt import open_trt
from fcn_deploy.errors import ModelError
from fcn_deploy.merging import BLENDS, Blend, merge_scores
from fcn_deploy.onnx_file import to_half
from fcn_deploy.onnx_resize import enlargement, fix_scales
from fcn_deploy.onnx_upsampling import upsampling_of
from fcn_deploy.receptive import dependence, exact_halo
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling import plan_crops
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.upsample import FloatArray, Upsampling, Wanted, bilinear_matrix
from small_models import photos, resized_model, spec_of
from test_merging import brute_force, check, stack


def enlarged(scores: NDArray[np.floating], s: int) -> NDArray[np.float64]:
    """Bilinear, by PyTorch, in float64."""
    values = torch.from_numpy(scores.astype(np.float64))[None]
    larger = F.interpolate(values, scale_factor=s, mode="bilinear", align_corners=False)
    return np.asarray(larger[0].numpy())


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 6, 8, 32]),
    st.integers(1, 5),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([None, 0, 1]),
    st.sampled_from(BLENDS),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_crops_merged_before_a_bilinear_resize_are_the_average_of_their_logits(
    seed: int,
    s: int,
    classes: int,
    image_hw: tuple[int, int],
    tiles: tuple[int, int],
    halo: int | None,
    blend: Blend,
    more: bool,
) -> None:
    step = 32 if s != 6 else 36
    tile = (step * (tiles[0] + 2), step * (tiles[1] + 2))
    border = None if halo is None else halo * step
    grid = plan_crops(image_hw, tile, step, step=step, halo=border)
    random = np.random.default_rng(seed)
    cells = (classes, grid.crop_hw[0] // s, grid.crop_hw[1] // s)
    scores = [random.standard_normal(cells).astype(np.float32) for _ in range(len(grid))]
    upsampling = Upsampling(bilinear_matrix(classes, s), classes, "edge")
    bands = merge_scores(grid, scores, upsampling, wanted=Wanted(more, more), blend=blend)
    wanted = brute_force(grid, [enlarged(crop, s) for crop in scores], blend)
    check(stack(bands, image_hw), wanted, image_hw)


@pytest.mark.parametrize("s", [2, 4, 6, 8, 16, 32])
def test_the_layer_on_the_host_is_a_bilinear_resize(s: int) -> None:
    scores: FloatArray = np.random.default_rng(s).standard_normal((3, 4, 5)).astype(np.float32)
    upsampling = Upsampling(bilinear_matrix(3, s), 3, "edge")
    np.testing.assert_allclose(upsampling.whole(scores), enlarged(scores, s), atol=1e-5)
    zeros = Upsampling(bilinear_matrix(3, s), 3)
    assert np.abs(zeros.whole(scores) - enlarged(scores, s)).max() > 0.1  # the border matters


@pytest.mark.parametrize("half", [False, True])
def test_a_bilinear_resize_is_found(half: bool) -> None:
    model = resized_model(stride=8)
    upsampling = upsampling_of(to_half(model) if half else model, 3)
    assert upsampling is not None
    assert (upsampling.stride, upsampling.border) == (8, "edge")


@pytest.mark.parametrize(
    "how",
    [
        {"coordinate_transformation_mode": "align_corners"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "cubic"},
        {"antialias": 1},
    ],
    ids=str,
)
def test_other_resizes_are_merged_as_logits(how: dict[str, Any]) -> None:
    assert upsampling_of(resized_model(stride=8, how=how), 3) is None


def test_an_odd_or_an_enormous_resize_is_merged_as_logits() -> None:
    assert upsampling_of(resized_model(stride=3), 3) is None
    assert upsampling_of(resized_model(stride=8), 120) is not None
    assert upsampling_of(resized_model(stride=32), 120) is None


@pytest.mark.parametrize("values", [[1, 1, 2.5, 2], [1, 2, 2, 2], [1, 1, 0, 2], [1, 1, np.nan, 2]])
def test_scales_that_are_no_whole_numbers_are_no_enlargement(values: list[float]) -> None:
    scales = numpy_helper.from_array(np.array(values, np.float32), "scales")
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")
    assert enlargement(node, {"scales": scales}) is None
    assert enlargement(node, {}) is None


def test_a_computed_size_becomes_a_constant_factor() -> None:
    model = resized_model(stride=8, constant=False)
    with pytest.raises(ModelError, match="mixes positions"):
        dependence(model, "logits")
    fixed = ModelProto()
    fixed.CopyFrom(model)
    fix_scales(fixed, 8)
    assert "Shape" not in {node.op_type for node in fixed.graph.node}
    assert upsampling_of(fixed, 3) is not None
    crops = photos(0, 2, 32, 64)
    results = []
    for proto in (model, fixed):
        with OrtBackend(model_of(proto), Path("small"), "CPUExecutionProvider") as backend:
            results.append(backend.logits(crops))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_a_size_that_is_no_constant_multiple_stays_computed() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Resize", ["floats", "", "", "size"], ["logits"], mode="linear"),
        ],
        "fixed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "a", "b", 3])],
        [numpy_helper.from_array(np.array([1, 330, 330, 3]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    fix_scales(model, 10)
    assert model.graph.node[1].input[3] == "size"


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_how_far_a_resize_looks(mode: str, factor: int) -> None:
    how = {"mode": mode}
    if mode == "nearest":
        how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    model = resized_model(stride=factor, how=how)
    cells = 32
    rows, _ = dependence(model, "logits")
    seen: dict[int, set[int]] = {}
    with OrtBackend(model_of(model), Path("small"), "CPUExecutionProvider") as backend:
        size = cells * factor
        dark = backend.logits(np.zeros((1, size, size, 3), np.uint8))
        for cell in range(3, 12):
            image = np.zeros((1, size, size, 3), np.uint8)
            image[:, cell * factor : (cell + 1) * factor] = 255
            changed = (backend.logits(image) != dark).any((0, 1, 3))
            for row in np.flatnonzero(changed).tolist():
                seen.setdefault(row, set()).add(cell)
    for row in range(5 * factor, 7 * factor):  # far from the border, and from what was not lit
        first, last = rows.range_of([row])
        assert (min(seen[row]), max(seen[row])) == (first // factor, last // factor)


@pytest.mark.parametrize("how", [{}, {"coordinate_transformation_mode": "align_corners"}], ids=str)
def test_other_halos_are_known_or_refused(how: dict[str, Any]) -> None:
    model, spec = resized_model(stride=8, how=how), spec_of(3, 8)
    assert exact_halo(model, spec) == 16
    del model.graph.output[2]  # logits are left: the same pixels, but counted one by one
    if how:
        with pytest.raises(ModelError, match="no enlargement by a whole number"):
            exact_halo(model, spec)
    else:
        assert exact_halo(model, spec) == 12
    del model.graph.output[1]
    assert exact_halo(model, spec) is None


@pytest.mark.parametrize("halo", [None, 32])
def test_an_engine_merges_as_onnx_runtime_does(
    halo: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resized_model(2, classes=5, stride=8)
    image = photos(3, 1, 200, 300)[0]
    tiling = Tiling((96, 128), 32 if halo is None else 64, halo)
    with OrtBackend(model_of(model), Path("oracle"), "CPUExecutionProvider") as oracle:
        expected = Segmenter(oracle).predict(image, tiling).labels
    install_fake(monkeypatch, FakeCuda(seed=7), flavour="tensorrt", version="10.16.1.11")
    plan = tmp_path / "model.plan"
    write_fake_engine(plan, model, flavour="tensorrt", version="10.16.1.11")
    with open_trt(plan) as engine:
        assert engine.upsampling is not None
        assert engine.upsampling.border == "edge"
        assert (Segmenter(engine).predict(image, tiling).labels == expected).mean() > 0.9999
