"""From a float32 file to an INT8 one, by the library and by the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fcn_deploy.cli.app import app
from fcn_deploy.dataset import open_dataset
from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import CheckFailedError, ModelError, UsageError
from fcn_deploy.int8 import quantise_file
from fcn_deploy.int8.graph import FORMS, body_layers, share_quantised
from fcn_deploy.int8.ranges import observe
from fcn_deploy.int8.search import CPU, Judge, by_harm, choose
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.parity import TOLERANCES
from fcn_deploy.spec import PARITY_KEY
from fcn_deploy.verify.inputs import calibration_crops
from fcn_deploy.verify.limits import Limits
from fcn_deploy.verify.whole_images import Images

Crops = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def images(toy_data: Path) -> Images:
    dataset = open_dataset(toy_data)
    return Images(tuple(dataset.pairs("val")), dataset, str(toy_data), "val")


@pytest.fixture(scope="module")
def calibration(toy_data: Path) -> Crops:
    pairs = open_dataset(toy_data).pairs("train")
    return calibration_crops([pair.image for pair in pairs], 32, most=4)


def test_what_is_written_says_what_it_cost(
    toy_onnx: Path,
    calibration: Crops,
    images: Images,
    tmp_path: Path,
) -> None:
    path = tmp_path / "int8.onnx"
    told: list[str] = []
    report = quantise_file(
        toy_onnx, path, calibration, images, limits=Limits(0.9, 0.05), tell=told.append
    )
    assert report.kept == ()
    assert report.figures.count == 3
    assert report.figures.mean_iou is not None
    assert told.count("calibrating") == 4
    model = read_onnx(path)
    assert (model.precision, model.outputs) == ("int8", ("labels", "logits", "scores"))
    stored = {p.key: p.value for p in model.proto.metadata_props}
    assert json.loads(stored[PARITY_KEY])["int8_layers"] == 20
    assert path.stat().st_size < 0.35 * toy_onnx.stat().st_size
    assert "int8" in TOLERANCES


def test_layers_that_hurt_are_kept_until_the_budget_holds(
    toy_onnx: Path,
    calibration: Crops,
    images: Images,
) -> None:
    model = read_onnx(toy_onnx)
    ranges = dict(observe(model.proto, calibration))
    # One layer is made to hurt: as if calibration had seen values that never come.
    spoilt = next(n for n in model.proto.graph.node if "body.5.0.conv1" in "".join(n.input))
    ranges[spoilt.input[0]] = (0.0, 3e3 * ranges[spoilt.input[0]][1])
    judge = Judge(model.proto, model.spec, images, lambda _what: None)
    limits = Limits(0.97, 1.0)
    choice = choose(
        model.proto, model.spec, ranges, FORMS["tensorrt"], judge, limits, calibration[0]
    )
    assert 0 < len(choice.kept) < len(body_layers(model.proto))
    assert choice.figures.agreement >= 0.97
    order = by_harm(model.proto, model.spec, ranges, FORMS["tensorrt"], calibration[0])
    assert choice.kept == tuple(order[: len(choice.kept)])
    assert "body.5.0.conv1" in choice.kept
    assert CPU == "CPUExecutionProvider"


def test_a_budget_that_nothing_keeps_to_writes_nothing(
    toy_onnx: Path,
    calibration: Crops,
    images: Images,
    tmp_path: Path,
) -> None:
    path = tmp_path / "int8.onnx"
    with pytest.raises(CheckFailedError, match="--max-miou-drop"):
        quantise_file(toy_onnx, path, calibration, images, limits=Limits(1.1, 0.0))
    assert not path.exists()


def test_what_cannot_be_quantised_is_refused(
    toy_onnx: Path,
    calibration: Crops,
    images: Images,
    tmp_path: Path,
) -> None:
    limits, path = Limits(0.9, 0.05), tmp_path / "int8.onnx"
    with pytest.raises(UsageError, match="no form"):
        quantise_file(toy_onnx, path, calibration, images, runtime="tflite", limits=limits)
    quantise_file(toy_onnx, path, calibration, images, limits=limits)
    with pytest.raises(ModelError, match="no float32 file"):
        quantise_file(path, tmp_path / "again.onnx", calibration, images, limits=limits)


def test_the_command_finds_data_and_place_itself(
    toy_run: Path, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "toy"
    run.mkdir(parents=True)
    for name in ("train.json", "model.onnx"):
        shutil.copy(toy_run / name, run)
    assert toy_onnx.is_file()
    monkeypatch.chdir(tmp_path)
    command = ["export", str(run / "model.onnx"), "--int8", "--max-miou-drop", "0.1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "20 of 20 layers" in result.output
    assert share_quantised(onnx.load_model(run / "model.int8.onnx")) > 0.8
    assert CliRunner().invoke(app, [*command, "--for", "tensorrt"]).exit_code == 0
    assert (run / "model.int8.tensorrt.onnx").is_file()


@pytest.mark.parametrize("option", ["--fp16", "--fp32-head", "--no-verify"])
def test_options_that_do_not_go_together(option: str, toy_onnx: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(toy_onnx), "--int8", option])
    assert result.exit_code == 2


def test_a_plan_of_8_bit_weights_is_called_one(
    toy_onnx: Path, calibration: Crops, images: Images, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    source, limits = tmp_path / "int8.onnx", Limits(0.9, 0.05)
    quantise_file(toy_onnx, source, calibration, images, runtime="tensorrt", limits=limits)
    small = ["--max-shape", "64x96", "--min-shape", "32x32", "--opt-shape", "64x96"]
    out = tmp_path / "model.plan"
    command = ["build-engine", str(source), "-o", str(out), "--flavour", "rtx", *small]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "of the 8-bit weights lie in the plan" in result.output
    passport = read_passport(out)
    assert passport.precision.computes == "int8"
    assert passport.precision.int8_weights > 0.5
