"""Activations beyond FP16 are found before they are cast, and the head can stay in float32."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from typer.testing import CliRunner

from fcn_deploy.backends.ort import open_ort
from fcn_deploy.cli.app import app
from fcn_deploy.errors import ModelError
from fcn_deploy.half_range import LARGEST_HALF, require_range
from fcn_deploy.onnx_file import has_half_head, read_onnx, to_half
from fcn_deploy.recipe import EngineOptions, Shapes
from small_models import photos, resized_model, small_model

CROPS = [photos(0, 1, 64, 96)]


def grown(name: str, factor: float) -> ModelProto:
    """A small network in which one weight is too large, and the next makes up for it."""
    model = small_model()
    for weight in model.graph.initializer:
        if weight.name.startswith(name):
            values = numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model


def test_what_fits_passes_with_its_largest_value() -> None:
    most = require_range(small_model(), CROPS)
    assert 0 < most < LARGEST_HALF / 4


def test_an_overflow_is_refused_with_the_layer() -> None:
    with pytest.raises(ModelError, match=r"The layer weight reaches .*beyond FP16"):
        require_range(grown("weight", 2e4), CROPS)
    with pytest.raises(ModelError, match="The layer kernel reaches"):
        require_range(grown("kernel", 1e5), CROPS)


def test_a_network_that_comes_close_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    most = require_range(small_model(), CROPS)
    with caplog.at_level(logging.WARNING, "fcn_deploy"):
        require_range(grown("kernel", 0.5 * LARGEST_HALF / most), CROPS)
    assert "other images may reach it" in caplog.text


@pytest.mark.parametrize("resized", [False, True])
def test_a_head_in_float32_computes_in_float32(resized: bool, tmp_path: Path) -> None:
    model = resized_model() if resized else small_model()
    half, mixed = to_half(model), to_half(model, fp32_head=True)
    assert has_half_head(half)
    assert not has_half_head(mixed)
    types = {w.name: w.data_type for w in mixed.graph.initializer}
    assert types["weight"] == TensorProto.FLOAT16
    if not resized:
        assert types["kernel"] == TensorProto.FLOAT
    for name, proto in (("half", half), ("mixed", mixed), ("exact", model)):
        onnx.save_model(proto, tmp_path / f"{name}.onnx")
    assert read_onnx(tmp_path / "mixed.onnx").precision == "fp16"
    with (
        open_ort(tmp_path / "mixed.onnx", "cpu") as head,
        open_ort(tmp_path / "exact.onnx", "cpu") as exact,
    ):
        assert np.abs(head.logits(CROPS[0]) - exact.logits(CROPS[0])).max() < 0.05
        assert (head.labels(CROPS[0]) == exact.labels(CROPS[0])).mean() > 0.99


def test_without_scores_there_is_no_head(tmp_path: Path) -> None:
    assert tmp_path.is_dir()
    with pytest.raises(ModelError, match="no head"):
        to_half(small_model(scores="hidden"), fp32_head=True)


def test_an_engine_with_a_float32_head_is_still_an_fp16_engine(
    toy_onnx: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from fcn_deploy.engine import build_engine

    source = tmp_path / "mixed.onnx"
    onnx.save_model(to_half(onnx.load_model(toy_onnx), fp32_head=True), source)
    options = EngineOptions(
        fp16=True, flavour="rtx", profiles=(Shapes((32, 32), (64, 96), (64, 96), 1),)
    )
    passport = build_engine(source, tmp_path / "mixed.plan", options, crops=None)
    assert passport.precision.computes == "fp16"
    assert passport.precision.fp16_layers == passport.precision.layers - 1
    assert 0.9 < passport.precision.fp16_arithmetic < 1


def test_the_command_takes_a_head_with_fp16_alone(toy_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed.onnx"
    arguments = ["export", str(toy_checkpoint), "-o", str(out), "--fp32-head"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    result = CliRunner().invoke(app, [*arguments, "--fp16"])
    assert result.exit_code == 0, result.output
    assert not has_half_head(read_onnx(out).proto)
