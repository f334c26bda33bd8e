"""Other people's weights on the command line: exported, and then used like any model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from typer.testing import CliRunner, Result

from fcn_deploy.cli.app import app
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.network import build_network


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision's files are: with an auxiliary classifier."""
    torch.manual_seed(0)
    network = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    )
    path = tmp_path_factory.mktemp("torchvision") / "scenes.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, toy_data: Path) -> Path:
    done = call(
        *("export", weights, "--classes", toy_data / "classes.toml"),
        *("--images", toy_data / "val" / "images"),
    )
    assert done.exit_code == 0, done.output
    assert "against eager fp32" in done.stderr
    path = weights.with_name("scenes.onnx")
    assert "scenes.onnx --fp16" in done.stderr  # what comes next, with its name
    assert path.is_file()
    return path


def test_info_says_what_it_is(exported: Path) -> None:
    facts = json.loads(call("info", exported, "--json").stdout)
    assert facts["network"] == "torchvision, fcn_resnet50"
    assert facts["classes"] == ["ground", "disc", "stripe"]
    assert facts["palette"][1] == [200, 30, 30]
    assert (facts["output_stride"], facts["score_stride"]) == (8, 8)
    assert facts["tensors"]["image"] == "uint8 [batch, 8*rows, 8*columns, 3]"
    assert facts["tensors"]["scores"] == "float32 [batch, 3, rows, columns]"
    assert facts["parity"]["passed"] is True
    assert facts["parity"]["crops"] > 7  # on sizes of its own grid, too


def test_images_of_any_size_are_segmented_whole_and_by_crops(
    exported: Path, toy_data: Path, tmp_path: Path
) -> None:
    images = toy_data / "val" / "images"
    masks = {}
    for name, options in {
        "whole": (),
        "exact": ("--tile", "56x72", "--halo", "24"),
        "mean": ("--tile", "56x72", "--overlap", "16", "--save", "mask,confidence"),
    }.items():
        done = call("segment", images, "--model", exported, "-o", tmp_path / name, *options)
        assert done.exit_code == 0, done.output
        with Image.open(tmp_path / name / "mask" / "scene0.png") as mask:
            masks[name] = np.asarray(mask)
    assert {mask.shape for mask in masks.values()} == {(70, 101)}
    assert (masks["whole"] != masks["mean"]).any()


def test_it_is_evaluated_like_any_model(exported: Path, toy_data: Path) -> None:
    done = call("evaluate", exported, toy_data, "--tile", "64x64", "--overlap", "16")
    assert done.exit_code == 0, done.output
    assert "mean IoU" in done.stdout


def test_an_exact_halo_is_known(exported: Path, toy_data: Path, tmp_path: Path) -> None:
    done = call(
        *("segment", toy_data / "val" / "images", "--model", exported, "-o", tmp_path),
        *("--tile", "512x512", "--halo", "exact"),
    )
    assert done.exit_code == 0, done.output
    done = call(
        *("segment", toy_data / "val" / "images", "--model", exported, "-o", tmp_path),
        *("--tile", "64x64", "--halo", "exact"),
    )
    assert done.exit_code == 2
    assert "A halo of 232 on each side leaves nothing of a tile of 64x64" in done.stderr


def test_our_own_weights_without_a_description(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(ModelSpec(("a", "b"), voc_palette(2)))
    torch.save(network.state_dict(), tmp_path / "road.pth")
    (tmp_path / "classes.txt").write_text("grass\nroad\n")
    done = call("export", tmp_path / "road.pth", "--classes", tmp_path / "classes.txt", "--fp16")
    assert done.exit_code == 0, done.output
    spec = read_onnx(tmp_path / "road.fp16.onnx").spec
    assert (spec.classes, spec.head, spec.backbone) == (("grass", "road"), "fcn32s", "resnet18")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--torchvision", "unet"), 2, "There are: fcn_resnet50, fcn_resnet101."),
        (("weights.pth", "--torchvision", "fcn_resnet101"), 4, "torchvision's fcn_resnet101"),
        (("weights.pth", "--classes", "none.txt"), 4, "none.txt cannot be read"),
        (("weights.pth", "--classes", "twice.txt"), 4, "two classes have the same name"),
        (("weights.pth", "--classes", "three.txt"), 4, "has 2 classes, and 3 were named"),
        (("junk.pth",), 4, "junk.pth is damaged, or no file of weights"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    network = build_network(ModelSpec(("a", "b"), voc_palette(2)))
    torch.save(network.state_dict(), "weights.pth")
    Path("twice.txt").write_text("a\na\n")
    Path("three.txt").write_text("a\nb\nc\n")
    Path("junk.pth").write_bytes(b"junk")
    before = sorted(Path().iterdir())
    result = call("export", *arguments)
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in error
    assert len(error.splitlines()) <= 3
    assert sorted(Path().iterdir()) == before


def test_weights_that_were_not_exported_name_the_command(weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    result = call("segment", tmp_path, "--model", weights)
    assert result.exit_code == 4
    assert "fcn-deploy export FILE" in result.stderr
