"""``evaluate``: the figures of the masks that ``segment`` writes, and a table of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from fcn_deploy.boundary import DEFAULT_TOLERANCE, boundary_f, boundary_scores
from fcn_deploy.cli.app import app
from fcn_deploy.cli.evaluate import TOLERANCE_PERCENT
from fcn_deploy.metrics import confusion_matrix, scores

CLASSES = ("ground", "disc", "stripe")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mask(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def report_of(*arguments: object) -> dict[str, Any]:
    result = call("evaluate", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "tiling", [("--tile", "whole"), ("--tile", "64x64", "--overlap", "0", "--blend", "mean")]
)
def test_it_judges_the_full_size_masks_that_segment_writes(
    tiling: tuple[str, ...], toy_onnx: Path, toy_data: Path
) -> None:
    report = report_of(toy_onnx, toy_data, *tiling, "--boundary-tolerance", "2")
    images = toy_data / "val" / "images"
    assert call("segment", images, "--model", toy_onnx, *tiling).exit_code == 0
    matrix, boundaries = np.zeros((3, 3), np.int64), []
    for path in sorted((toy_data / "val" / "masks").iterdir()):
        truth, found = mask(path), mask(Path("segmented/mask") / path.name)
        matrix += confusion_matrix(truth, found, 3)
        boundaries.append(boundary_f(truth, found, 3, 0.02))
    assert report["confusion"] == matrix.tolist()
    assert scores(matrix).as_dict(CLASSES).items() <= report.items()
    boundary = boundary_scores(boundaries, 3, 0.02).as_dict(CLASSES)
    assert report["boundary"] == boundary
    assert 0 < boundary["mean_f"] < 1


def test_the_table_is_aligned_and_says_what_the_json_says(toy_onnx: Path, toy_data: Path) -> None:
    result = call("evaluate", toy_onnx, toy_data, "--boundary", "--json", "e.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("e.json").read_text())
    head, *rows = result.stdout.splitlines()[:4]
    assert head.split() == ["class", "IoU", "accuracy", "boundary", "F", "share"]
    for name, row in zip(CLASSES, rows, strict=True):
        values = [report[key][name] for key in ("class_iou", "class_accuracy", "class_frequency")]
        values.insert(2, report["boundary"]["class_f"][name])
        *figures, share = values
        assert row.split() == [name, *(f"{value:.4f}" for value in figures), f"{share:.2%}"]
    assert len({len(line) for line in (head, *rows)}) == 1
    for column in ("IoU", "accuracy", "boundary F", "share"):
        end = head.index(column) + len(column)
        assert all(row[end - 1] != " " and row[end:][:1] in (" ", "") for row in rows)
    empty, *totals, last = result.stdout.splitlines()[4:]
    assert empty == ""
    for line, value in zip(
        totals,
        [
            *(report[key] for key in ("mean_iou", "frequency_weighted_iou", "mean_accuracy")),
            report["pixel_accuracy"],
            report["boundary"]["mean_f"],
        ],
        strict=True,
    ):
        assert line[24:30] == f"{value:.4f}"
    assert [line[:24].strip() for line in totals] == [
        "mean IoU",
        "frequency-weighted IoU",
        "mean accuracy",
        "pixel accuracy",
        "mean boundary F",
    ]
    assert totals[-1].endswith("within 0.75% of the image diagonal")
    assert last == f"3 images, {report['pixels']:,} pixels"


def test_boundaries_are_left_alone_unless_asked_for(toy_onnx: Path, toy_data: Path) -> None:
    result = call("evaluate", toy_onnx, toy_data, "--json", "e.json")
    assert result.exit_code == 0, result.output
    assert "boundary" not in result.output
    assert json.loads(Path("e.json").read_text())["boundary"] is None


def test_a_wider_tolerance_forgives_more(toy_onnx: Path, toy_data: Path) -> None:
    usual = report_of(toy_onnx, toy_data, "--boundary")["boundary"]
    assert usual["tolerance"] == DEFAULT_TOLERANCE == TOLERANCE_PERCENT / 100
    wide = report_of(toy_onnx, toy_data, "--boundary-tolerance", "100")["boundary"]
    assert wide["tolerance"] == 1
    assert all(wide["class_f"][name] >= usual["class_f"][name] for name in CLASSES)
    # Within the whole image, any boundary of the same class will do.
    assert wide["class_f"]["ground"] == 1 > usual["class_f"]["ground"]


@pytest.mark.parametrize("percent", ["-1", "100.5", "nan", "inf"])
def test_a_tolerance_that_cannot_be_is_refused(percent: str) -> None:
    result = call("evaluate", "nowhere.onnx", "--boundary-tolerance", percent)
    assert result.exit_code == 2
    assert f"0 to 100 percent of the image diagonal, not {percent}" in result.stderr
    assert len(result.stderr.splitlines()) <= 3


def test_a_class_that_never_occurs_is_a_dash_and_null(toy_onnx: Path, toy_data: Path) -> None:
    shutil.copytree(toy_data, "flat")
    for path in Path("flat/val/masks").iterdir():
        labels = mask(path)
        labels[labels != 1] = 255
        Image.fromarray(labels).save(path)
    result = call("evaluate", toy_onnx, "flat", "--boundary", "--json", "e.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("e.json").read_text())
    assert report["class_accuracy"]["ground"] is report["class_accuracy"]["stripe"] is None
    assert report["mean_accuracy"] == report["class_accuracy"]["disc"] == report["pixel_accuracy"]
    ground = next(line for line in result.stdout.splitlines() if line.startswith("ground"))
    assert ground.split()[2] == "-"
    assert ground.split()[-1] == "0.00%"
