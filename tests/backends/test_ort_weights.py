"""Weights that several sessions share: the same answers from a graph that is next to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fcn_deploy.backends.ort import OrtBackend, open_ort
from fcn_deploy.backends.ort_weights import cut_for_session, share_weights
from fcn_deploy.onnx_file import keep_outputs, read_onnx, to_half
from fcn_deploy.onnx_footprint import bytes_per_pixel
from fcn_deploy.receptive import reach_of_scores
from small_models import photos, small_model


class Options:
    def __init__(self) -> None:
        self.given: list[str] = []

    def add_external_initializers(self, names: list[str], _: list[object]) -> None:
        self.given += names


def test_the_trunk_is_next_to_nothing_without_its_weights(toy_onnx: Path) -> None:
    model = read_onnx(toy_onnx)
    shared, weights = share_weights(model)
    assert shared.spec == model.spec
    assert shared.outputs == model.outputs
    options = Options()
    content = cut_for_session(shared.proto, weights, ("scores",), options)
    whole = keep_outputs(model.proto, ("scores",)).ByteSize()
    assert len(content) < whole / 100
    assert set(options.given) == set(weights)
    assert sum(value.tensor_size_in_bytes() for value in weights.values()) > 0.99 * whole


def test_what_is_read_from_the_graph_is_still_there(toy_onnx: Path) -> None:
    model = read_onnx(toy_onnx)
    shared, _ = share_weights(model)
    assert bytes_per_pixel(shared.proto) == bytes_per_pixel(model.proto)
    stride = model.spec.score_stride
    assert reach_of_scores(shared.proto, stride) == reach_of_scores(model.proto, stride)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_are_the_same_bit_for_bit(toy_onnx: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "model.onnx"
    proto = onnx.load_model(toy_onnx)
    onnx.save_model(proto if precision == "fp32" else to_half(proto), path)
    model = read_onnx(path)
    crops = photos(1, 2, 64, 96)
    with (
        OrtBackend(model, path, "CPUExecutionProvider", weights={}) as whole,
        OrtBackend(model, path, "CPUExecutionProvider") as shared,
        open_ort(path, "cpu") as opened,
    ):
        assert shared.precision == opened.precision == precision
        for output in ("labels", "logits", "scores"):
            wanted = getattr(whole, output)(crops)
            np.testing.assert_array_equal(getattr(shared, output)(crops), wanted)
            np.testing.assert_array_equal(getattr(opened, output)(crops), wanted)


def test_a_model_without_scores_shares_all_it_has(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(keep_outputs(small_model(stride=32), ("logits", "labels")), path)
    model = read_onnx(path)
    shared, weights = share_weights(model)
    assert shared.proto.ByteSize() < model.proto.ByteSize() / 4
    assert "kernel" in weights
    crops = photos(2, 1, 64, 64)
    with (
        OrtBackend(model, path, "CPUExecutionProvider", weights={}) as whole,
        open_ort(path, "cpu") as opened,
    ):
        np.testing.assert_array_equal(opened.logits(crops), whole.logits(crops))
