"""Every command as a user calls it: exit codes, files, and messages of at most three lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from fcn_deploy.backends.tensorrt_flavour import has_gpu
from fcn_deploy.cli.app import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, code: int, words: str) -> None:
    """Ended with this code, these words, three lines at most, and no traceback."""
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in error
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in result.output


def read(path: Path) -> tuple[str, NDArray[np.uint8]]:
    """Mode and pixels of an image file, as stored."""
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_main_job_without_arguments(toy_data: Path, toy_run: Path, empty_folder: Path) -> None:
    run = empty_folder / "runs" / "toy"
    run.mkdir(parents=True)
    for name in ("best.safetensors", "last.safetensors", "train.json"):
        shutil.copy(toy_run / name, run)

    evaluated = call("evaluate", "--json", "eager.json")
    assert evaluated.exit_code == 0, evaluated.output
    assert "runs/toy/best.safetensors" in evaluated.stderr
    assert "mean IoU" in evaluated.stdout

    exported = call("export")
    assert exported.exit_code == 0, exported.output
    assert "against eager fp32" in exported.stderr
    assert (run / "model.onnx").is_file()

    assert call("evaluate", "--json", "ort.json").exit_code == 0
    eager, ort = (json.loads(Path(f"{name}.json").read_text()) for name in ("eager", "ort"))
    assert ort["model"].endswith("model.onnx")
    assert abs(eager["mean_iou"] - ort["mean_iou"]) < 1e-3
    assert sum(map(sum, ort["confusion"])) == ort["pixels"]

    built = call("build-engine", "--fp16", "--flavour", "rtx")
    assert built.exit_code == 0, built.output
    assert "100.0% of the arithmetic is FP16 (24 of 24 layers" in built.stderr
    assert (run / "model.fp16.plan.json").is_file()

    images = toy_data / "val" / "images"
    done = call("segment", images, "--save", "mask,overlay,confidence", "--json", "done.json")
    assert done.exit_code == 0, done.output
    for source in images.iterdir():
        hw = read(source)[1].shape[:2]
        mode, mask = read(Path("segmented/mask") / f"{source.stem}.png")
        assert (mode, mask.shape) == ("P", hw)
        assert mask.max() <= 2
        assert read(Path("segmented/overlay") / f"{source.stem}.jpg")[1].shape[:2] == hw
        assert read(Path("segmented/confidence") / f"{source.stem}.png")[1].shape == hw
    report = json.loads(Path("done.json").read_text())
    assert (report["done"], report["failed"], report["provider"]) == (3, 0, "CPUExecutionProvider")

    if not has_gpu():
        refused(call("segment", images, "--backend", "trt"), 5, "no NVIDIA GPU or driver")


def test_train_writes_a_run_and_resumes_with_its_settings(toy_data: Path) -> None:
    settings = ("--crop", "64x64", "--batch-size", "4", "--workers", "0", "--device", "cpu")
    first = call("train", toy_data, "-o", "runs/a", "--weights", "none", "--epochs", "1", *settings)
    assert first.exit_code == 0, first.output
    assert "Read 10 examples, crops of 64x64, on cpu in " in first.stderr
    resumed = call("train", toy_data, "-o", "runs/a", "--resume", "--epochs", "2")
    assert resumed.exit_code == 0, resumed.output
    assert "Going on after epoch 1." in resumed.stderr
    config = json.loads(Path("runs/a/train.json").read_text())["config"]
    assert config["crop_hw"] == [64, 64]
    assert config["epochs"] == 2
    refused(call("train", toy_data, "-o", "runs/a", *settings), 2, "already holds a training")


def test_offline_imagenet_weights_are_an_environment_fault(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    result = call("train", toy_data, "--crop", "64x64", "--epochs", "0", "--device", "cpu")
    refused(result, 5, "--weights none")
    assert "--weights FILE" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export",), 2, "There is no run under runs/"),
        (("evaluate", "nowhere.onnx"), 4, "There is no nowhere.onnx"),
        (("segment", "nothing.jpg"), 4, "no file, folder or match for nothing.jpg"),
        (("segment", ".", "--tile", "big"), 2, "--tile takes height x width"),
        (("train", "missing"), 4, "There is no folder missing"),
        (("train", ".", "--crop", "320"), 2, "--crop takes height x width"),
        (("train", "."), 4, "is no data set"),
        (("build-engine", "--flavour", "onnx", "x.onnx"), 4, "There is no x.onnx"),
        (("info", "nothing.plan"), 4, "There is no file nothing.plan"),
    ],
)
def test_refusals(arguments: tuple[str, ...], code: int, words: str) -> None:
    refused(call(*arguments), code, words)


def test_an_artifact_that_is_older_than_its_source_is_refused(
    toy_run: Path, toy_data: Path, tmp_path: Path
) -> None:
    run = Path("runs/a")
    run.mkdir(parents=True)
    for name in ("best.safetensors", "last.safetensors", "train.json"):
        shutil.copy(toy_run / name, run)
    assert call("export", "--no-verify").exit_code == 0
    assert call("build-engine", "--flavour", "rtx", "--max-shape", "512x512").exit_code == 0
    assert call("evaluate").exit_code == 0
    shutil.copytree(run, "copied", copy_function=shutil.copyfile)
    assert call("evaluate", "copied").exit_code == 0
    # Another training of the same network: what was made of the first one no longer counts.
    shutil.copy(toy_run / "last.safetensors", run / "best.safetensors")
    refused(call("evaluate"), 4, "was made from another best.safetensors")
    refused(call("build-engine", "--flavour", "rtx"), 4, "fcn-deploy export")
    assert call("evaluate", "--backend", "eager").exit_code == 0
    named = call("evaluate", run / "model.onnx")
    assert named.exit_code == 0, named.output


def test_one_bad_image_among_good_ones(toy_onnx: Path, toy_data: Path) -> None:
    shutil.copytree(toy_data / "val" / "images", "photos")
    Path("photos/bad.jpg").write_text("not an image")
    Path("photos/cut.jpg").write_bytes(Path("photos/scene0.jpg").read_bytes()[:700])
    result = call("segment", "photos", "--model", toy_onnx, "--json", "r.json")
    assert result.exit_code == 3
    assert "3 of 5 images segmented" in result.stderr
    report = json.loads(Path("r.json").read_text())
    failed = {Path(i["source"]).name for i in report["images"] if i["status"] == "failed"}
    assert failed == {"bad.jpg", "cut.jpg"}
    assert len(list(Path("segmented/mask").iterdir())) == 3


def test_tiled_and_whole_masks_through_every_backend_agree(
    toy_onnx: Path, toy_checkpoint: Path, toy_data: Path
) -> None:
    images = toy_data / "val" / "images"
    tiled = ("--tile", "64x64", "--overlap", "32")
    for name, model in (("ort", toy_onnx), ("eager", toy_checkpoint)):
        result = call("segment", images, "-o", name, "--model", model, "--backend", name, *tiled)
        assert result.exit_code == 0, result.output
    for mask in Path("ort/mask").iterdir():
        left, right = read(mask)[1], read(Path("eager/mask") / mask.name)[1]
        assert (left == right).mean() > 0.999


def test_evaluation_agrees_with_an_independent_computation(toy_onnx: Path, toy_data: Path) -> None:
    whole = ("--tile", "whole")
    assert call("evaluate", toy_onnx, toy_data, "--json", "e.json", *whole).exit_code == 0
    call("segment", toy_data / "val" / "images", "--model", toy_onnx, *whole)
    truth, found = [], []
    for path in sorted((toy_data / "val" / "masks").iterdir()):
        labels = read(path)[1].ravel()
        mask = read(Path("segmented/mask") / path.name)[1].ravel()
        truth.extend(labels[labels != 255].tolist())
        found.extend(mask[labels != 255].tolist())
    pairs = list(zip(truth, found, strict=True))
    report = json.loads(Path("e.json").read_text())
    ious = []
    for label, name in enumerate(("ground", "disc", "stripe")):
        inside = sum(t == label and f == label for t, f in pairs)
        either = sum(t == label or f == label for t, f in pairs)
        ious.append(inside / either)
        assert abs(report["class_iou"][name] - inside / either) < 1e-9
    assert abs(report["mean_iou"] - sum(ious) / 3) < 1e-9
    assert abs(report["pixel_accuracy"] - sum(t == f for t, f in pairs) / len(pairs)) < 1e-9
    assert report["pixels"] == len(pairs)


def test_classes_of_another_data_set_are_refused(
    toy_onnx: Path, toy_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy_data, other)
    classes = (other / "classes.toml").read_text()
    (other / "classes.toml").write_text(classes.replace("disc", "ball"))
    refused(call("evaluate", toy_onnx, other), 4, "'disc' is 'ball' there")


def test_info_of_every_kind_of_file(toy_checkpoint: Path, toy_onnx: Path, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    built = call("build-engine", toy_onnx, "-o", plan, "--flavour", "rtx", "--max-shape", "512x512")
    assert built.exit_code == 0, built.output
    for path, kind in ((toy_checkpoint, "checkpoint"), (toy_onnx, "ONNX"), (plan, "TensorRT plan")):
        facts = json.loads(call("info", path, "--json").stdout)
        assert facts["kind"] == kind
        assert facts["classes"] == ["ground", "disc", "stripe"]
        assert facts["network"] == "fcn16s, resnet18"
        assert "stripe" in call("info", path).stdout
    assert json.loads(call("info", toy_onnx, "--json").stdout)["parity"]["passed"]
    assert json.loads(call("info", plan, "--json").stdout)["precision"]["computes"] == "fp32"
    # Parameters as counted by hand: ResNet-18's body, heads of 3 classes, three kernels.
    body = 11_176_512
    heads = (512 * 3 + 3) + (256 * 3 + 3) + 9 * 16 + (9 * 32 * 32 + 3)
    assert json.loads(call("info", toy_checkpoint, "--json").stdout)["parameters"] == body + heads


def test_a_checkpoint_without_its_data_is_verified_on_textures(toy_checkpoint: Path) -> None:
    shutil.copy(toy_checkpoint, "alone.safetensors")
    result = call("export", "alone.safetensors", "-o", "alone.onnx", "--fp16")
    assert result.exit_code == 0, result.output
    assert "verifying on generated textures" in result.stderr
    refused(call("evaluate", "alone.onnx"), 2, "Nothing is known of the data")


def test_an_unwritable_place_is_an_environment_fault(toy_onnx: Path, toy_data: Path) -> None:
    Path("blocked").write_text("a file where a folder must be")
    result = call("segment", toy_data / "val" / "images", "-o", "blocked", "--model", toy_onnx)
    refused(result, 5, "Cannot write blocked")


def test_an_interrupt_ends_with_130(
    toy_onnx: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fcn_deploy.batch._segment_item", interrupt)
    refused(call("segment", toy_data / "val" / "images", "--model", toy_onnx), 130, "Interrupted")


def test_names_with_control_characters_do_not_reach_the_terminal(toy_onnx: Path) -> None:
    Path("evil\x1b[31m.jpg").write_text("no image")
    result = call("segment", ".", "--model", toy_onnx)
    assert result.exit_code == 3
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "export", "build-engine", "segment", "info"]
)
def test_help_says_what_a_command_does(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 10


def test_defaults_are_those_of_the_library() -> None:
    # Written twice, because --help must not wait for NumPy.
    from fcn_deploy.image import MAX_PIXELS
    from fcn_deploy.recipe import Shapes
    from fcn_deploy.tiling import DEFAULT_OVERLAP
    from fcn_deploy.training.config import LEARNING_RATE, TrainConfig

    said = " ".join(call("segment", "--help").stdout.split())
    assert f"share. [default: {DEFAULT_OVERLAP}]" in said
    assert f"[default: {MAX_PIXELS}]" in said
    said = " ".join(call("train", "--help").stdout.split())
    config = TrainConfig()
    for name, value in vars(config).items():
        if (
            isinstance(value, (str, float, int))
            and not isinstance(value, bool)
            and name != "device"
        ):
            assert f"[default: {value}]" in said, name
    assert f"[default: {config.crop_hw[0]}x{config.crop_hw[1]}]" in said
    assert f"[default: {config.scale[0]:g},{config.scale[1]:g}]" in said
    rates = ", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATE.items())
    assert f"[default: {rates}]" in said
    said = " ".join(call("build-engine", "--help").stdout.split())
    for hw in (Shapes.min_hw, Shapes.opt_hw, Shapes.max_hw):
        assert f"[default: {hw[0]}x{hw[1]}]" in said
    assert f"[default: {Shapes.max_batch}]" in said


def test_the_installed_program_answers(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("fcn-deploy")
    environment = os.environ | {"COLUMNS": "100"}
    run = subprocess.run(
        [program, "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.startswith("fcn-deploy ")
    failed = subprocess.run(
        [program, "info", "x.onnx"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert failed.returncode == 4
    assert failed.stderr == "Error: There is no file x.onnx.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--save", ""), 2, "--save takes some of"),
        (("--save", "mask,mask"), 2, "each once"),
        (("--overlap", "-7"), 2, "An overlap of -7"),
        (("-o", "taken"), 5, "taken is a file"),
        (("-o", "taken/below"), 5, "taken is a file"),
    ],
)
def test_segment_refuses_before_it_works(
    toy_onnx: Path, toy_data: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    Path("taken").touch()
    result = call("segment", toy_data / "val" / "images", "--model", toy_onnx, *arguments)
    refused(result, code, words)


@pytest.mark.skipif(has_gpu(), reason="says so only where there is none")
def test_trt_without_a_gpu_says_so_whatever_the_model(toy_onnx: Path, toy_data: Path) -> None:
    images = toy_data / "val" / "images"
    result = call("segment", images, "--model", toy_onnx, "--backend", "trt")
    refused(result, 5, "no NVIDIA GPU or driver")


def test_export_into_a_folder_and_with_outputs_that_cannot_be(toy_run: Path) -> None:
    Path("here").mkdir()
    assert call("export", toy_run, "-o", "here", "--no-verify").exit_code == 0
    assert Path("here/model.onnx").is_file()
    for outputs in ("", "labels,labels", "labels,masks"):
        refused(call("export", toy_run, "--outputs", outputs), 2, "--outputs takes some of")


def test_a_damaged_record_of_the_training_is_no_traceback(toy_run: Path, toy_data: Path) -> None:
    run = Path("run")
    run.mkdir()
    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(toy_run / name, run)
    (run / "train.json").write_text("{")
    refused(call("export", run), 4, "train.json is damaged")
    refused(call("evaluate", run), 4, "train.json is damaged")
    # The settings to resume with are in the checkpoint.
    assert call("train", toy_data, "-o", run, "--resume", "--epochs", "10").exit_code == 0
