"""Faults that are planted in exported files: each is caught, and called by its name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from fcn_deploy.onnx_file import to_half
from fcn_deploy.training.layers import Layers
from fcn_deploy.upsample import window_matrix
from fcn_deploy.verify import Rung, verify
from fcn_deploy.verify.bisect import errors_by_layer, first_deviation
from fcn_deploy.verify.inputs import batches_of
from fcn_deploy.verify.opening import open_ladder

SHAPES = [(32, 32), (64, 96)]


def change(proto: ModelProto, name: str, by: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    weight = next(w for w in proto.graph.initializer if w.name == name)
    values = numpy_helper.to_array(weight)
    changed = np.ascontiguousarray(by(values.copy())).astype(values.dtype)
    weight.CopyFrom(numpy_helper.from_array(changed, name))


def wrong_mean(proto: ModelProto, _layers: Layers) -> None:
    def by(mean: NDArray[Any]) -> NDArray[Any]:
        mean[0, 1] += 0.03 * 255
        return mean

    change(proto, "mean255", by)


def bgr(proto: ModelProto, _layers: Layers) -> None:
    for name in ("mean255", "inverse_std255", "network.body.0.weight"):
        change(proto, name, lambda values: values[:, ::-1])


def half_a_pixel(proto: ModelProto, layers: Layers) -> None:
    weights = layers.weights()
    kernel: NDArray[Any] = weights["upsample.weight"]
    bias = weights["upsample.bias"]
    for axis in (2, 3):
        kernel = (kernel + np.roll(kernel, 1, axis)) / 2
    change(proto, "upsample.matrix", lambda _: window_matrix(kernel, bias))


def scaled(proto: ModelProto, _layers: Layers) -> None:
    change(proto, "network.body.6.0.conv2.weight", lambda values: values * 1.01)


Fault = Callable[[ModelProto, Layers], None]

FAULTS: dict[Fault, tuple[str | None, str, str]] = {
    wrong_mean: ("darker", "normalisation", "mean255"),
    bgr: ("BGR", "normalisation", "body.0.weight"),
    half_a_pixel: ("0.5 pixel down and 0.5 pixel to the right", "upsample", "upsample"),
    scaled: (None, "body.6.0.conv2", "body.6.0.conv2.weight"),
}


@pytest.fixture(scope="module")
def layers(toy_checkpoint: Path) -> Layers:
    return Layers(toy_checkpoint)


@pytest.fixture(scope="module")
def photos(toy_data: Path) -> list[Path]:
    return sorted((toy_data / "val" / "images").iterdir())


def rung_of(path: Path, checkpoint: Path, photos: list[Path]) -> Rung:
    """The last rung of a ladder up to ``path``, compared on crops alone."""
    with ExitStack() as stack:
        ladder = open_ladder([path], checkpoint, stack, explicit=True, provider="cpu")
        batches = batches_of(photos, SHAPES, [1, 2])
        return verify(ladder.reference, ladder.candidates, batches).rungs[-1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught_and_named(
    fault: Fault,
    precision: str,
    toy_onnx: Path,
    toy_checkpoint: Path,
    layers: Layers,
    photos: list[Path],
    tmp_path: Path,
) -> None:
    proto = onnx.load_model(toy_onnx)
    fault(proto, layers)
    proto = to_half(proto) if precision == "fp16" else proto
    path = tmp_path / "faulty.onnx"
    onnx.save_model(proto, path)
    rung = rung_of(path, toy_checkpoint, photos)
    likely, place, weight = FAULTS[fault]
    assert rung.passed is False
    assert rung.weights is not None
    assert weight in rung.weights["different"]
    if likely is not None:
        assert likely in (rung.diagnosis or "")
    crops = next(batches_of(photos, [(64, 96)], [2])).crops
    said = first_deviation(errors_by_layer(proto, layers, crops), precision)
    assert f"is {place}:" in (said or "")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_sound_file_passes_and_no_layer_stands_out(
    precision: str,
    toy_onnx: Path,
    toy_checkpoint: Path,
    layers: Layers,
    photos: list[Path],
    tmp_path: Path,
) -> None:
    proto = onnx.load_model(toy_onnx)
    proto = to_half(proto) if precision == "fp16" else proto
    path = tmp_path / "sound.onnx"
    onnx.save_model(proto, path)
    rung = rung_of(path, toy_checkpoint, photos)
    assert rung.problems == ()
    assert rung.passed
    assert rung.weights is not None
    assert rung.weights["compared"] > 40
    crops = next(batches_of(photos, [(64, 96)], [2])).crops
    errors = errors_by_layer(proto, layers, crops)
    assert [errors[0].name, errors[1].name, errors[-1].name] == [
        "normalisation",
        "body.0",
        "upsample",
    ]
    assert first_deviation(errors, precision) is None


def test_pooling_that_was_changed_is_found_between_its_layers(
    toy_onnx: Path, layers: Layers, photos: list[Path]
) -> None:
    proto = onnx.load_model(toy_onnx)
    pooling = next(node for node in proto.graph.node if node.op_type == "MaxPool")
    pads = next(attribute for attribute in pooling.attribute if attribute.name == "pads")
    pads.ints[:] = [0, 0, 2, 2]
    crops = next(batches_of(photos, [(64, 96)], [2])).crops
    said = first_deviation(errors_by_layer(proto, layers, crops), "fp32")
    assert said is not None
    assert said.startswith("Errors begin between body.0 and body.4.0.conv1")


def test_values_that_are_not_finite_fail_with_the_layer(
    toy_onnx: Path, toy_checkpoint: Path, layers: Layers, photos: list[Path], tmp_path: Path
) -> None:
    def by(values: NDArray[Any]) -> NDArray[Any]:
        values.flat[3] = np.nan
        return values

    proto = onnx.load_model(toy_onnx)
    change(proto, "network.score.weight", by)
    path = tmp_path / "faulty.onnx"
    onnx.save_model(proto, path)
    rung = rung_of(path, toy_checkpoint, photos)
    assert rung.passed is False
    assert "not finite" in rung.problems[0]
    assert "score.weight (not finite)" in rung.problems[-1]
    crops = next(batches_of(photos, [(64, 96)], [1])).crops
    errors = errors_by_layer(proto, layers, crops)
    assert "score: it returns no finite values" in (first_deviation(errors, "fp32") or "")
    assert next(e for e in errors if e.name == "score").as_dict()["error"] is None


def test_no_batch_at_all_is_no_success(toy_onnx: Path, toy_checkpoint: Path) -> None:
    with ExitStack() as stack:
        ladder = open_ladder([toy_onnx], toy_checkpoint, stack, explicit=True, provider="cpu")
        (rung,) = verify(ladder.reference, ladder.candidates, []).rungs
    assert rung.passed is False
    assert "Nothing was compared" in rung.problems[0]
