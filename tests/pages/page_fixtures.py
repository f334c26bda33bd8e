"""A run whose names are as hostile as names can be, and the pages made of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from page_records import (
    HOSTILE_CLASS,
    HOSTILE_IMAGE,
    benchmark_record,
    call,
    verification_record,
)


@pytest.fixture(scope="session")
def hostile_data(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set, with markup in the name of a class and of an image."""
    root = tmp_path_factory.mktemp("hostile") / "da<b>ta"
    shutil.copytree(toy_data, root)
    classes = (root / "classes.toml").read_text()
    quoted = json.dumps(HOSTILE_CLASS)
    (root / "classes.toml").write_text(classes.replace('"disc"', quoted))
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        path = root / "val" / kind / f"scene0.{suffix}"
        path.rename(path.with_stem(HOSTILE_IMAGE))
    return root


@pytest.fixture(scope="session")
def hostile_run(
    toy_run: Path, hostile_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The toy run for that data set, with what ``verify`` and ``benchmark`` leave."""
    from fcn_deploy.training.checkpoint import load_checkpoint, save_checkpoint

    run = tmp_path_factory.mktemp("hostile-run") / "ru<b>n"
    run.mkdir()
    checkpoint = load_checkpoint(toy_run / "best.safetensors")
    spec = replace(checkpoint.spec, classes=("ground", HOSTILE_CLASS, "stripe"))
    save_checkpoint(run / "best.safetensors", replace(checkpoint, spec=spec))
    record = json.loads((toy_run / "train.json").read_text())
    (run / "train.json").write_text(json.dumps(record | {"data": str(hostile_data)}))
    (run / "verify.json").write_text(json.dumps(verification_record()))
    (run / "benchmark.json").write_text(json.dumps(benchmark_record()))
    return run


@pytest.fixture(scope="session")
def report_page(hostile_run: Path) -> Path:
    """What ``report`` makes of that run."""
    result = call("report", hostile_run)
    assert result.exit_code == 0, result.output
    return hostile_run / "report.html"


@pytest.fixture(scope="session")
def gallery_page(
    hostile_run: Path, hostile_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What ``segment --report`` makes of its images."""
    out = tmp_path_factory.mktemp("gallery")
    images = hostile_data / "val" / "images"
    page = out / "gallery.html"
    result = call("segment", images, "--model", hostile_run, "-o", out, "--report", page)
    assert result.exit_code == 0, result.output
    return page
