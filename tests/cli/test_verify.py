"""``fcn-deploy verify`` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from fcn_deploy.cli.app import app
from fcn_deploy.onnx_file import to_half

QUICK = ["--shapes", "32x32,64x96", "--batches", "1,2"]


def verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


@pytest.fixture
def run(toy_run: Path, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of its own, with an FP16 file, in an empty folder."""
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    for name in ("best.safetensors", "train.json", "model.onnx"):
        shutil.copy(toy_run / name, folder)
    onnx.save_model(to_half(onnx.load_model(toy_onnx)), folder / "model.fp16.onnx")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_run_is_verified_as_a_whole_and_says_so_afterwards(run: Path) -> None:
    result = verify(*QUICK, "--json", "facts.json", "--html", "page.html")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    names = [line[0] for line in lines if line[-1:] == ["passed"]]
    assert names == ["-", "model.onnx", "model.fp16.onnx"]  # the first is eager half precision
    facts = json.loads(Path("facts.json").read_text())
    assert facts["passed"]
    assert facts["data"] == facts["data"] | {"images": 3, "labelled": True, "split": "val"}
    half, single, typed = facts["rungs"]
    assert half["file"] is None
    assert single["images"]["agreement"] == 1
    assert single["crops"]["count"] == 2 * 2 * 3
    assert {shape["source"] for shape in typed["crops"]["by_shape"]} == {"real", "random"}
    assert typed["images"]["mean_iou_change"] is not None
    assert json.loads((run / "verify.json").read_text()) == facts
    assert Path("page.html").read_text().startswith("<!doctype html>")
    shown = CliRunner().invoke(app, ["info", str(run / "model.onnx"), "--json"])
    verified = json.loads(shown.stdout)["verified"]
    assert verified["passed"]
    assert verified["against"] == "best.safetensors"


def test_a_faulty_artifact_ends_with_6_and_the_layer(run: Path) -> None:
    proto = onnx.load_model(run / "model.onnx")
    weight = next(w for w in proto.graph.initializer if w.name == "network.body.4.0.conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save_model(proto, run / "model.onnx")
    result = verify(run / "model.onnx", *QUICK, "--bisect")
    assert result.exit_code == 6
    assert "FAILED" in result.stdout
    assert "body.4.0.conv1.weight (by 1.0%)" in result.stdout
    assert "The first layer that deviates is body.4.0.conv1:" in result.stdout
    record = json.loads((run / "verify.json").read_text())
    assert record["rungs"][0]["pictures"]
    assert record["rungs"][0]["worst_pixel"]["name"].startswith("scene")


def test_an_artifact_of_another_checkpoint_is_refused_if_nobody_named_it(run: Path) -> None:
    checkpoint = run / "best.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    result = verify(*QUICK)
    assert result.exit_code == 4
    assert "another best.safetensors" in result.stderr


def test_a_plan_that_cannot_run_here_is_no_failure_unless_it_was_named(run: Path) -> None:
    from fcn_deploy.backends.tensorrt_flavour import has_gpu
    from fcn_deploy.engine import build_engine
    from fcn_deploy.recipe import EngineOptions, Shapes

    pytest.importorskip("tensorrt_rtx")
    if has_gpu():
        pytest.skip("there is a GPU")
    options = EngineOptions(
        fp16=True, flavour="rtx", profiles=(Shapes((32, 32), (64, 96), (64, 96), 1),)
    )
    build_engine(run / "model.onnx", run / "model.fp16.plan", options, crops=None)
    result = verify("--no-half", *QUICK)
    assert result.exit_code == 0, result.output
    assert "not run" in result.stdout
    assert verify(run / "model.fp16.plan", *QUICK).exit_code == 5


def test_without_a_checkpoint_an_onnx_file_is_believed(run: Path) -> None:
    (run / "best.safetensors").unlink()
    assert verify(run / "model.fp16.onnx", *QUICK).exit_code == 2
    result = verify(run / "model.fp16.onnx", "--against", run / "model.onnx", *QUICK, "--no-stamp")
    assert result.exit_code == 0, result.output
    assert not (run / "verify.json").exists()


def test_images_without_masks_have_no_iou(run: Path, toy_data: Path) -> None:
    images = toy_data / "val" / "images"
    result = verify(run / "model.onnx", "--images", images, "--limit", "2", *QUICK, "--json", "-")
    assert result.exit_code == 0, result.output
    rung = json.loads(result.stdout)["rungs"][0]
    assert rung["images"]["count"] == 2
    assert rung["images"]["mean_iou"] is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--shapes", "33x64"], 2),
        (["--shapes", "64"], 2),
        (["--batches", "0"], 2),
        (["--batches", "a"], 2),
        (["--images", ".", "--data", "."], 2),
        (["--against", "missing.safetensors"], 4),
        (["missing.onnx"], 4),
        (["--min-agreement", "1.5"], 2),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    run: Path, arguments: list[str], code: int
) -> None:
    assert run.is_dir()
    assert verify(*arguments).exit_code == code


def test_limits_are_the_users(run: Path) -> None:
    result = verify(run / "model.fp16.onnx", "--min-agreement", "1", "--no-half", *QUICK)
    crops = json.loads((run / "verify.json").read_text())["rungs"][0]
    exact = crops["images"]["agreement"] == 1
    assert result.exit_code == (0 if exact else 6)
