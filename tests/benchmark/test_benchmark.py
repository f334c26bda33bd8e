"""The command as a user calls it, and what takes part in it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from fake_cuda import FakeCuda
from fake_engines import install_fake, write_fake_engine
from fcn_deploy.backends.compiled import CompiledBackend
from fcn_deploy.backends.eager import open_eager, pick_device
from fcn_deploy.backends.tensorrt_flavour import has_gpu
from fcn_deploy.benchmark import Benchmark, Settings, measure
from fcn_deploy.benchmark.contenders import find_contenders, told_apart
from fcn_deploy.benchmark.table import table_of
from fcn_deploy.cli.app import app
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError, UsageError
from fcn_deploy.training.checkpoint import load_network
from small_models import photos, small_model

QUICK = ("--rounds", 2, "--seconds", 0, "--no-compile", "--no-memory", "--shapes", "64x64")
LIGHT = Settings(((64, 64),), rounds=2, seconds=0, compile=False, memory=False, power=False)

no_gpu = pytest.mark.skipif(has_gpu(), reason="plans are loaded on this machine")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def refused(result: Result, code: int, words: str) -> None:
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in error
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in result.output


def no_numbers_but_json(text: str) -> dict[str, Any]:
    def reject(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=reject)
    return found


@pytest.fixture(autouse=True)
def run(tmp_path: Path, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a checkpoint, its ONNX file, and a plan that loads nowhere."""
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    for name in ("best.safetensors", "model.onnx", "train.json"):
        shutil.copy(toy_onnx.with_name(name), folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def engine(run: Path) -> Path:
    write_fake_engine(run / "model.plan", small_model(1, classes=3, stride=8))
    # Its passport names another model.onnx, of which it would be said to be stale.
    (run / "model.onnx").rename(run / "exported.onnx")
    return run / "model.plan"


@no_gpu
def test_everything_of_the_newest_run(
    run: Path, engine: Path, toy_data: Path, tmp_path: Path
) -> None:
    shapes = ("--shapes", "64x64,96x64", "--batches", "1,2", "--rounds", 2, "--seconds", 0)
    more = ("--no-compile", "--no-memory", "--accuracy", "--images", 2)
    whole = ("--end-to-end", toy_data / "val" / "images")
    files = ("--json", "b.json", "--plot", "b.png", "--html", "b.html")
    result = call(*shapes, *more, *whole, *files)
    assert result.exit_code == 0, result.output
    found = no_numbers_but_json(Path("b.json").read_text())
    assert found == no_numbers_but_json((run / "benchmark.json").read_text())  # for the report
    eager, ort, plan = found["rows"]
    assert [row["name"] for row in found["rows"]] == [
        "eager PyTorch",
        "ONNX Runtime fp32",
        "TensorRT fp32",
    ]
    wanted = [(1, 64, 64), (2, 64, 64), (1, 96, 64), (2, 96, 64)]
    for row in (eager, ort):
        assert row["unavailable"] is None
        assert [(t["batch"], t["height"], t["width"]) for t in row["results"]] == wanted
        for timing in row["results"]:
            assert 0 < timing["min_ms"] <= timing["p50_ms"] <= timing["p90_ms"] <= timing["p99_ms"]
            assert timing["rounds"] == 2
            assert timing["warmup"] >= 3
            assert timing["ratio_low"] <= timing["ratio"] <= timing["ratio_high"]
        assert (row["end_to_end"]["images"], row["end_to_end"]["failed"]) == (2, 0)
        assert 0.05 < row["mean_iou"] <= 1
    assert eager["results"][0]["ratio"] == 1
    assert abs(eager["mean_iou"] - ort["mean_iou"]) < 1e-3
    assert "no NVIDIA GPU" in plan["unavailable"]
    assert plan["results"] == []
    assert (found["format"], found["settings"]["reference"]) == (1, "eager PyTorch")
    assert found["settings"]["shapes"] == [[64, 64], [96, 64]]
    assert {"cpu", "cores", "gpus"} <= set(found["machine"])
    assert {"fcn-deploy", "numpy", "torch"} <= set(found["versions"])
    assert "runs/toy" in result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 110 or lines[-1].startswith("Other work")
    assert "TensorRT fp32: TensorRT engines cannot run here" in result.stdout
    assert "ONNX Runtime fp32" in Path("b.html").read_text(encoding="utf-8")
    with Image.open("b.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_peak_memory_is_that_of_a_process_of_its_own(run: Path) -> None:
    held = np.ones(400 << 20, np.uint8)  # of this process, which is not to count
    settings = Settings(((64, 64),), rounds=1, seconds=0, compile=False)
    onnx_file = run / "model.onnx"
    (run / "best.safetensors").unlink()
    found = measure([onnx_file], settings)
    (row,) = found.rows
    assert held.nbytes == 400 << 20
    assert row.peak_memory_mib is not None
    assert 40 < row.peak_memory_mib < 400
    assert row.results[0].ratio is None
    assert any("no best.safetensors beside" in note for note in found.notes)
    assert no_numbers_but_json(json.dumps(found.as_dict(), allow_nan=False))["rows"]


def test_json_on_standard_output_is_all_there_is(run: Path) -> None:
    result = call(run / "model.onnx", *QUICK, "--json", "-")
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in no_numbers_but_json(result.stdout)["rows"]]
    assert names == ["eager PyTorch", "ONNX Runtime fp32"]  # the reference lies beside the file
    assert not (run / "benchmark.json").exists()  # not of the whole run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--shapes", "64x70"), 2, "64x70 is no multiple of the network's 32 pixels"),
        (("--shapes", "64"), 2, "height x width"),
        (("--batches", "0"), 2, "at least one crop"),
        (("--batches", "two"), 2, "numbers of crops"),
        (("--rounds", "0"), 2, "no rounds"),
        (("--seconds", "nan"), 2, "no rounds"),
        (("--images", "0"), 2, "No images"),
        (("none.onnx",), 4, "There is no none.onnx"),
        (("runs/toy/train.json",), 4, "is no model"),
        (("--data", "runs"), 4, "runs"),
        (("--end-to-end", "none"), 4, "none"),
        (("--json", "runs/toy/train.json/b.json"), 5, "Cannot write"),
    ],
)
def test_what_is_refused_before_any_work(arguments: tuple[str, ...], code: int, words: str) -> None:
    refused(call("--no-compile", "--no-memory", *arguments), code, words)


@pytest.mark.parametrize(("option", "package"), [("--plot", "matplotlib"), ("--html", "jinja2")])
def test_a_missing_package_is_found_out_before_the_work(
    option: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("fcn_deploy.benchmark.measure", lambda *_: pytest.fail("work was done"))
    refused(call(*QUICK, option, "page"), 5, f"{package} is not installed")


@no_gpu
def test_a_plan_that_was_named_must_load(engine: Path) -> None:
    refused(call(engine, *QUICK), 5, "no NVIDIA GPU")


def test_no_run_and_nothing_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(call(), 2, "There is no run")


def test_a_file_of_another_checkpoint_is_a_row_with_the_reason(run: Path) -> None:
    path = run / "best.safetensors"
    shutil.copy(run / "model.onnx", run / "model.old.onnx")
    model = onnx.load(run / "model.old.onnx")
    for prop in model.metadata_props:
        if prop.key == "fcn_deploy.source":
            prop.value = json.dumps({"name": path.name, "sha256": "0" * 64})
    onnx.save(model, run / "model.old.onnx")
    found = measure((), LIGHT)
    stale = [row for row in found.rows if row.unavailable]
    assert [Path(row.file).name for row in stale] == ["model.old.onnx"]
    assert "another best.safetensors" in str(stale[0].unavailable)
    assert [row.name for row in found.rows if row.results] == [
        "eager PyTorch",
        "ONNX Runtime fp32 (toy/model.onnx)",
    ]


def test_parts_and_temporary_files_take_no_part(run: Path, engine: Path) -> None:
    (run / ".abc.tmp.onnx").touch()
    found, notes = find_contenders(())
    kinds = [(contender.kind, contender.path.name) for contender in found]
    assert kinds == [
        ("eager", "best.safetensors"),
        ("compiled", "best.safetensors"),
        ("ort", "exported.onnx"),
        ("trt", "model.plan"),
    ]
    assert notes == []
    assert not any(contender.named for contender in found)
    with pytest.raises(UsageError, match="part of an engine"):
        find_contenders([run / "model.trunk.plan"])
    (run / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no"):
        find_contenders([run / "empty"])


def test_rows_of_one_name_are_told_apart_by_their_files() -> None:
    names = ["ORT", "eager", "ORT", "ORT"]
    paths = [Path("a/m.onnx"), Path("a/b"), Path("b/m.onnx"), Path("x/b/m.onnx")]
    apart = ["ORT (a/m.onnx)", "eager", "ORT (b/m.onnx) #1", "ORT (b/m.onnx) #2"]
    assert told_apart(names, paths) == apart


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    device = FakeCuda(seed=1)
    install_fake(monkeypatch, device, flavour="tensorrt", version="10.16.1.11")
    return device


def on_a_fake_device(run: Path, **changes: Any) -> Benchmark:
    plan = run / "model.plan"
    write_fake_engine(plan, small_model(1, classes=3, stride=8), version="10.16.1.11")
    settings = Settings(((64, 96), (32, 512)), rounds=1, seconds=0, compile=False, memory=False)
    return measure([run / "model.onnx", plan], settings, **changes)


def test_an_engine_tells_its_copies_and_what_it_refuses(device: FakeCuda, run: Path) -> None:
    found = on_a_fake_device(run)  # a FAKE: its times say nothing of any device
    row = found.rows[-1]
    assert (row.name, row.backend, row.precision) == ("TensorRT fp32", "trt", "fp32")
    (timing,) = row.results
    assert timing.shape == (1, 64, 96)
    assert timing.copy_in_ms is not None
    assert timing.network_ms is not None
    assert timing.copy_out_ms is not None
    parts = timing.copy_in_ms + timing.network_ms + timing.copy_out_ms
    assert parts == pytest.approx(timing.p50_ms, abs=1e-3) or timing.network_ms == 0
    assert [refused.width for refused in row.refused] == [512]
    assert "outside of the engine's" in row.refused[0].reason
    assert found.rows[0].at((1, 32, 512)) is not None  # the others go on
    assert any("TensorRT fp32, 1 x 32x512: Crops of" in line for line in table_of(found))


def test_power_is_that_of_the_meter_of_the_machine(
    device: FakeCuda, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_deploy.benchmark.run._POWER_S", 0.1)
    sensor = tmp_path / "sys/class/hwmon/hwmon0"
    sensor.mkdir(parents=True)
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", 5000)):
        (sensor / name).write_text(str(text))
    (sensor / "curr1_input").write_text("3000")
    found = on_a_fake_device(run, root=tmp_path)
    assert {row.power_w for row in found.rows} == {15.0}
    assert [timing.power_w for timing in found.rows[0].results] == [15.0, None]
    assert found.machine["power"] == "INA3221 VDD_IN"


def compiled(run: Path, compiler: Any) -> CompiledBackend:
    network, spec = load_network(run / "best.safetensors")
    return CompiledBackend(network, spec, pick_device("cpu"), compiler)


def test_a_compiled_network_answers_as_the_eager_one(run: Path) -> None:
    crops: NDArray[np.uint8] = photos(1, 1, 64, 64)
    backend = compiled(run, "eager")  # traced and guarded, but no code is made: that takes a minute
    assert (backend.name, backend.precision) == ("eager", "fp32")
    with open_eager(run / "best.safetensors", "cpu") as eager:
        np.testing.assert_array_equal(backend.labels(crops), eager.labels(crops))
        np.testing.assert_allclose(backend.scores(crops), eager.scores(crops), atol=1e-5)


def test_a_compiler_that_fails_is_an_error_with_the_reason(run: Path) -> None:
    def broken(_graph: Any, _inputs: Any) -> None:
        raise RuntimeError("no compiler in sight")

    with pytest.raises(DeviceError, match=r"torch\.compile does not work here") as caught:
        compiled(run, broken).labels(photos(1, 1, 64, 64))
    assert "no compiler in sight" in caught.value.problem


def test_what_does_not_run_at_all_is_a_row_with_the_reason(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: CompiledBackend, _crops: object) -> None:
        raise DeviceError("torch.compile does not work here: no compiler.")

    monkeypatch.setattr(CompiledBackend, "labels", fails)
    settings = Settings(((64, 64), (96, 64)), (1,), rounds=1, seconds=0, memory=False, power=False)
    found = measure((), settings)
    rows = {row.name: row for row in found.rows}
    assert rows["torch.compile"].unavailable == "torch.compile does not work here: no compiler."
    assert rows["torch.compile"].results == ()
    assert len(rows["eager PyTorch"].results) == 2


def test_without_torch_the_rest_is_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object) -> None:
        raise MissingExtraError("torch", "train")

    monkeypatch.setattr("fcn_deploy.backends.eager.open_eager", missing)
    found = measure((), LIGHT)
    rows = {row.name: row for row in found.rows}
    assert "torch is not installed" in str(rows["eager PyTorch"].unavailable)
    assert rows["ONNX Runtime fp32"].results[0].ratio is None
    assert any(note.startswith("No ratios") for note in found.notes)
